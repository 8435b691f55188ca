"""Every method is found through its registry, says where it comes from, and is described."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pathlib
import pkgutil
import re
from types import ModuleType
from typing import Any

import pytest

from pivot_edit.attention import CONTROLLERS
from pivot_edit.core.control import Controller, Place
from pivot_edit.core.correction import Correction
from pivot_edit.core.guidance import Guidance
from pivot_edit.core.inverter import Inverter
from pivot_edit.guidance import RULES
from pivot_edit.inversion import CORRECTIONS, INVERTERS

ROOT = pathlib.Path(__file__).absolute().parents[2]
METHOD_FOLDERS = ("attention", "inversion", "guidance")
PURE = ("core", *METHOD_FOLDERS)
PAPER = re.compile(r"arXiv\s\d{4}\.\d{4,5}\b")

CONTRACTS = (Controller, Correction, Inverter, Guidance)
METHODS: list[type] = [*CONTROLLERS, *INVERTERS.values(), *CORRECTIONS.values(), *RULES]


def modules(folder: str) -> list[ModuleType]:
    """The method files of a folder."""
    package = importlib.import_module(f"pivot_edit.{folder}")
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def classes(module: ModuleType) -> list[type]:
    """Public classes that a module defines and that fill one of the contracts."""
    return [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and issubclass(value, CONTRACTS)
    ]


@pytest.mark.parametrize(
    ("folder", "registered"),
    [
        ("attention", set(CONTROLLERS)),
        ("inversion", {*INVERTERS.values(), *CORRECTIONS.values()}),
        ("guidance", set(RULES)),
    ],
)
def test_every_file_has_a_method_and_every_method_is_registered(
    folder: str, registered: set[type]
) -> None:
    found = {module.__name__: classes(module) for module in modules(folder)}
    assert found and all(found.values())
    assert {one for each in found.values() for one in each} == registered


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_a_frozen_set_of_options(method: Any) -> None:
    assert dataclasses.is_dataclass(method)
    assert method.__dataclass_params__.frozen


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_what_it_does_and_its_file_names_the_paper(method: type) -> None:
    generated = method.__name__ + "("
    assert method.__doc__ and not method.__doc__.startswith(generated)
    module = importlib.import_module(method.__module__)
    assert PAPER.search(module.__doc__ or "")


@pytest.mark.parametrize("folder", METHOD_FOLDERS)
def test_every_method_file_names_its_paper(folder: str) -> None:
    for module in modules(folder):
        assert PAPER.search(module.__doc__ or ""), module.__name__


def test_names_are_unique() -> None:
    controllers = [controller.__name__ for controller in CONTROLLERS]
    assert len(set(controllers)) == len(controllers)
    for registry in (INVERTERS, CORRECTIONS):
        assert {name: kind.name for name, kind in registry.items()} == {n: n for n in registry}
        assert len({kind.label for kind in registry.values()}) == len(registry)
    files = [
        module.__name__.rsplit(".", 1)[1] for folder in METHOD_FOLDERS for module in modules(folder)
    ]
    assert len(set(files)) == len(files)


@pytest.mark.parametrize("kind", [*INVERTERS.values(), *CORRECTIONS.values()])
def test_a_method_has_a_name_and_a_label(kind: Any) -> None:
    assert re.fullmatch(r"[a-z][a-z_]*", kind.name)
    assert kind.label and "\n" not in kind.label


@pytest.mark.parametrize("kind", CORRECTIONS.values())
def test_a_correction_fills_its_contract(kind: Any) -> None:
    correction, place = kind(), Place(0, 50, 13.0)
    assert correction.uncond("source", place).base in ("negative", "source")
    assert isinstance(correction.pinned, bool)
    assert dataclasses.asdict(correction) == {
        field.name: field.default for field in dataclasses.fields(kind)
    }


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_controller_fills_its_contract(controller: Any) -> None:
    assert callable(controller.__call__) and "__call__" in vars(controller)
    required = [f.name for f in dataclasses.fields(controller) if f.default is dataclasses.MISSING]
    closed = controller(**dict.fromkeys(required))
    assert closed.wants("self", Place(0, 50, 13.0)) in (True, False)


def undescribed(source: str, promised: frozenset[str] = frozenset()) -> list[str]:
    """What is public in a source and has no docstring; `promised` methods are described
    elsewhere."""
    missing = []

    def visit(body: list[ast.stmt], inside: str) -> None:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
                continue
            told = bool(inside) and node.name in promised
            if not told and ast.get_docstring(node) is None:
                missing.append(inside + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{inside}{node.name}.")

    tree = ast.parse(source)
    if ast.get_docstring(tree) is None:
        missing.append("the file")
    visit(tree.body, "")
    return missing


PROMISED = frozenset(
    {
        "wants",
        "after_step",
        "source_after",
        "uncond",
        "pinned",
        "check",
        "remark",
        "step",
        "guide",
        "source_cfg",
        "scale",
        "signal",
        "noise",
        "noised",
        "limit",
    }
)
"""What the contracts in core describe for all who fill them."""


@pytest.mark.parametrize("folder", PURE)
def test_everything_public_is_described(folder: str) -> None:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    assert {
        path.name: missing for path in paths if (missing := undescribed(path.read_text(), PROMISED))
    } == {}


def test_a_missing_description_is_found() -> None:
    source = '"""File."""\ndef f(): ...\nclass A:\n  def g(self): ...\n  def wants(self): ...\n'
    source += "def _h(): ..."
    assert undescribed(source, PROMISED) == ["f", "A", "A.g"]
    assert undescribed("x = 1") == ["the file"]


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_what_is_promised_is_described_by_a_contract(name: str) -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "core").glob("*.py")]
    functions = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    ]
    assert any(node.name == name and ast.get_docstring(node) for node in functions)
