"""StyleAligned on real UNets: a generated batch, and an inverted picture as the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unets
from pivot_edit.attention import StyleAligned
from pivot_edit.host.tasks.controls import controlled
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.inversion import Ddim
from test_controls import NEGATIVE, SIZE, SOURCE, differ, ksampler, run


@pytest.fixture(scope="module", params=["SD15", "SDXL"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return unets.build(kind, shallow=True)


@pytest.fixture(scope="module")
def texts(kind: str) -> list[Any]:
    return [unets.conditioning(kind, seed) for seed in range(4)]


def test_a_batch_follows_its_first_picture(model, texts) -> None:
    """Any sampler, noise and text of one's own for every picture; the first is as without."""
    styled, note = controlled(model, StyleAligned(weight=2.0))
    assert "self-attention layers" in note
    for sampler in ("euler", "euler_ancestral"):
        given = (texts[SOURCE], texts[NEGATIVE], 3)
        plain = ksampler(model, *given, sampler=sampler)
        shared = ksampler(styled, *given, sampler=sampler)
        assert torch.equal(shared[0], plain[0])
        assert differ(shared[1], plain[1]) and differ(shared[2], plain[2])


def test_layers_by_name_and_a_closed_window(model, texts) -> None:
    given = (texts[SOURCE], texts[NEGATIVE], 2)
    plain = ksampler(model, *given)
    for options in (StyleAligned(layers="none"), StyleAligned(window=(1.0, 1.0))):
        assert torch.equal(ksampler(controlled(model, options)[0], *given), plain)


@pytest.mark.parametrize("correction", ["direct", "none"])
def test_an_inverted_picture_is_the_reference(model, texts, correction) -> None:
    pivot = invert_latent(model, unets.latent(*SIZE), texts[SOURCE], 3, "reference", Ddim(), False)[
        0
    ]
    styled = controlled(model, StyleAligned())[0]
    plain, shared = (run(each, pivot, texts, correction) for each in (model, styled))
    assert differ(shared[0], plain[0])
    torch.testing.assert_close(shared[1], plain[1], rtol=1e-3, atol=1e-2)
    if correction == "direct":
        assert torch.equal(shared[1], plain[1])
