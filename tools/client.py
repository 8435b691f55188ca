"""A small client for ComfyUI's API; also the example of how to drive Pivot Edit from a program.

with Client("http://127.0.0.1:8188") as client:
    name = client.upload(Image.open("photo.png"), "photo.png")
    graph["1"]["inputs"]["image"] = name
    result = client.run(graph, on_event=print)
    result.images["9"][0].save("edited.png")

Needs only aiohttp, numpy and Pillow, which ComfyUI brings, and tools/pictures.py.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import io
import itertools
import json
import time
import types
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import aiohttp
from PIL import Image

from tools.pictures import plain

Graph = dict[str, dict[str, Any]]
Answer = TypeVar("Answer")


class ServerError(RuntimeError):
    """The server refused a request or a node failed.

    `node_id` and `node_class` name the node, and are None where the error belongs to none.
    """

    def __init__(
        self, message: str, node_id: str | None = None, node_class: str | None = None
    ) -> None:
        self.message, self.node_id, self.node_class = message, node_id, node_class
        place = f"node {node_id} ({node_class}): " if node_id is not None else ""
        super().__init__(place + message)


class JobFailed(ServerError):
    """The server refused a request, or a node failed: the server itself goes on."""


class Interrupted(JobFailed):
    """The run was stopped by an interrupt."""


@dataclasses.dataclass(frozen=True)
class Event:
    """One message of the server: `kind` is its type ("progress", "executing", ...), `data` its
    body."""

    kind: str
    data: Mapping[str, Any]

    @property
    def node(self) -> str | None:
        """The node that the message is about, if any."""
        return self.data.get("node") or self.data.get("node_id")


@dataclasses.dataclass
class Result:
    """What one run gave, by node id.

    `images` holds saved pictures, `previews` temporary ones, RGB, or RGBA where parts are
    transparent; `texts` holds what text outputs showed;
    `executed` lists the nodes that ran, `cached` those that did not have to, `progress` counts each
    node's progress messages, `seconds` says how long each node took.
    """

    prompt_id: str
    images: dict[str, list[Image.Image]] = dataclasses.field(default_factory=dict)
    previews: dict[str, list[Image.Image]] = dataclasses.field(default_factory=dict)
    texts: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    executed: list[str] = dataclasses.field(default_factory=list)
    cached: list[str] = dataclasses.field(default_factory=list)
    progress: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    _began: float = 0.0

    def note(self, event: Event) -> None:
        """Count a message of the run."""
        if event.kind == "execution_cached":
            self.cached += event.data["nodes"]
        elif event.kind == "executing":
            self._clock(event.node)
        elif event.kind == "progress" and event.node is not None:
            self.progress[event.node] += 1

    def _clock(self, node: str | None) -> None:
        """A node, or nothing more, begins: the one before has ended."""
        now = time.monotonic()
        if self.executed:
            last = self.executed[-1]
            self.seconds[last] = self.seconds.get(last, 0.0) + now - self._began
        self._began = now
        if node is not None:
            self.executed.append(node)


class Client:
    """A connection to one ComfyUI server; a context manager. Every method raises ServerError on
    failure."""

    def __init__(self, url: str, timeout: float = 600.0) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.id = uuid.uuid4().hex
        self._loop = asyncio.new_event_loop()
        self._session: aiohttp.ClientSession | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the server stays as it is."""
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
            self._session = None
        if not self._loop.is_closed():
            self._loop.close()

    def object_info(self, node_class: str = "") -> dict[str, Any]:
        """The declarations of all node classes, or of one (an empty dict if the server has no such
        node)."""
        info: dict[str, Any] = self._get(
            f"/object_info/{node_class}" if node_class else "/object_info"
        )
        return info

    def system_stats(self) -> dict[str, Any]:
        """Versions, devices and memory."""
        stats: dict[str, Any] = self._get("/system_stats")
        return stats

    def history(self, prompt_id: str) -> dict[str, Any]:
        """What the server remembers of a run: `outputs` by node id, `status`."""
        entry: dict[str, Any] = self._get(f"/history/{prompt_id}").get(prompt_id, {})
        return entry

    def past(self, prompt_id: str) -> Result | None:
        """What a run that is over gave; None where the server remembers no outputs of it."""
        result = Result(prompt_id)
        self._collect(result)
        return result if result.images or result.previews or result.texts else None

    def upload(self, image: Image.Image, name: str) -> str:
        """Put a picture into the server's input folder; returns the name for a LoadImage node.

        It is sent upright and in 8 bits, because servers read other depths and modes differently.
        Raises ValueError for a picture whose values have no known range.
        """
        data = io.BytesIO()
        plain(image).save(data, "PNG")
        form = aiohttp.FormData({"overwrite": "true"})
        form.add_field("image", data.getvalue(), filename=name, content_type="image/png")
        answer = json.loads(self._request("POST", "/upload/image", data=form))
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    def interrupt(self, prompt_id: str = "") -> None:
        """Stop what the server is running now; with a prompt id, only if it is that."""
        self._request("POST", "/interrupt", json={"prompt_id": prompt_id} if prompt_id else {})

    def delete(self, prompt_id: str) -> None:
        """Take a run out of the queue, unless it has begun."""
        self._request("POST", "/queue", json={"delete": [prompt_id]})

    def free(self) -> None:
        """Let the server forget all models and results, as soon as it runs nothing."""
        self._request("POST", "/free", json={"unload_models": True, "free_memory": True})

    def post(self, graph: Graph) -> str:
        """Queue a graph in API format; returns its prompt id. Bad input raises ServerError with the
        node."""
        return str(
            json.loads(self._request("POST", "/prompt", json=self._prompt(graph)))["prompt_id"]
        )

    def run(self, graph: Graph, on_event: Callable[[Event], object] = lambda event: None) -> Result:
        """Queue a graph, follow it to its end and fetch its pictures.

        `on_event` gets every message of this run as it comes. A failed node raises JobFailed, an
        interrupt Interrupted.
        """
        with self._listening() as messages:
            return self._followed(self.post(graph), messages, on_event)

    def run_all(
        self,
        graphs: Iterable[Graph],
        ahead: int = 3,
        on_event: Callable[[Event], object] = lambda event: None,
    ) -> Iterator[Result | JobFailed]:
        """Run graphs in their order, `ahead` of them queued on the server behind the one that runs,
        and give what each gave. A graph that is refused or fails gives its error, and the others go
        on. `on_event` gets every message of these runs.

        Nodes are timed as messages are read: what is done with a result should not take long.
        """
        coming, queued = iter(graphs), collections.deque[str | JobFailed]()
        with self._listening() as messages:
            while True:
                queued.extend(map(self._tried, itertools.islice(coming, ahead + 1 - len(queued))))
                if not queued:
                    return
                job = queued.popleft()
                try:
                    if isinstance(job, str):
                        yield self._followed(job, messages, on_event)
                    else:
                        yield job
                except JobFailed as error:
                    yield error

    def _tried(self, graph: Graph) -> str | JobFailed:
        try:
            return self.post(graph)
        except JobFailed as error:
            return error

    def _followed(
        self,
        prompt_id: str,
        messages: Iterator[Event],
        on_event: Callable[[Event], object] = lambda event: None,
    ) -> Result:
        """A queued run at its end, and its pictures."""
        result = Result(prompt_id)
        for event in messages:
            if event.data.get("prompt_id") != prompt_id:
                continue
            result.note(event)
            on_event(event)
            raise_failure(event)
            if event.kind == "executing" and event.node is None:
                break  # only now does the server's history hold the outputs
        self._collect(result)
        return result

    def _collect(self, result: Result) -> None:
        for node, output in self.history(result.prompt_id).get("outputs", {}).items():
            for reference in output.get("images", []):
                kind = result.images if reference["type"] == "output" else result.previews
                kind.setdefault(node, []).append(self._image(reference))
            if "text" in output:
                result.texts[node] = [str(text) for text in output["text"]]

    def _image(self, reference: Mapping[str, str]) -> Image.Image:
        data = self._request("GET", "/view", params=dict(reference))
        return plain(Image.open(io.BytesIO(data)))

    def _prompt(self, graph: Graph) -> dict[str, Any]:
        return {"prompt": graph, "client_id": self.id}

    @contextlib.contextmanager
    def _listening(self) -> Iterator[Iterator[Event]]:
        """The server's messages to this client, from now on."""
        socket = self._wait(self._connect())
        try:
            yield self._events(socket)
        finally:
            self._wait(socket.close())

    def _events(self, socket: aiohttp.ClientWebSocketResponse) -> Iterator[Event]:
        while True:
            message = self._wait(socket.receive())
            if message.type == aiohttp.WSMsgType.TEXT:
                body = json.loads(message.data)
                yield Event(body["type"], body.get("data") or {})
            elif message.type != aiohttp.WSMsgType.BINARY:  # binary messages are preview pictures
                raise ServerError(f"the server at {self.url} closed the connection during the run")

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        return await self._http().ws_connect(
            f"{self.url}/ws", params={"clientId": self.id}, max_msg_size=0
        )

    def _get(self, path: str) -> Any:
        return json.loads(self._request("GET", path))

    def _request(self, method: str, path: str, **options: Any) -> bytes:
        async def answer() -> tuple[int, bytes]:
            async with self._http().request(method, self.url + path, **options) as response:
                return response.status, await response.read()

        status, body = self._wait(answer())
        if status >= 400:
            raise refusal(f"{method} {path}", status, body)
        return body

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session

    def _wait(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """Run one network operation to its end; every network failure becomes ServerError."""
        try:
            return self._loop.run_until_complete(asyncio.wait_for(work, self.timeout))
        except asyncio.TimeoutError as error:
            raise ServerError(
                f"the server at {self.url} was silent for {self.timeout:.0f} s"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ServerError(f"the server at {self.url} cannot be reached: {error}") from error


def refusal(request: str, status: int, body: bytes) -> JobFailed:
    """The error of an HTTP answer; a prompt's `node_errors` name the first node that was
    refused."""
    try:
        answer = json.loads(body)
        for node_id, node in answer.get("node_errors", {}).items():
            errors = [
                ": ".join(filter(None, (error["message"], error["details"])))
                for error in node["errors"]
            ]
            return JobFailed("; ".join(errors), node_id, node["class_type"])
        error = answer["error"]
        extra = error.get("extra_info") or {}
        return JobFailed(error["message"], extra.get("node_id"), extra.get("class_type"))
    except (ValueError, KeyError, TypeError, AttributeError):
        text = body.decode(errors="replace").strip()[:200]
        return JobFailed(f"{request} was refused with status {status}{': ' if text else ''}{text}")


def raise_failure(event: Event) -> None:
    """Raise the error that a message of the server stands for, if it stands for one."""
    if event.kind == "execution_error":
        message = str(event.data["exception_message"]).strip()
        raise JobFailed(message, event.data["node_id"], event.data["node_type"])
    if event.kind == "execution_interrupted":
        raise Interrupted("interrupted", event.data["node_id"], event.data["node_type"])
