"""Loads the pack as `pivot_edit`, as ComfyUI loads it under a name of its own; nothing is installed."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

ROOT = pathlib.Path(__file__).absolute().parent.parent


def load_pack(name: str = "pivot_edit") -> None:
    """Import the folder ROOT as package `name`, so that `from pivot_edit.core...` works in every test."""
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


load_pack()
