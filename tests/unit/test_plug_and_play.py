"""Plug-and-Play: which blocks and layers, and what a target takes from its source."""

from __future__ import annotations

import pytest
import torch
from calls import plain
from reference import fused, noise

from pivot_edit.core.control import AttentionCall, FeatureCall, Place, Row, Site
from pivot_edit.core.layers import Layer
from pivot_edit.features import PlugAndPlay

ROWS = (Row("source", True), Row("target", True, 0), Row("target", True, 0, 1))
BLOCK = Layer("up", 1, 1, 0, 4)
FIRST, LAST = Place(0, 10, 9.0), Place(9, 10, 0.1)


def test_queries_and_keys_are_the_sources_and_values_stay() -> None:
    """Oracle 35: the source's map on the target's values."""
    q, k, v = (noise(seed, 3, 5, 8) for seed in range(3))
    site = Site("self", BLOCK, 1, 5, (4, 20))
    call = AttentionCall(q, k, v, 2, site, FIRST, ROWS, fused(2))
    out = PlugAndPlay()(call, plain, {})
    same = torch.zeros(3, dtype=torch.long)
    expected = plain(call.replace(q[same], k[same], v))
    assert torch.equal(out, expected)
    assert torch.equal(out[0], plain(call)[0])


def test_features_are_the_sources() -> None:
    x = noise(0, 3, 4, 2, 2)
    call = FeatureCall(x, Site("resnet", BLOCK, 2, 2, (8, 8)), FIRST, ROWS)
    out = PlugAndPlay().feature(call, lambda call: call.x, {})
    assert torch.equal(out, x[:1].expand_as(x))


@pytest.mark.parametrize(
    ("layer", "features", "attention"),
    [
        (Layer("up", 1, 0, 0, 4), False, False),
        (BLOCK, True, True),
        (Layer("up", 1, 2, 0, 4), False, True),
        (Layer("up", 2, 0, 0, 2), False, True),
        (Layer("up", 3, 2, 0, 1), False, True),
        (Layer("up", 0, 1, 0, 8), False, False),
        (Layer("down", 1, 1, 0, 2), False, False),
        (Layer("mid", 0, 0, 0, 8), False, False),
    ],
)
def test_it_is_at_output_block_4_and_attention_of_4_to_11(
    layer: Layer, features: bool, attention: bool
) -> None:
    options = PlugAndPlay()
    assert options.at("resnet", layer, (64, 64)) is features
    assert options.at("self", layer, (64, 64)) is attention


def test_its_windows_end_where_the_paper_says() -> None:
    options = PlugAndPlay()
    at = [Place(step, 50, 1.0) for step in range(50)]
    assert sum(options.wants("resnet", place) for place in at) == 40
    assert sum(options.wants("self", place) for place in at) == 25
    assert not any(options.wants(kind, place) for kind in ("cross", "block") for place in at)
    assert [options.reads(place) for place in (at[0], at[39], at[40])] == [
        "both",
        "both",
        "nothing",
    ]


def test_closed_windows_hand_on_what_came() -> None:
    closed = PlugAndPlay(0.0, 0.0)
    assert not closed.wants("resnet", FIRST) and not closed.wants("self", FIRST)
    x = noise(0, 3, 4, 2, 2)
    call = FeatureCall(x, Site("resnet", BLOCK, 2, 2, (8, 8)), LAST, ROWS)
    assert PlugAndPlay().feature(call, lambda call: call.x, {}) is x
