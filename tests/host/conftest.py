"""Host tests: ComfyUI in this process for what needs its classes, and one real server for what
needs its API.

The ComfyUI is the one in `COMFYUI_PATH`; `make test` runs this folder once per supported version.
What would show the same on both is marked `once`.
"""

from __future__ import annotations

import importlib
import pathlib
import warnings
from collections.abc import Iterator

import pytest
import torch

from tools.client import Client
from tools.install import ARCHIVES, NEWEST, host_path, import_comfy
from tools.server import Server

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore"
    )  # what ComfyUI and its packages say while they are imported is not ours
    import_comfy()
    for name in (
        "nodes",
        "execution",
        "server",
        "latent_preview",
        "comfy_extras.nodes_custom_sampler",
    ):
        importlib.import_module(name)


ONCE = {"oldest": next(iter(ARCHIVES)), "newest": NEWEST}
"""The version that each word of the mark `once` means."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "once(host): on the oldest or the newest supported ComfyUI alone"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `once` run on one supported ComfyUI, and on any other version.

    Benches are programs of ours around nodes whose own tests run on both. They take minutes, and
    are shared out so that both runs of `make test`, side by side, take equally long.
    """
    version = host_path().name
    for item in items:
        mark = item.get_closest_marker("once")
        if mark and version in ONCE.values() and version != ONCE[mark.args[0]]:
            item.add_marker(pytest.mark.skip(reason=f"runs on ComfyUI {ONCE[mark.args[0]]}"))


@pytest.fixture(autouse=True)
def inference_mode() -> Iterator[None]:
    """Nodes run under inference mode, and so do the tests of what they call."""
    with torch.inference_mode():
        yield


@pytest.fixture
def folders(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """ComfyUI's input, output and temp folders, empty and below `tmp_path`, which is returned."""
    import folder_paths

    for name in ("input", "output", "temp"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running ComfyUI with the pack in it and the nodes of `bad_nodes/`, on the CPU."""
    base = tmp_path_factory.mktemp("comfy")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "bad_nodes").symlink_to(pathlib.Path(__file__).parent / "bad_nodes")
    with Server(cpu=True, base=base) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of `server`."""
    with Client(server.url) as connected:
        yield connected
