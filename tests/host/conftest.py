"""Host tests: ComfyUI in this process for what needs its classes, and one real server for what needs its API.

The ComfyUI is the one in `COMFYUI_PATH`; `make test` runs this folder once per supported version.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
import torch

from bench.client import Client
from bench.install import import_comfy
from bench.server import Server

import_comfy()


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
def server() -> Iterator[Server]:
    """A running ComfyUI with the pack in it, on the CPU."""
    with Server(cpu=True) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of `server`."""
    with Client(server.url) as connected:
        yield connected
