"""Host tests: ComfyUI in this process for what needs its classes, and one real server for what
needs its API.

The ComfyUI is the one in `COMFYUI_PATH`; `make test` runs this folder once per supported version.
"""

from __future__ import annotations

import importlib
import pathlib
import warnings
from collections.abc import Iterator

import pytest
import torch

from tools.client import Client
from tools.install import import_comfy
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
