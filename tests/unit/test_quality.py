"""What says how good an inversion is: figures of known signals."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from reference import noise, sd_sigmas

from pivot_edit.core.path import VP
from pivot_edit.core.quality import (
    NoiseFigures,
    PromptFigures,
    Quality,
    drift,
    head_start,
    latent_psnr,
    picture_share,
    psnr,
)
from pivot_edit.core.trajectory import Trajectory

GAUSSIAN = NoiseFigures(0.0, 1.0, 0.0, 0.0)


def trajectory(steps: int = 50, method: str = "ddim", guidance: float = 1.0) -> Trajectory:
    latents = noise(0, steps + 1, 2, 4, 3, 5).float()
    return Trajectory(
        VP.levels(sd_sigmas(), steps), latents, method, "a model", "a text", guidance=guidance
    )


def test_psnr_of_a_known_error() -> None:
    reference = torch.zeros(1, 4, 4, 3)
    assert psnr(reference + 0.1, reference) == pytest.approx(20.0)
    assert psnr(reference + 0.1, reference, 2.0) == pytest.approx(20.0 + 20.0 * math.log10(2.0))
    assert psnr(reference, reference) == math.inf


def test_the_peak_of_a_latent_is_its_reference_range() -> None:
    reference = torch.tensor([-1.0, 3.0])
    assert latent_psnr(reference + 0.4, reference) == pytest.approx(20.0)
    assert latent_psnr(reference, reference) == math.inf
    assert latent_psnr(torch.ones(2), torch.zeros(2)) < 0.0


def test_drift_is_measured_at_the_level_each_step_ends_at() -> None:
    pivot = trajectory(3)
    replayed = [pivot.latents[2] + 0.1, pivot.latents[1] - 0.2, pivot.latents[0]]
    assert drift(replayed, pivot) == pytest.approx([0.01, 0.04, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="longer"):
        drift(replayed[:2], pivot)


def test_gaussian_noise_has_gaussian_figures() -> None:
    figures = NoiseFigures.of(noise(3, 2, 4, 64, 64).float())
    assert figures.mean == pytest.approx(0.0, abs=0.02) and figures.std == pytest.approx(
        1.0, abs=0.02
    )
    assert figures.across == pytest.approx(0.0, abs=0.02) and figures.down == pytest.approx(
        0.0, abs=0.02
    )


def test_mean_and_deviation_are_seen() -> None:
    figures = NoiseFigures.of(noise(3, 1, 4, 64, 64) * 1.5 + 0.5)
    assert figures.mean == pytest.approx(0.5, abs=0.05) and figures.std == pytest.approx(
        1.5, abs=0.05
    )


@pytest.mark.parametrize("dim", [-1, -2])
def test_neighbours_are_seen_in_their_own_direction(dim: int) -> None:
    """The mean of two neighbours correlates with the next mean by a half."""
    x = noise(4, 2, 4, 128, 128)
    smooth = (x + x.roll(1, dim)) / 2**0.5
    figures = NoiseFigures.of(smooth)
    along, beside = (figures.across, figures.down) if dim == -1 else (figures.down, figures.across)
    assert along == pytest.approx(0.5, abs=0.03) and beside == pytest.approx(0.0, abs=0.03)


def test_a_channels_own_mean_is_no_correlation() -> None:
    shifts = torch.tensor([3.0, -3.0, 1.0, -1.0])[None, :, None, None]
    figures = NoiseFigures.of(noise(5, 1, 4, 64, 64) + shifts)
    assert abs(figures.across) < 0.05 and abs(figures.down) < 0.05


def test_alternating_signs_correlate_by_minus_one() -> None:
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1.0
    figures = NoiseFigures.of(board[None, None])
    assert (figures.across, figures.down) == pytest.approx((-1.0, -1.0))


@pytest.mark.parametrize("shape", [(1, 4, 1, 8), (1, 4, 8, 1), (1, 4, 1, 1)])
def test_latents_without_neighbours_have_none(shape: tuple[int, ...]) -> None:
    figures = NoiseFigures.of(noise(6, *shape))
    assert all(math.isfinite(value) for value in dataclasses.astuple(figures))
    assert figures.across == 0.0 or shape[-1] > 1
    assert figures.down == 0.0 or shape[-2] > 1


def test_a_constant_latent_has_finite_figures() -> None:
    assert NoiseFigures.of(torch.ones(1, 4, 8, 8)) == NoiseFigures(1.0, 0.0, 0.0, 0.0)


def test_a_share_of_the_picture_is_found_in_noise_whatever_its_scale() -> None:
    picture, white = noise(8, 2, 4, 64, 64), noise(9, 2, 4, 64, 64)
    assert picture_share(white, picture) == pytest.approx(0.0, abs=0.01)
    assert picture_share(0.01 * picture + 5.0, picture) == pytest.approx(1.0)
    mixed = 3.0**0.5 * white + picture
    assert picture_share(mixed, 7.0 * picture) == pytest.approx(0.25, abs=0.02)
    assert picture_share(-mixed, picture) == pytest.approx(0.25, abs=0.02)
    assert picture_share(white, torch.ones_like(white)) == 0.0


def test_an_edits_head_start_is_the_picture_over_its_noise_at_the_first_level() -> None:
    pivot = trajectory()
    picture, sigma = float(pivot.latents[0].std(correction=0)), float(pivot.sigmas[-1])
    assert head_start(pivot) == pytest.approx(picture / sigma, rel=1e-3) and sigma > 10.0
    assert head_start(trajectory(1)) > 20.0


def test_a_prompts_errors_are_compared_level_by_level() -> None:
    source = torch.tensor([[1.0, 4.0], [2.0, 8.0]])
    figures = PromptFigures.of(source, torch.tensor([[2.0, 2.0], [1.0, 1.0]]))
    assert figures.ratios == pytest.approx((1.0, 4.0)) and figures.ratio == pytest.approx(2.0)
    assert PromptFigures.of(source, source).ratio == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("ratios", "sure"),
    [
        ((2.0, 1.8, 2.2, 1.9), True),
        ((0.5, 0.55, 0.45), True),
        ((2.0, 0.5, 1.9, 0.6), False),
        ((1.0, 1.0, 1.0), False),
        ((3.0,), False),
    ],
)
def test_levels_must_agree_before_a_prompt_is_judged(ratios: tuple[float, ...], sure: bool) -> None:
    assert PromptFigures(ratios).sure == sure


def test_both_infinite_is_as_good_as_can_be() -> None:
    whole = Quality(math.inf, math.inf, math.inf, math.inf, GAUSSIAN, 0.0, 0.0)
    assert whole.gap == whole.foreign == 0.0
