"""The API client against a scripted server: what it makes of answers, messages and failures."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from tools.client import (
    Client,
    Event,
    Interrupted,
    JobFailed,
    Result,
    ServerError,
    raise_failure,
    refusal,
)
from tools.server import free_port


class Scripted:
    """A web server on a thread that answers a prompt with a given list of websocket messages."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.posted: list[Any] = []
        self.refused: set[int] = set()
        self.outputs: dict[str, Any] = {}
        self.asked: list[tuple[str, Any]] = []
        self.uploads: list[str] = []
        self.contents: list[bytes] = []
        self.picture: Image.Image | None = None
        self.sockets: list[web.WebSocketResponse] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.url = f"http://127.0.0.1:{free_port()}"

    def start(self) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/ws", self.listen),
                web.post("/prompt", self.prompt),
                web.get("/history/{id}", self.history),
                web.get("/view", self.view),
                web.post("/upload/image", self.upload),
                *(web.post(path, self.ask) for path in ("/interrupt", "/queue", "/free")),
            ]
        )
        self.runner = web.AppRunner(app)
        self.thread.start()
        self.wait(self.runner.setup())
        self.wait(web.TCPSite(self.runner, "127.0.0.1", int(self.url.rpartition(":")[2])).start())

    def stop(self) -> None:
        self.wait(self.runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def wait(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    async def listen(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for _ in socket:
            pass
        return socket

    async def prompt(self, request: web.Request) -> web.Response:
        socket = self.sockets[-1]
        self.posted.append((await request.json())["prompt"])
        if len(self.posted) in self.refused:
            return web.json_response(
                {"error": {"message": "no outputs"}, "node_errors": {}}, status=400
            )
        await socket.send_bytes(b"a preview picture")
        for kind, data in self.messages:
            if kind == "close":
                await socket.close()
            else:
                await socket.send_json({"type": kind, "data": data})
        return web.json_response({"prompt_id": f"p{len(self.posted)}"})

    async def history(self, request: web.Request) -> web.Response:
        return web.json_response({request.match_info["id"]: {"outputs": self.outputs}})

    async def ask(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, await request.json()))
        return web.Response()

    async def view(self, request: web.Request) -> web.Response:
        data = io.BytesIO()
        picture = self.picture or Image.new("RGB", (4, 3), request.query["filename"])
        picture.save(data, "PNG")
        return web.Response(body=data.getvalue())

    async def upload(self, request: web.Request) -> web.Response:
        part = (await request.post())["image"]
        assert isinstance(part, web.FileField)
        self.uploads.append(part.filename)
        self.contents.append(part.file.read())
        return web.json_response({"name": part.filename, "subfolder": "", "type": "input"})


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(scripted: Scripted) -> Iterator[Client]:
    with Client(scripted.url, timeout=10) as connected:
        yield connected


def of_run(kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"prompt_id": "p1", **data}


END = of_run("executing", node=None)


def test_result_counts_what_happened(scripted: Scripted, client: Client) -> None:
    scripted.messages = [
        ("status", {}),
        of_run("execution_cached", nodes=["1"]),
        of_run("executing", node="2"),
        of_run("progress", node="2", value=1, max=2),
        of_run("progress", node="2", value=2, max=2),
        ("executing", {"prompt_id": "another", "node": "9"}),
        of_run("execution_success"),
        END,
    ]
    events: list[Event] = []
    result = client.run({}, events.append)
    assert (result.executed, result.cached, result.progress["2"]) == (["2"], ["1"], 2)
    assert [event.kind for event in events].count("executing") == 2  # none of the other run


def test_images_texts_and_previews_are_fetched(scripted: Scripted, client: Client) -> None:
    scripted.messages = [END]
    saved = {"filename": "red", "subfolder": "", "type": "output"}
    shown = {"filename": "blue", "subfolder": "", "type": "temp"}
    scripted.outputs = {"2": {"images": [saved, shown], "text": ["31.5 dB"]}}
    result = client.run({})
    assert result.images["2"][0].getpixel((0, 0)) == (255, 0, 0)
    assert result.previews["2"][0].getpixel((0, 0)) == (0, 0, 255)
    assert result.texts == {"2": ["31.5 dB"]}


def test_failed_node_is_named(scripted: Scripted, client: Client) -> None:
    failure = {
        "node_id": "4",
        "node_type": "PivotEditSampler",
        "exception_message": "Expected a, got b\n",
    }
    scripted.messages = [of_run("execution_error", **failure)]
    with pytest.raises(ServerError, match=r"^node 4 \(PivotEditSampler\): Expected a, got b$"):
        client.run({})


def test_closed_connection_is_an_error(scripted: Scripted, client: Client) -> None:
    scripted.messages = [("close", {})]
    with pytest.raises(ServerError, match="closed the connection"):
        client.run({})


def test_upload_gives_the_name_for_load_image(scripted: Scripted, client: Client) -> None:
    assert client.upload(Image.new("RGB", (2, 2)), "scene.png") == "scene.png"
    assert scripted.uploads == ["scene.png"]


@pytest.mark.parametrize(
    ("picture", "mode", "corner"),
    [
        (Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "RGB", (0, 255, 255)),
        (Image.new("I;16", (2, 2), 25700), "RGB", (100, 100, 100)),
        (Image.new("F", (2, 2), 1.0), "RGB", (255, 255, 255)),
        (Image.new("LA", (2, 2), (100, 50)), "RGBA", (100, 100, 100, 50)),
        (Image.new("RGBA", (2, 2), (1, 2, 3, 4)), "RGBA", (1, 2, 3, 4)),
        (Image.new("YCbCr", (2, 2), (255, 128, 128)), "RGB", (255, 255, 255)),
    ],
)
def test_pictures_of_every_mode_are_sent_and_fetched_in_8_bits(
    scripted: Scripted, client: Client, picture: Image.Image, mode: str, corner: tuple[int, ...]
) -> None:
    client.upload(picture, "scene.png")
    sent = Image.open(io.BytesIO(scripted.contents[-1]))
    assert (sent.mode, sent.getpixel((0, 0))) == (mode, corner)
    if picture.mode not in ("CMYK", "F", "YCbCr"):  # no PNG has these
        scripted.picture = picture
        scripted.messages = [END]
        scripted.outputs = {"9": {"images": [{"filename": "9", "subfolder": "", "type": "output"}]}}
        (fetched,) = client.run({}).images["9"]
        assert (fetched.mode, fetched.getpixel((0, 0))) == (mode, corner)


def test_unreachable_server_is_one_line() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(ServerError, match="cannot be reached") as caught:
            client.run({})
    assert "\n" not in str(caught.value)


def test_silent_server_times_out(scripted: Scripted) -> None:
    with Client(scripted.url, timeout=0.2) as client:
        with pytest.raises(ServerError, match="silent"):
            client.run({})


def test_not_found_is_an_error(client: Client) -> None:
    with pytest.raises(ServerError, match="GET /system_stats was refused with status 404"):
        client.system_stats()


def test_refusal_names_the_node() -> None:
    wrong = {"message": "Invalid image file", "details": "image: missing.png"}
    nodes = {"3": {"class_type": "LoadImage", "errors": [wrong]}}
    body = json.dumps({"error": {"message": "failed validation"}, "node_errors": nodes}).encode()
    error = refusal("POST /prompt", 400, body)
    assert str(error) == "node 3 (LoadImage): Invalid image file: image: missing.png"


def test_refusal_without_nodes_keeps_the_message() -> None:
    body = b'{"error": {"message": "no outputs", "extra_info": {}}, "node_errors": {}}'
    assert str(refusal("POST /prompt", 400, body)) == "no outputs"


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"<html>", b'{"error": "text"}', b'{"node_errors": []}']
)
def test_refusal_survives_any_body(body: bytes) -> None:
    assert "status 500" in str(refusal("GET /", 500, body))


def test_interrupt_is_an_error_of_its_own() -> None:
    with pytest.raises(Interrupted):
        raise_failure(Event("execution_interrupted", {"node_id": "4", "node_type": "KSampler"}))


def numbered(number: int, kind: str, **data: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"prompt_id": f"p{number}", **data}


def test_many_runs_come_back_in_their_order(scripted: Scripted, client: Client) -> None:
    ends = [
        [numbered(n, "executing", node=str(n)), numbered(n, "executing", node=None)]
        for n in (1, 2, 3)
    ]
    scripted.messages = [message for end in ends for message in end]
    results = list(client.run_all([{"n": {"job": n}} for n in (1, 2, 3)]))
    assert [posted["n"]["job"] for posted in scripted.posted] == [1, 2, 3]
    assert [result.executed for result in results if isinstance(result, Result)] == [
        ["1"],
        ["2"],
        ["3"],
    ]


def test_runs_are_queued_ahead_but_not_all_at_once(scripted: Scripted, client: Client) -> None:
    scripted.messages = [numbered(n, "executing", node=None) for n in range(1, 8)]
    asked = []
    for _ in client.run_all((asked.append(n) or {} for n in range(7)), ahead=2):
        break
    assert asked == [0, 1, 2]


def test_a_failed_run_does_not_stop_the_others(scripted: Scripted, client: Client) -> None:
    failure = {
        "node_id": "4",
        "node_type": "PivotEditSampler",
        "exception_message": "Expected a, got b",
    }
    scripted.messages = [
        numbered(1, "execution_error", **failure),
        numbered(1, "executing", node=None),
        numbered(3, "executing", node=None),
    ]
    scripted.refused = {2}
    results = list(client.run_all([{}, {}, {}]))
    assert [type(result) for result in results] == [JobFailed, JobFailed, Result]
    assert [str(result) for result in results[:2]] == [
        "node 4 (PivotEditSampler): Expected a, got b",
        "no outputs",
    ]


def test_a_server_that_is_gone_stops_all(scripted: Scripted, client: Client) -> None:
    scripted.messages = [("close", {})]
    with pytest.raises(ServerError, match="closed the connection") as caught:
        list(client.run_all([{}, {}]))
    assert not isinstance(caught.value, JobFailed)


def test_every_message_of_many_runs_is_given(scripted: Scripted, client: Client) -> None:
    scripted.messages = [
        numbered(1, "progress", node="4", value=1),
        numbered(9, "progress", node="4", value=1),
        numbered(1, "executing", node=None),
        numbered(2, "executing", node=None),
    ]
    events: list[Event] = []
    list(client.run_all([{}, {}], ahead=0, on_event=events.append))
    assert [(event.kind, event.data["prompt_id"]) for event in events] == [
        ("progress", "p1"),
        ("executing", "p1"),
        ("executing", "p2"),
    ]


def test_single_runs_are_interrupted_and_deleted(scripted: Scripted, client: Client) -> None:
    client.interrupt()
    client.interrupt("p1")
    client.delete("p2")
    client.free()
    assert scripted.asked == [
        ("/interrupt", {}),
        ("/interrupt", {"prompt_id": "p1"}),
        ("/queue", {"delete": ["p2"]}),
        ("/free", {"unload_models": True, "free_memory": True}),
    ]


def test_past_runs_are_fetched_or_none(scripted: Scripted, client: Client) -> None:
    assert client.past("p1") is None
    scripted.outputs = {"9": {"images": [{"filename": "red", "subfolder": "", "type": "output"}]}}
    past = client.past("p1")
    assert past is not None
    assert past.images["9"][0].getpixel((0, 0)) == (255, 0, 0)


def test_nodes_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.5, 13.0, 20.0])
    monkeypatch.setattr("tools.client.time.monotonic", lambda: next(times))
    result = Result("p1")
    for node in ("2", "3", "2", None):
        result.note(Event("executing", {"node": node}))
    assert result.seconds == {"2": 9.5, "3": 0.5}
