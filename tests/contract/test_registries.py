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

from pivot_edit import attention, features
from pivot_edit.core.control import ControlOptions, Place
from pivot_edit.core.correction import Correction
from pivot_edit.core.errors import PivotError
from pivot_edit.core.guidance import Guidance
from pivot_edit.core.inverter import Inverter
from pivot_edit.core.options import NodeText, defaults, from_inputs, options_of
from pivot_edit.core.registry import discover
from pivot_edit.core.stepper import StepRule
from pivot_edit.guidance import RULES
from pivot_edit.inversion import CORRECTIONS, INVERTERS, STEPPERS

ROOT = pathlib.Path(__file__).absolute().parents[2]
METHOD_FOLDERS = ("attention", "features", "inversion", "guidance")
PURE = ("core", *METHOD_FOLDERS)
PAPER = re.compile(r"arXiv\s\d{4}\.\d{4,5}\b")

CONTRACTS = (ControlOptions, Correction, Inverter, Guidance, StepRule)
CONTROLLERS = [*attention.CONTROLLERS, *features.CONTROLLERS]
OPTIONS = [*attention.OPTIONS, *features.OPTIONS]
NAMED = (INVERTERS, CORRECTIONS, STEPPERS)
KINDS: list[Any] = [kind for registry in NAMED for kind in registry.values()]
METHODS: list[Any] = [*OPTIONS, *KINDS, *RULES]


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
        ("attention", set(attention.OPTIONS)),
        ("features", set(features.OPTIONS)),
        ("inversion", set(KINDS)),
        ("guidance", set(RULES)),
    ],
)
def test_every_file_has_a_method_and_every_method_is_registered(
    folder: str, registered: set[type]
) -> None:
    found = {module.__name__: classes(module) for module in modules(folder)}
    assert all(found.values()) and (found or folder == "features")
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
    for registry in NAMED:
        assert {name: kind.name for name, kind in registry.items()} == {n: n for n in registry}
        assert len({kind.label for kind in registry.values()}) == len(registry)
    files = [
        module.__name__.rsplit(".", 1)[1] for folder in METHOD_FOLDERS for module in modules(folder)
    ]
    assert len(set(files)) == len(files)


@pytest.mark.parametrize("kind", KINDS)
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


# options


@pytest.mark.parametrize("method", METHODS)
def test_every_option_explains_itself_and_its_default_is_allowed(method: Any) -> None:
    names = [option.name for option in options_of(method)]
    assert len(set(names)) == len(names)
    for option in options_of(method):
        assert option.tooltip.endswith(".") and option.low < option.high
        if option.kind in ("number", "integer") and option.default is not None:
            assert option.low <= option.default <= option.high
        if option.kind == "choice":
            assert option.default in option.names
    assert set(defaults(method)) <= set(names)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_that_are_none_or_out_of_range_are_refused_by_name(method: Any) -> None:
    """As they come through links, which ComfyUI does not compare with a node's ranges."""
    required = [f.name for f in dataclasses.fields(method) if f.default is dataclasses.MISSING]
    for option in options_of(method):
        if option.kind not in ("number", "integer"):
            continue
        for value in (float("nan"), float("inf"), option.low - 1, option.high + 1, "1", True):
            inputs = {**dict.fromkeys(required, ()), option.name: value}
            message = rf"Expected .*{option.name}.* in {method.where()}"
            with pytest.raises(PivotError, match=message):
                from_inputs(method, inputs)


def test_ids_of_nodes_are_unique_and_well_formed() -> None:
    texts: list[NodeText] = [kind.node for kind in METHODS if vars(kind).get("node")]
    assert texts and len({text.id for text in texts}) == len(texts)
    for text in texts:
        assert re.fullmatch(r"Pivot[A-Za-z0-9]+", text.id)
        assert text.display_name and text.description.endswith(".") and text.search_aliases


def test_a_registry_holds_what_files_define_in_the_order_of_its_names() -> None:
    names = [kind.__name__ for kind in discover("pivot_edit.inversion", Correction)]
    assert names == ["Direct", "NegativePrompt", "NullText", "Uncorrected"]
    assert discover("pivot_edit.features", Correction) == ()


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
        "feature",
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
