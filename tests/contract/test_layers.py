"""Who may import whom, and what running code may never do: each rule with a planted breach.

nodes -> host/tasks -> host/run -> {host/model, host/text} -> {attention, inversion, guidance} ->
core; a room may reach further down, never up or aside. Only nodes may import toy; nothing that runs
may import tools, bench or tests.
"""

from __future__ import annotations

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).absolute().parents[2]
METHODS = {"core", "attention", "features", "inversion", "guidance"}
BELOW = {
    "core": set[str](),
    "attention": {"core"},
    "features": {"core"},
    "inversion": {"core"},
    "guidance": {"core"},
    "show": {"core"},
    "host": set[str](),
    "host.model": METHODS,
    "host.text": {*METHODS, "host.model"},
    "host.run": {*METHODS, "host.model", "host.text"},
    "host.tasks": {*METHODS, "host.model", "host.text", "host.run", "show"},
    "nodes": {*METHODS, "host.model", "host.text", "host.run", "host.tasks", "toy"},
    "toy": set[str](),
    "": {"nodes"},
}
PURE = ("core", "attention", "features", "inversion", "guidance", "show")
ALSO = {"core": {"safetensors"}, "show": {"numpy", "PIL"}}
FOLDERS = {layer.split(".")[0] for layer in BELOW} | {"bench", "tests", "tools"} - {""}
COMFYUI_TOO = {("host", "nodes"), ("nodes", "nodes")}  # `nodes` is also a module of ComfyUI's own
NEVER = {
    *("subprocess", "socket", "urllib", "http", "requests", "httpx", "aiohttp"),
    *("pickle", "marshal", "shelve", "importlib"),
}
FINDS_METHODS = ("core/registry.py", "importlib")
"""The one file that may import by name: it finds the methods' own files in the pack."""
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}


def runtime_files(root: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """(layer, file) of everything that ComfyUI loads; of toy, what its loader needs."""
    yield from (("", path) for path in root.glob("*.py"))
    for folder in sorted({layer.split(".")[0] for layer in BELOW} - {"", "toy"}):
        for path in sorted((root / folder).rglob("*.py")):
            yield room_of(".".join(path.relative_to(root).with_suffix("").parts)), path
    waiting, seen = [root / "toy" / "__init__.py", root / "toy" / "loader.py"], set[pathlib.Path]()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        yield "toy", path
        needed = {name.split(".")[1] for relative, name in imports(path, root) if relative}
        waiting += [root / "toy" / f"{name}.py" for name in needed]


def room_of(module: str) -> str:
    """The room that a module named from the pack's root lies in: the longest one that holds it."""
    held = [room for room in BELOW if room and f"{module}.".startswith(f"{room}.")]
    return max(held, key=len, default=module.split(".")[0])


def imports(path: pathlib.Path, root: pathlib.Path) -> set[tuple[bool, str]]:
    """(relative, name) of every import: what is relative is named from the pack's root."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(False, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((False, node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root).parts[:-1]
            base = [*package[: len(package) - node.level + 1], *filter(None, [node.module])]
            found |= {(True, ".".join([*base, alias.name])) for alias in node.names}
    return found


def violations(root: pathlib.Path) -> list[str]:
    """Every breach of a rule in the tree, as `file: what`."""
    found = []
    for layer, path in runtime_files(root):
        whats = {*_imports(layer, path, root), *_calls(layer, path)}
        found += [f"{path.relative_to(root).as_posix()}: {what}" for what in sorted(whats)]
    return found


def _imports(layer: str, path: pathlib.Path, root: pathlib.Path) -> Iterator[str]:
    for relative, name in imports(path, root):
        room = room_of(name)
        if relative and room != layer and room not in BELOW[layer]:
            yield f"{layer or 'the pack'} imports {room}"
        if not relative and (path.relative_to(root).as_posix(), name) != FINDS_METHODS:
            yield from _absolute(layer.split(".")[0], name.split(".")[0])


def _absolute(layer: str, top: str) -> Iterator[str]:
    if top in NEVER:
        yield f"imports {top}"
    if layer in PURE and top not in sys.stdlib_module_names | {"torch"} | ALSO.get(layer, set()):
        yield f"{layer} imports {top}"
    elif top in FOLDERS | {"pivot_edit"} and (layer, top) not in COMFYUI_TOO:
        yield f"absolute import of {top}"


def _calls(layer: str, path: pathlib.Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in RUNS_TEXT
        ):
            yield f"calls {node.func.id}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in (
            "torch.load",
            "os.system",
            "os.popen",
        ):
            yield f"calls {ast.unparse(node)}"
        if isinstance(node, ast.Assert) and layer.split(".")[0] in ("nodes", "host"):
            yield "asserts"


def test_the_pack_keeps_every_rule() -> None:
    assert violations(ROOT) == []


def test_every_folder_of_the_pack_was_read() -> None:
    read = {layer for layer, _ in runtime_files(ROOT)}
    assert read == set(BELOW)
    assert all((ROOT / folder).is_dir() for folder in FOLDERS)


CLEAN = {
    "__init__.py": "def comfy_entrypoint():\n    from .nodes import Extension\n",
    "core/__init__.py": "",
    "core/words.py": "import torch\nimport math\nimport safetensors.torch\nfrom .errors import "
    "PivotError",
    "core/registry.py": "import importlib\nimport pkgutil",
    "attention/masactrl.py": "from ..core.words import Prompt\nfrom .. import core",
    "features/plug_and_play.py": "from ..core.control import Controller",
    "inversion/__init__.py": "from .ddim import invert",
    "guidance/cfg.py": "import torch.nn\nfrom ..core import words",
    "show/plots.py": "import numpy as np\nfrom PIL import Image\nfrom ..core import errors",
    "host/run/sampling.py": "import comfy.samplers\nimport nodes\n"
    "from ...inversion.ddim import invert\nfrom ..text import prompts",
    "nodes/loaders.py": "from ..toy.loader import load\nfrom comfy_api.latest import io",
    "nodes/attention.py": "from ..core.words import MODES\nfrom ..host.tasks import controls",
    "toy/loader.py": "from .architecture import CONFIG\nmodel.eval()",
    "toy/architecture.py": "import comfy.ops",
    "toy/train.py": "from tools.install import import_comfy\nimport subprocess",
    "tools/server.py": "import subprocess, socket",
}

BREACHES = [
    ("core/words.py", "from ..attention import CONTROLLERS", "core imports attention"),
    ("core/words.py", "from ..host.run.patching import place_of", "core imports host.run"),
    ("core/deep/words.py", "from ...host import patching", "core imports host"),
    ("attention/masactrl.py", "from ..inversion.ddim import invert", "attention imports inversion"),
    ("attention/masactrl.py", "from .. import guidance", "attention imports guidance"),
    ("features/plug_and_play.py", "from ..attention import masactrl", "features imports attention"),
    (
        "inversion/null_text.py",
        "from ..attention import CONTROLLERS",
        "inversion imports attention",
    ),
    ("guidance/cfg.py", "from ..inversion import CORRECTIONS", "guidance imports inversion"),
    (
        "inversion/null_text.py",
        "def f():\n    from ..host.run import guider",
        "inversion imports host.run",
    ),
    ("host/run/sampling.py", "from ...nodes.sockets import CATEGORY", "host.run imports nodes"),
    ("host/run/sampling.py", "from ...toy.loader import load", "host.run imports toy"),
    ("core/words.py", "from ..toy.scenes import Scene", "core imports toy"),
    ("__init__.py", "from .host import patching", "the pack imports host"),
    ("nodes/loaders.py", "from ..tools.client import Client", "nodes imports tools"),
    ("host/run/sampling.py", "from ...tests.conftest import ROOT", "host.run imports tests"),
    ("toy/architecture.py", "from tools.install import import_comfy", "absolute import of tools"),
    ("toy/loader.py", "from ..core.words import Prompt", "toy imports core"),
    ("host/run/sampling.py", "from ..tasks import editing", "host.run imports host.tasks"),
    ("host/run/sampling.py", "from ...show import plots", "host.run imports show"),
    ("host/text/prompts.py", "from ..run.runs import MARK", "host.text imports host.run"),
    ("host/model/checks.py", "from ..text import prompts", "host.model imports host.text"),
    ("show/plots.py", "from ..host.model import checks", "show imports host.model"),
    ("show/plots.py", "import comfy.utils", "show imports comfy"),
    ("host/run/sampling.py", "import tests.conftest", "absolute import of tests"),
    ("host/run/sampling.py", "from core.words import Prompt", "absolute import of core"),
    ("host/run/sampling.py", "import pivot_edit.core", "absolute import of pivot_edit"),
    ("core/words.py", "import comfy.samplers", "core imports comfy"),
    ("attention/masactrl.py", "from comfy.ldm.modules import attention", "attention imports comfy"),
    ("inversion/null_text.py", "import nodes", "inversion imports nodes"),
    ("guidance/cfg.py", "import folder_paths", "guidance imports folder_paths"),
    ("core/words.py", "def f():\n    import comfy_api.latest", "core imports comfy_api"),
    ("core/words.py", "import numpy", "core imports numpy"),
    ("guidance/cfg.py", "import safetensors", "guidance imports safetensors"),
    ("nodes/loaders.py", "def f(x):\n    assert x > 0", "asserts"),
    ("host/run/sampling.py", "def f(x):\n    assert x > 0", "asserts"),
    ("host/run/sampling.py", "eval('1')", "calls eval"),
    ("core/words.py", "exec('x = 1')", "calls exec"),
    ("core/words.py", "__import__('comfy')", "calls __import__"),
    ("core/words.py", "import importlib\nimportlib.import_module('comfy')", "imports importlib"),
    ("attention/masactrl.py", "import importlib", "imports importlib"),
    ("core/registry.py", "import importlib.util", "imports importlib"),
    ("toy/architecture.py", "import torch\ntorch.load('weights.pt')", "calls torch.load"),
    ("host/run/sampling.py", "import os\nos.system('ls')", "calls os.system"),
    *[("host/run/sampling.py", f"import {name}", f"imports {name}") for name in sorted(NEVER)],
    ("toy/loader.py", "from urllib.request import urlopen", "imports urllib"),
    ("__init__.py", "import subprocess", "imports subprocess"),
]


def plant(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


def test_a_clean_tree_passes(tmp_path: pathlib.Path) -> None:
    assert violations(plant(tmp_path, CLEAN)) == []


@pytest.mark.parametrize(("name", "source", "what"), BREACHES)
def test_a_planted_breach_is_found(
    tmp_path: pathlib.Path, name: str, source: str, what: str
) -> None:
    planted = CLEAN.get(name, "") + "\n" + source
    assert violations(plant(tmp_path, {**CLEAN, name: planted})) == [f"{name}: {what}"]
