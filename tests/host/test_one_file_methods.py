"""A method of each family is one file: it is found and is a working node, and goes with its file.

The files of `one_file/` are made-up methods. They are laid into a copy of the pack, which ComfyUI's
own classes load under another name.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import unets
from tools.pack import PARTS, ROOT

FILES = pathlib.Path(__file__).parent / "one_file"
METHODS = sorted(path.relative_to(FILES).as_posix() for path in FILES.rglob("*.py"))
NODES = {"PivotMute", "PivotDim", "PivotLeash", "PivotLate", "PivotModest"}
STEPS, CFG = 4, 3.0
_numbers = itertools.count()


def copied(folder: pathlib.Path, methods: list[str]) -> pathlib.Path:
    """A copy of the pack's code with some of the methods in it."""
    for part in PARTS:
        for path in (ROOT / part).rglob("*.py"):
            place = folder / path.relative_to(ROOT)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    shutil.copy(ROOT / "__init__.py", folder)
    for method in methods:
        shutil.copy(FILES / method, folder / method)
    return folder


def loaded(folder: pathlib.Path) -> dict[str, Any]:
    """The node classes of a copy by their ids, loaded as ComfyUI loads a pack, under a name with
    the path in it."""
    name = f"{folder}_x_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    nodes = importlib.import_module(f"{name}.nodes").NODES
    for node in nodes:
        node.GET_SCHEMA()  # where the host refuses what it cannot show
        assert node.GET_NODE_INFO_V1()["input"]
    return {node.define_schema().node_id: node for node in nodes}


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Modules of copies do not outlive this file's tests."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "_x_" in name:
            del sys.modules[name]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The nodes of a copy that has all of the methods."""
    return loaded(copied(tmp_path_factory.mktemp("pack"), METHODS))


@pytest.fixture(scope="module")
def model() -> Any:
    return unets.build("SD15")


SOURCE, TARGET, NEGATIVE = (unets.conditioning("SD15", seed) for seed in range(3))


def inputs_of(node: Any) -> list[str]:
    return [entry.id for entry in node.define_schema().inputs]


def inverted(nodes: dict[str, Any], model: Any, **options: Any) -> Any:
    """An inversion by the node."""
    options = {"evaluation": "reference", "check_reconstruction": False, **options}
    node = nodes["PivotDDIMInversion"]
    return node.execute(
        model, unets.latent(), SOURCE, steps=STEPS, levels="reference", **options
    ).args[0]


def edited(
    nodes: dict[str, Any], model: Any, inversion: Any, cfg: float = CFG, **options: Any
) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Edit, reconstruction and report of the Edit Sampler."""
    texts = {"source": SOURCE, "target": TARGET, "negative": NEGATIVE}
    options = {"correction": "auto", **options}
    result = nodes["PivotEditSampler"].execute(model, inversion, **texts, cfg=cfg, **options).args
    return result[0]["samples"], result[1]["samples"], result[2]


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() > 1e-3)


def test_a_controller_is_one_file(nodes, model) -> None:
    node, pivot = nodes["PivotMute"], inverted(nodes, model)
    assert inputs_of(node) == ["model", "strength", "start", "end"]
    plain = edited(nodes, model, pivot)
    values = {"strength": 0.5, "start": 0.0, "end": 1.0}
    muted = edited(nodes, node.execute(model, **values).args[0], pivot)
    assert differ(muted[0], plain[0]) and torch.equal(muted[1], plain[1])
    for idle in ({"strength": 0.0}, {"end": 0.0}):
        quiet = node.execute(model, **{**values, **idle}).args[0]
        torch.testing.assert_close(edited(nodes, quiet, pivot)[0], plain[0])
    with pytest.raises(ValueError, match="strength between 0 and 1, but got nan in Mute"):
        node.execute(model, **{**values, "strength": float("nan")})


def test_a_controller_of_features_is_one_file(nodes, model) -> None:
    node, pivot = nodes["PivotDim"], inverted(nodes, model)
    assert inputs_of(node) == ["model", "strength", "mask", "reference"]
    assert [output.display_name for output in node.define_schema().outputs] == ["MODEL", "what"]
    plain = edited(nodes, model, pivot)
    patched, note = node.execute(model, strength=0.5).args
    dimmed = edited(nodes, patched, pivot)
    assert note == "1/8"
    assert differ(dimmed[0], plain[0]) and torch.equal(dimmed[1], plain[1])
    whole = edited(nodes, node.execute(model, strength=1.0).args[0], pivot)[0]
    for socket in ({"mask": torch.ones(1, 8, 8)}, {"reference": pivot}):
        patched = node.execute(model, strength=0.5, **socket).args[0]
        assert torch.equal(edited(nodes, patched, pivot)[0], whole)


def test_an_inversion_method_is_one_file(nodes, model) -> None:
    schema = nodes["PivotDDIMInversion"].define_schema()
    (menu,) = [entry for entry in schema.inputs if entry.id == "method"]
    assert menu.options == ["ddim", "fixed_point", "hasty", "uni", "auto"]
    assert "hasty: a part" in menu.tooltip
    assert schema.inputs[-1].id == "haste" and schema.inputs[-1].optional
    ddim = inverted(nodes, model)
    full, half = (inverted(nodes, model, method="hasty", haste=each) for each in (0.0, 0.5))
    torch.testing.assert_close(full.latents, ddim.latents)
    assert half.method == "hasty" and differ(half.latents, ddim.latents)
    default = inverted(nodes, model, method="hasty")
    assert torch.equal(default.latents, half.latents)
    assert differ(edited(nodes, model, half)[0], edited(nodes, model, ddim)[0])


def test_a_correction_is_one_file(nodes, model) -> None:
    node, pivot = nodes["PivotLeash"], inverted(nodes, model)
    (menu,) = [e for e in nodes["PivotEditSampler"].define_schema().inputs if e.id == "correction"]
    assert "leash" in menu.options
    tight, loose = (node.execute(pivot, pull=pull).args[0] for pull in (1.0, 0.0))
    picture = edited(nodes, model, pivot, correction="direct")[1]
    held = edited(nodes, model, tight)
    assert torch.equal(held[1], picture) and ", leash," in held[2]
    drifted = edited(nodes, model, loose)[1]
    assert torch.equal(drifted, edited(nodes, model, pivot, correction="none")[1])
    assert differ(drifted, picture)


def test_a_step_rule_is_one_file(nodes, model) -> None:
    node, pivot = nodes["PivotLate"], inverted(nodes, model)
    assert inputs_of(node) == ["inversion", "skipped"]
    plain = edited(nodes, model, pivot)
    whole, late = (node.execute(pivot, skipped=skipped).args[0] for skipped in (0, 2))
    assert torch.equal(edited(nodes, model, whole)[0], plain[0])
    started = edited(nodes, model, late)
    assert differ(started[0], plain[0]) and torch.equal(started[1], plain[1])


def test_a_guidance_rule_is_one_file(nodes, model) -> None:
    node, pivot = nodes["PivotModest"], inverted(nodes, model)
    assert inputs_of(node) == ["share", "instead"]
    plain = edited(nodes, model, pivot)
    rules = [node.execute(share=share, instead=0.0).args[0] for share in (1.0, 0.5)]
    whole, half = (edited(nodes, model, pivot, guidance=rule) for rule in rules)
    assert torch.equal(whole[0], plain[0]) and differ(half[0], plain[0])
    at_half = edited(nodes, model, pivot, cfg=(1.0 + CFG) / 2.0)
    torch.testing.assert_close(half[0], at_half[0])
    rule = node.execute(share=0.0, instead=CFG).args[0]
    assert torch.equal(edited(nodes, model, pivot, guidance=rule)[0], plain[0])


def test_without_its_file_a_method_is_gone(nodes, tmp_path: pathlib.Path) -> None:
    folder = copied(tmp_path, METHODS)
    for method in METHODS:
        (folder / method).unlink()
    left = loaded(folder)
    assert set(nodes) - set(left) == NODES
    (menu,) = [e for e in left["PivotDDIMInversion"].define_schema().inputs if e.id == "method"]
    assert menu.options == ["ddim", "fixed_point", "uni", "auto"]
    assert inputs_of(left["PivotDDIMInversion"])[-1] == "negative"
    (menu,) = [e for e in left["PivotEditSampler"].define_schema().inputs if e.id == "correction"]
    assert "leash" not in menu.options


def test_two_methods_of_one_id_are_refused(tmp_path: pathlib.Path) -> None:
    folder = copied(tmp_path, ["attention/mute.py"])
    text = (folder / "attention" / "mute.py").read_text()
    (folder / "attention" / "mute_again.py").write_text(text)
    with pytest.raises(ValueError, match="PivotMute twice in .*mute_again"):
        loaded(folder)
