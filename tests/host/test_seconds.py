"""Seconds of every method, on small UNets and the CPU: all methods run, and run the rows that they
should; and the speed bench's figures of null-text."""

from __future__ import annotations

import dataclasses
import gc
import json
import pathlib
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import seconds, speed
from bench.methods import ATTENTION, METHODS
from pivot_edit.core.errors import PivotError
from pivot_edit.inversion import null_text

pytestmark = pytest.mark.once("oldest")
STEPS = 5  # the last one is behind P2P's windows
KEYS = ("model", "size", "dtype", "device", "torch", "comfyui", "method", "steps")
SD15, SDXL = seconds.SETTINGS["small"]


@pytest.fixture(scope="module", params=[(SD15, STEPS), (SDXL, 2)], ids=["SD15", "SDXL"])
def rows(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, seconds.Row]:
    """The rows of a model by method, as they were written."""
    path = tmp_path_factory.mktemp("bench") / "deep" / "seconds.json"
    made = seconds.write([request.param[0]], request.param[1], 1, path)
    assert json.loads(path.read_text()) == made
    return {row["method"]: row for row in made}


def of(rows: dict[str, seconds.Row], name: str) -> seconds.Row:
    """The row of the method whose name begins so."""
    (row,) = (row for method, row in rows.items() if method.startswith(name))
    return row


@pytest.mark.slow
def test_every_method_has_its_figures(rows: dict[str, seconds.Row]) -> None:
    attentions = [one for one in ATTENTION.values() if one.apply]
    inverters = {(one.inverter, one.matched) for one in METHODS.values()}
    corrections = {one.correction for one in METHODS.values()}
    edits = len(corrections) + len(attentions) - 1  # P2P under all of them, others under direct
    assert len(rows) == 1 + len(inverters) + edits + 2  # plain sampling; two optimisations
    for row in rows.values():
        assert all(row[key] for key in KEYS)
        assert row["seconds"] > 0.0 and row["peak_gib"] > 0.0
        assert row["comfyui"] in row["device"] and row["torch"] in row["device"]
    optimized = [row["note"] for method, row in rows.items() if "optimisation" in method]
    assert len(optimized) == 2 and all("checkpointing" in note for note in optimized)


@pytest.mark.slow
def test_methods_run_the_rows_that_they_should(rows: dict[str, seconds.Row]) -> None:
    steps = of(rows, "plain")["steps"]
    closed = steps == STEPS  # whether there is a step behind the windows
    expected = {
        "plain": 2 * steps,
        "ddim": steps,
        "P2P edit, direct": 3 * steps - closed,
        "P2P edit, negative_prompt": 3 * steps,
        "P2P edit, null_text": 4 * steps,
        "P2P edit, none": 4 * steps,
        "MasaCtrl": 4 * steps,
    }
    assert {name: of(rows, name)["rows"] for name in expected} == expected
    assert all(of(rows, name)["backward_rows"] == 0 for name in (*expected, "fixed"))


@pytest.mark.slow
def test_methods_that_stop_early_stay_within_their_bounds(rows: dict[str, seconds.Row]) -> None:
    steps = of(rows, "plain")["steps"]
    fixed, fast, reference = (
        of(rows, name) for name in ("fixed", "null_text fast", "null_text reference")
    )
    assert 4 * steps <= fixed["rows"] <= 12 * steps
    assert fast["backward_rows"] == steps and 2 * steps <= fast["rows"] <= 3 * steps
    assert steps < reference["backward_rows"] <= 10 * steps
    assert reference["rows"] == 2 * steps + reference["backward_rows"]


@pytest.mark.slow
def test_gradients_need_memory_beside_the_weights(rows: dict[str, seconds.Row]) -> None:
    plain, optimized = of(rows, "ddim")["peak_gib"], of(rows, "null_text fast")["peak_gib"]
    assert plain < optimized < 3 * plain


class Fake:
    """What stands for a picture on a model."""

    setting = SD15

    def __init__(self, *settings: Any) -> None: ...


def test_a_method_that_fails_leaves_the_others_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*call: Any) -> seconds.Row:
        raise PivotError("a finite latent", "NaN", "Nothing.", "here")

    def short(*call: Any) -> seconds.Row:
        raise torch.OutOfMemoryError("out of memory")

    def fine(*call: Any) -> seconds.Row:
        return {"seconds": 1.0, "note": ""}

    def measured(picture: Any, call: Callable[[], Any], turns: int) -> seconds.Row:
        return call()

    monkeypatch.setattr(seconds, "Picture", Fake)
    monkeypatch.setattr(seconds, "measured", measured)
    monkeypatch.setattr(seconds, "methods", lambda picture: {"a": refused, "b": short, "c": fine})
    made = list(seconds.rows_of(SD15, 2, 1))
    assert [row["method"] for row in made] == ["a", "b", "c"]
    assert [row["seconds"] for row in made] == [None, None, 1.0]
    assert "NaN" in made[0]["note"] and "out of memory" in made[1]["note"]


def test_a_model_is_gone_before_the_next_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else SDXL's peak would hold SD1.5's weights."""
    kept: list[Any] = []

    class Kept(seconds.Picture):
        def __init__(self, *settings: Any) -> None:
            assert not any(old() for old in kept)
            super().__init__(*settings)
            kept.append(weakref.ref(self.model.model))
            self.itself = self  # a cycle, as objects of the host make them

    monkeypatch.setattr(seconds, "Picture", Kept)
    monkeypatch.setattr(
        seconds, "methods", lambda picture: {"a": lambda: picture.optimized("fast")}
    )
    gc.disable()  # by itself it would come at any time
    try:
        for _ in range(2):
            assert [row["method"] for row in seconds.rows_of(SD15, 1, 1)] == ["a"]
    finally:
        gc.enable()
    assert len(kept) == 2


def test_null_texts_passes_are_measured_by_the_hosts_code() -> None:
    """Gradients cost more than a prediction, checkpointing saves most of their memory, and the
    solvers stay as they were."""
    before = dict(null_text.SOLVERS)
    time_, memory = speed.pass_figures(dataclasses.replace(SD15, turns=3))
    assert (
        time_["value"] > 1.2 and time_["target"] is None and "checkpointing" in time_["reference"]
    )
    assert 0.0 < memory["value"] < 0.6 and "MiB" in memory["reference"]
    assert null_text.SOLVERS == before


def test_null_texts_rows_are_counted_beyond_the_inversion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "COUNTED_STEPS", 2)
    rows = speed.optimization_rows()
    assert 2 * 3 <= rows["fast"] <= 2 * 4
    assert 2 * 4 <= rows["reference"] <= 2 * 22


def test_a_device_is_named_with_its_versions() -> None:
    import comfyui_version

    named = speed.versioned("a GPU")
    assert named == f"a GPU, torch {torch.__version__}, ComfyUI {comfyui_version.__version__}"
    assert pathlib.Path(comfyui_version.__file__).parent.joinpath("comfy").is_dir()
