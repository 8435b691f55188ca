"""The development server and client against a real ComfyUI, with stock nodes only."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image

from tools import install
from tools.client import Client, Event, Graph, Interrupted, ServerError
from tools.server import Server, ServerFailed

pytestmark = pytest.mark.server


def inverting(name: str) -> Graph:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "inverted"},
        },
    }


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def picture(client: Client) -> str:
    return client.upload(Image.new("RGB", (32, 24), (10, 20, 30)), "plain.png")


def test_run_gives_images_and_says_what_was_executed_and_cached(
    client: Client, picture: str
) -> None:
    events: list[Event] = []
    graph = inverting(picture)
    first = client.run(graph, events.append)
    assert first.images["3"][0].getpixel((5, 5)) == (245, 235, 225)
    assert {"1", "2", "3"} == set(first.executed) | set(first.cached)
    assert "execution_success" in [event.kind for event in events]
    graph["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    second = client.run(graph)
    assert second.executed == ["4"]
    assert {"1", "2", "3"} == set(second.cached)
    assert second.previews["4"][0].size == (32, 24)


def test_bad_input_names_the_node(client: Client) -> None:
    with pytest.raises(ServerError, match="missing.png") as caught:
        client.run(inverting("missing.png"))
    assert (caught.value.node_id, caught.value.node_class) == ("1", "LoadImage")


def test_unknown_node_class_is_named(client: Client, picture: str) -> None:
    graph = inverting(picture)
    graph["2"]["class_type"] = "NoSuchNode"
    with pytest.raises(ServerError, match="NoSuchNode"):
        client.run(graph)


def test_failing_node_is_named(client: Client, picture: str) -> None:
    graph = inverting(picture)
    graph["3"]["inputs"]["filename_prefix"] = "../../outside"
    with pytest.raises(ServerError, match="outside") as caught:
        client.run(graph)
    assert (caught.value.node_id, caught.value.node_class) == ("3", "SaveImage")


def test_interrupt_stops_the_run_and_the_next_one_works(client: Client, picture: str) -> None:
    graph = inverting(picture)
    graph["4"] = {
        "class_type": "ImageScale",
        "inputs": {"image": ["1", 0], "upscale_method": "lanczos"},
    }
    graph["4"]["inputs"] |= {"width": 2048, "height": 2048, "crop": "disabled"}
    for node in range(5, 15):
        graph[str(node)] = {"class_type": "ImageInvert", "inputs": {"image": [str(node - 1), 0]}}
    graph["15"] = {"class_type": "PreviewImage", "inputs": {"images": ["14", 0]}}

    def interrupt(event: Event) -> None:
        if event.kind == "executing" and event.node == "4":
            client.interrupt()

    with pytest.raises(Interrupted):
        client.run(graph, interrupt)
    assert client.run(inverting(picture)).images["3"]


def test_pack_is_loaded(client: Client, server: Server) -> None:
    assert "pivot-edit" in server.log.read_text()
    assert "(IMPORT FAILED)" not in server.log.read_text()


def test_taken_port_is_one_line(server: Server) -> None:
    with pytest.raises(ServerFailed, match=f"port {server.port} cannot be used") as caught:
        Server(server.port)
    assert "\n" not in str(caught.value)


def test_dead_server_is_reported_with_its_last_output(tmp_path: pathlib.Path) -> None:
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "options.py").touch()
    (tmp_path / "main.py").write_text("raise SystemExit('no room for models')")
    with pytest.raises(ServerFailed, match="no room for models"), Server(host=tmp_path, cpu=True):
        pass


def test_more_flags_reach_the_server(tmp_path: pathlib.Path) -> None:
    flagged = Server(cpu=True, base=tmp_path, flags=("--no-such-flag",))
    with pytest.raises(ServerFailed, match="--no-such-flag"), flagged:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_memory_is_that_of_the_process(server: Server, tmp_path: pathlib.Path) -> None:
    assert server.memory is not None
    assert 100.0 < server.memory < 20_000.0  # torch alone is larger than 100 MB
    assert Server(cpu=True, base=tmp_path).memory is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_server_does_not_outlive_a_killed_program(tmp_path: pathlib.Path) -> None:
    code = (
        "import os, pathlib, signal; from tools.server import Server\n"
        f"with Server(cpu=True, base=pathlib.Path({str(tmp_path)!r})) as server:\n"
        "    print(server.port, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=install.ROOT
    )
    deadline = time.monotonic() + 30
    while answers(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not answers(int(done.stdout))


def test_port_is_free_again_after_the_end() -> None:
    with Server(cpu=True) as server, Client(server.url) as client:
        base, port = server.base, server.port
        assert client.system_stats()["system"]["comfyui_version"]
    assert not base.exists()
    assert not answers(port)
