"""The pack as a package under a name of our choosing, as ComfyUI loads it under one of its own."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import pathlib
import sys
from typing import Any

NAME = "pivot_edit"
ROOT = pathlib.Path(__file__).absolute().parent.parent
PARTS = ("attention", "core", "features", "guidance", "host", "inversion", "nodes", "show", "toy")


def load_pack() -> None:
    """Import the repository's folder as package `pivot_edit`; nothing is installed, and twice is
    once."""
    if NAME in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"the pack cannot be imported from {ROOT}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


def part(name: str) -> Any:
    """A module of the pack, for example `part("host.tasks.editing")`."""
    load_pack()
    return importlib.import_module(f"{NAME}.{name}")


@functools.cache
def digest() -> str:
    """A mark of the pack's code, by which benches tell what an earlier version of it has made."""
    found = hashlib.sha256()
    for path in sorted(ROOT.glob("*.py")) + sorted(
        each for name in PARTS for each in (ROOT / name).rglob("*.py")
    ):
        found.update(path.read_bytes())
    return found.hexdigest()[:8]
