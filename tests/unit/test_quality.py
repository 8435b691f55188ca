"""What says how good an inversion is: figures of known signals, and a verdict for every case."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from reference import noise, sd_sigmas

from pivot_edit.core.path import VP
from pivot_edit.core.quality import (
    AS_GOOD,
    NoiseFigures,
    Quality,
    drift,
    latent_psnr,
    psnr,
    verdict,
)
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.inversion import Direct, NegativePrompt, NullText, Uncorrected

GAUSSIAN = NoiseFigures(0.0, 1.0, 0.0, 0.0)
GOOD = Quality(33.9, 34.0, 33.5, GAUSSIAN)


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
    assert not figures.stiff


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
    assert figures.stiff


def test_a_channels_own_mean_is_no_correlation() -> None:
    shifts = torch.tensor([3.0, -3.0, 1.0, -1.0])[None, :, None, None]
    figures = NoiseFigures.of(noise(5, 1, 4, 64, 64) + shifts)
    assert abs(figures.across) < 0.05 and abs(figures.down) < 0.05


def test_alternating_signs_correlate_by_minus_one() -> None:
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 2.0 - 1.0
    figures = NoiseFigures.of(board[None, None])
    assert (figures.across, figures.down) == pytest.approx((-1.0, -1.0))
    assert figures.stiff


@pytest.mark.parametrize("shape", [(1, 4, 1, 8), (1, 4, 8, 1), (1, 4, 1, 1)])
def test_latents_without_neighbours_have_none(shape: tuple[int, ...]) -> None:
    figures = NoiseFigures.of(noise(6, *shape))
    assert all(math.isfinite(value) for value in dataclasses.astuple(figures))
    assert figures.across == 0.0 or shape[-1] > 1
    assert figures.down == 0.0 or shape[-2] > 1


def test_a_constant_latent_has_finite_figures() -> None:
    assert NoiseFigures.of(torch.ones(1, 4, 8, 8)) == NoiseFigures(1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("figures", "stiff"),
    [
        (NoiseFigures(-0.09, 0.83, 0.04, 0.11), False),
        (NoiseFigures(0.0, 1.0, 0.25, 0.0), True),
        (NoiseFigures(0.0, 1.0, 0.0, -0.25), True),
        (NoiseFigures(0.0, 1.3, 0.0, 0.0), True),
        (NoiseFigures(0.0, 0.67, 0.0, 0.0), True),
        (NoiseFigures(-0.3, 1.0, 0.0, 0.0), True),
    ],
)
def test_each_figure_alone_makes_noise_stiff(figures: NoiseFigures, stiff: bool) -> None:
    assert figures.stiff == stiff


def test_a_good_inversion_is_called_good_and_nothing_else() -> None:
    assert verdict(GOOD, trajectory(), Direct(), 5.0) == [
        "The picture comes back as well as the autoencoder allows."
    ]


@pytest.mark.parametrize(
    ("gap", "how"),
    [
        (0.0, "as well as the autoencoder allows"),
        (-1.0, "as well as the autoencoder allows"),
        (AS_GOOD, "as well as the autoencoder allows"),
        (AS_GOOD + 0.1, "nearly comes back, 0.6 dB below"),
        (3.0, "nearly comes back, 3.0 dB below"),
        (3.2, "does not come back, 3.2 dB below"),
    ],
)
def test_a_return_is_judged_against_the_autoencoder(gap: float, how: str) -> None:
    quality = dataclasses.replace(GOOD, psnr=34.0 - gap, unchanged=34.0 - gap)
    (line,) = verdict(quality, trajectory(), Uncorrected(), 1.0)
    assert how in line


def test_both_infinite_is_as_good_as_can_be() -> None:
    assert Quality(math.inf, math.inf, math.inf, GAUSSIAN).gap == 0.0


BETTER_PROMPT = "a source prompt that describes the picture better."


def bad(pivot: Trajectory, correction: object, cfg: float) -> str:
    quality = Quality(20.0, 34.0, 20.0, GAUSSIAN)
    (line,) = verdict(quality, pivot, correction, cfg)  # type: ignore[arg-type]
    return line.split("Try ")[1]


def test_what_to_try_is_what_was_not_done_yet() -> None:
    direct, steps = "correction direct, which is exact at any cfg", "50 steps"
    fixed, nearer = "the inversion method fixed_point", "a cfg nearer to the inversion's own"
    assert (
        bad(trajectory(10), Uncorrected(), 5.0)
        == f"{direct}; {nearer}, 1; {fixed}; {steps}; {BETTER_PROMPT}"
    )
    assert bad(trajectory(10, guidance=3.0), Uncorrected(), 5.0).startswith(
        f"{direct}; {nearer}, 3; "
    )
    assert bad(trajectory(), Uncorrected(), 1.0) == f"{direct}; {fixed}; {BETTER_PROMPT}"
    assert bad(trajectory(50, "fixed_point"), Uncorrected(), 1.0) == f"{direct}; {BETTER_PROMPT}"
    assert bad(trajectory(50, "fixed_point"), Direct(), 1.0) == BETTER_PROMPT


def test_cfg_is_no_advice_where_guidance_cancels_on_the_source() -> None:
    assert "cfg nearer" not in bad(trajectory(), NegativePrompt(), 5.0)
    assert "cfg nearer" in bad(trajectory(), NegativePrompt(interpolation=0.5), 5.0)
    assert "cfg nearer" in bad(trajectory(), NullText(), 5.0)


@pytest.mark.parametrize(
    ("ceiling", "what"),
    [(24.0, "The autoencoder itself loses detail"), (11.0, "hardly the picture that was inverted")],
)
def test_a_low_ceiling_is_told_first(ceiling: float, what: str) -> None:
    lines = verdict(Quality(ceiling, ceiling, ceiling, GAUSSIAN), trajectory(), Direct(), 5.0)
    assert what in lines[0] and len(lines) == 2


def test_an_edit_that_moves_the_rest_is_told() -> None:
    lines = verdict(dataclasses.replace(GOOD, unchanged=22.5), trajectory(), Direct(), 7.5)
    assert "At cfg 7.5 an edit moves the picture even where no word changes (22.5 dB)" in lines[1]
    assert "P2P Attention Controller or Local Blend" in lines[1]


def test_stiff_noise_is_told_with_what_to_do() -> None:
    stiff = dataclasses.replace(GOOD, noise=NoiseFigures(0.0, 0.67, 0.2, 0.3))
    (_, line) = verdict(stiff, trajectory(10, guidance=7.5), Direct(), 5.0)
    assert line.endswith(f"Invert with cfg 1; 50 steps; {BETTER_PROMPT}")
    (_, line) = verdict(stiff, trajectory(), Direct(), 5.0)
    assert line.endswith(f"Invert with {BETTER_PROMPT}")
