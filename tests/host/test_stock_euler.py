"""SamplerCustomAdvanced with the Edit Guider: the stock euler is the replay itself, and one
correction counts."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import pytest
import torch

import unets
from pivot_edit.core.errors import PivotError
from pivot_edit.host.tasks.editing import edit_guider
from pivot_edit.host.tasks.inversion import InversionParts, invert_latent
from pivot_edit.inversion import Ddim
from test_controls import CFG, NEGATIVE, SIZE, SOURCE, TARGET, blend, masa, p2p, run


@pytest.fixture(scope="module")
def model() -> Any:
    return unets.build("SD15", shallow=True)


@pytest.fixture(scope="module")
def texts() -> list[Any]:
    return [unets.conditioning("SD15", seed) for seed in range(4)]


@pytest.fixture(scope="module", params=["reference", "host"])
def pivot(model: Any, texts: list[Any], request: pytest.FixtureRequest) -> Any:
    with torch.inference_mode():
        return invert_latent(
            model, unets.latent(*SIZE), texts[SOURCE], 4, request.param, Ddim(), False
        )[0]


def sampled(
    model: Any,
    pivot: Any,
    texts: list[Any],
    guider: str = "auto",
    parts: str = "auto",
    sampler: str = "euler",
    noise: Any = None,
) -> torch.Tensor:
    """What SamplerCustomAdvanced gives; noise: of these parts, where none is given."""
    editing = edit_guider(model, pivot, texts[SOURCE], texts[TARGET], texts[NEGATIVE], CFG, guider)
    pieces = InversionParts.of(model, pivot, parts)
    given = pieces.noise.generate_noise(pieces.latent) if noise is None else noise
    chosen = pieces.sampler if sampler == "parts" else comfy.samplers.sampler_object(sampler)
    return editing.sample(given, pieces.latent["samples"], chosen, pieces.sigmas, seed=0)


@pytest.mark.parametrize("correction", ["direct", "negative_prompt", "none"])
@pytest.mark.parametrize("control", [lambda model: model, p2p, masa, blend])
def test_stock_euler_is_the_edit_sampler_bit_for_bit(
    model, pivot, texts, control, correction
) -> None:
    """It was 1.0004 times the edit, which is what the last level scales by."""
    edited, back, *_ = run(control(model), pivot, texts, correction)
    for sampler in ("euler", "parts"):
        samples = sampled(control(model), pivot, texts, correction, sampler=sampler)
        assert torch.equal(samples, torch.cat([back, edited]))


@pytest.mark.parametrize("kind", ["random", "none"])
def test_other_noise_is_refused(model, pivot, texts, kind) -> None:
    """The picture would come back all the same, because it is pinned, and the edit be wrong."""
    latent = InversionParts.of(model, pivot, "auto").latent["samples"]
    noise = torch.randn(latent.shape) if kind == "random" else torch.zeros_like(latent)
    with pytest.raises(PivotError, match="inversion's own noise.*noise output of Inversion Parts"):
        sampled(model, pivot, texts, noise=noise)
    if kind == "random":
        with pytest.raises(PivotError, match="inversion's own noise"):
            sampled(model, pivot, texts, sampler="parts", noise=noise)


def test_the_parts_correction_is_honoured(model, pivot, texts) -> None:
    """On either node; one that is set to auto follows the other."""
    edits = {
        name: sampled(model, pivot, texts, guider=name) for name in ("none", "negative_prompt")
    }
    for name, edited in edits.items():
        assert torch.equal(sampled(model, pivot, texts, parts=name, sampler="parts"), edited)
    assert not torch.equal(*edits.values())
    assert torch.equal(
        sampled(model, pivot, texts, sampler="parts"), sampled(model, pivot, texts, "direct")
    )


def test_two_corrections_are_refused(model, pivot, texts) -> None:
    with pytest.raises(PivotError, match="one correction on Edit Guider and Inversion Parts"):
        sampled(model, pivot, texts, "direct", "none", "parts")


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m", "heun", "uni_pc"])
def test_other_samplers_are_refused_by_name(model, pivot, texts, sampler) -> None:
    with pytest.raises(PivotError, match="Inversion Parts sampler or euler"):
        sampled(model, pivot, texts, sampler=sampler)


def test_a_plain_guider_takes_no_correction_that_needs_texts(model, pivot, texts) -> None:
    pieces = InversionParts.of(model, pivot, "negative_prompt")
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(texts[SOURCE], texts[NEGATIVE])
    guider.set_cfg(CFG)
    latent = pieces.latent["samples"]
    with pytest.raises(PivotError, match="direct or none, under a plain guider"):
        guider.sample(torch.zeros_like(latent), latent, pieces.sampler, pieces.sigmas, seed=0)
