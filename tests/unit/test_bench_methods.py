"""One entry makes a method known to every bench."""

from __future__ import annotations

import types
from typing import Any

import pytest

from bench import inversion, quality, seconds, speed
from bench.graphs import edit_graph, prepare_rows
from bench.methods import (
    ATTENTION,
    CONTROLS,
    EDITS,
    METHODS,
    UNCORRECTED,
    Attention,
    Case,
    Control,
    Method,
    Settings,
    node,
)
from bench.pie.__main__ import parser
from tools.pack import part

CASE = Case("a.png", "a red cat", "a blue cat")
NAME = "made_up"


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method and a control that nobody else knows of."""
    monkeypatch.setitem(METHODS, NAME, Method("direct", inverter="fixed_point"))
    attention = Attention("Made Up", lambda case, settings: node("MadeUp", x=1), lambda *call: call)
    monkeypatch.setitem(ATTENTION, NAME, attention)
    monkeypatch.setitem(CONTROLS, NAME, Control((NAME,)))


def test_a_new_entry_has_its_graph(entries: None) -> None:
    graph = edit_graph(CASE, NAME, {NAME: Settings()})
    assert graph["inversion"]["inputs"]["method"] == "fixed_point"
    assert graph[f"{NAME}.{NAME}"] == node("MadeUp", model=["model", 0], x=1)
    assert graph[f"{NAME}.edit"]["inputs"]["model"] == [f"{NAME}.{NAME}", 0]
    assert graph[f"{NAME}.edit"]["inputs"]["correction"] == "direct"
    assert prepare_rows(NAME, 10) == 10 * (1 + part("inversion").FixedPoint.iterations)


def test_a_new_entry_can_be_chosen_on_every_command_line(entries: None) -> None:
    chosen = parser().parse_args(["folder", "--method", NAME, "--control", NAME])
    assert (chosen.method, chosen.control) == (NAME, NAME)
    plan = quality.plan(quality.options(["--per-kind", "1", "--methods", NAME]))
    assert {job.method for jobs in plan for job in jobs} == {NAME, "autoencoder"}


def test_a_new_entry_is_run_in_process(entries: None) -> None:
    assert [way.name for way in inversion.ways() if way.name == NAME] == [NAME]
    assert speed.alone()["Made Up"][0] is ATTENTION[NAME]
    done: list[Any] = []
    picture: Any = types.SimpleNamespace(
        sampled=print,
        inverted=lambda *call: done.append(call),
        optimized=print,
        edited=lambda *call: done.append(call),
    )
    calls = seconds.methods(picture)
    calls["fixed_point inversion"]()
    calls["Made Up edit, direct"]()
    assert done == [("fixed_point", 1.0), (ATTENTION[NAME], "direct")]


def test_costly_methods_have_their_like_beside_them() -> None:
    few = [way.name for way in inversion.ways() if way.few]
    assert few == ["null_text_fast", "null_text_reference"]
    assert [way.name for way in inversion.ways() if not way.few] == [
        name for name in METHODS if name != "null_text_reference"
    ]


def test_what_is_compared_leaves_out_what_is_not_an_edit_of_its_own() -> None:
    assert EDITS == ("none", "p2p", "p2p_blend", "proxnpi", "masactrl", "proxmasactrl")
    assert METHODS[UNCORRECTED].correction == "none" and not METHODS[UNCORRECTED].matched


def test_every_inverter_and_correction_of_the_pack_is_in_some_method() -> None:
    kinds = part("inversion")
    assert {method.inverter for method in METHODS.values()} == set(kinds.INVERTERS)
    assert {method.correction for method in METHODS.values()} == set(kinds.CORRECTIONS)


def test_a_matched_method_is_inverted_at_the_cfg_of_its_edit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr("bench.methods.inverted", lambda *call: asked.append(call))
    for name in ("direct", "fixed_point"):
        METHODS[name].prepared("model", "latent", "source", "negative", 7, 3.0)
    assert asked == [
        ("model", "latent", "source", 7, "ddim", "negative", 1.0),
        ("model", "latent", "source", 7, "fixed_point", "negative", 3.0),
    ]
