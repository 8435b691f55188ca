"""What makes the source row come back: each correction in a two-row replay over an analytic denoiser."""

from __future__ import annotations

import pytest
import torch
from reference import gaussian, noise, sd_sigmas

from pivot_edit.core.attention import Place
from pivot_edit.core.correction import Correction
from pivot_edit.core.errors import PivotError
from pivot_edit.core.inverter import invert
from pivot_edit.core.schedule import ddim_step, level_table, predict_eps
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.inversion import CORRECTIONS, Ddim, correction_named

STEPS = 25
SIGMAS = level_table(sd_sigmas(), STEPS)
GUIDANCE = [1.0, 7.5, 20.0]
STD = 0.3 + noise(9, 4, 3, 5).abs()
MEANS = {text: noise(seed, 4, 3, 5) for seed, text in enumerate(("", "a cat", "a dog"))}

Texts = tuple[str, ...]


def predict(texts: Texts, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """eps of rows that each read their own text: every text is normal data around its own mean."""
    mean = torch.stack([MEANS[text] for text in texts]).to(x)
    return predict_eps(gaussian(mean, STD.to(x)), x, sigma)


def inverted(source: str = "a cat") -> Trajectory:
    x0 = (MEANS[source] + STD * noise(7, 1, 4, 3, 5)).float()
    latents = invert(Ddim(), gaussian(MEANS[source].float(), STD.float()), x0, SIGMAS)
    return Trajectory(SIGMAS, latents, "ddim", "toy", source)


def replay(
    trajectory: Trajectory, correction: Correction, w: float, target: str = "a dog", negative: str = ""
) -> torch.Tensor:
    """[source, target] rows of every level from noise to clean, [N + 1, 2, C, H, W]."""
    source = trajectory.conditioning
    texts = {"source": source, "negative": negative}
    unconds = tuple(texts[correction.uncond(row, Place(0, trajectory.steps, 0.0)).base] for row in ("source", "target"))
    x = torch.cat([trajectory.noise] * 2)
    latents = [x]
    for i in range(trajectory.steps, 0, -1):
        sigma, sigma_next = trajectory.sigmas[i].item(), trajectory.sigmas[i - 1].item()
        eps_u, eps_c = predict(unconds, x, sigma), predict((source, target), x, sigma)
        x = ddim_step(x, eps_u + w * (eps_c - eps_u), sigma, sigma_next)
        x[:1] = correction.source_after(x[:1], trajectory, i - 1)
        latents.append(x)
    return torch.stack(latents)


def plain_guided(trajectory: Trajectory, w: float, text: str, negative: str = "") -> torch.Tensor:
    """Classifier-free guidance of one row from the trajectory's noise, every level."""
    x, sigmas = trajectory.noise, trajectory.sigmas.flip(0).tolist()
    latents = [x]
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        eps_u, eps_c = predict((negative,), x, sigma), predict((text,), x, sigma)
        x = ddim_step(x, eps_u + w * (eps_c - eps_u), sigma, sigma_next)
        latents.append(x)
    return torch.stack(latents)


def conditional(trajectory: Trajectory, text: str) -> torch.Tensor:
    """DDIM without guidance from the trajectory's noise, every level."""
    x, sigmas = trajectory.noise, trajectory.sigmas.flip(0).tolist()
    latents = [x]
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        latents.append(ddim_step(latents[-1], predict((text,), latents[-1], sigma), sigma, sigma_next))
    return torch.stack(latents)


# direct


@pytest.mark.parametrize("w", GUIDANCE)
def test_direct_puts_the_source_row_on_the_trajectory_at_every_level(w: float) -> None:
    pivot = inverted()
    assert torch.equal(replay(pivot, correction_named("direct"), w)[:, :1], pivot.latents.flip(0))


@pytest.mark.parametrize("w", GUIDANCE)
def test_direct_leaves_the_target_row_to_plain_guidance(w: float) -> None:
    pivot = inverted()
    target = replay(pivot, correction_named("direct"), w)[:, 1:]
    assert torch.equal(target, plain_guided(pivot, w, "a dog"))


def test_direct_sets_what_the_reference_adds_up_to_one_rounding() -> None:
    pivot, ddim = inverted(), noise(3, 1, 4, 3, 5).float()
    for index in range(STEPS):
        offset = pivot.latents[index] - ddim
        mine = correction_named("direct").source_after(ddim, pivot, index)
        torch.testing.assert_close(mine, ddim + offset, rtol=0, atol=1e-6)


def test_direct_gives_the_precision_and_device_it_was_asked_in() -> None:
    pivot = inverted()
    half = correction_named("direct").source_after(pivot.latents[3].half(), pivot, 3)
    assert half.dtype == torch.float16


# negative prompt


@pytest.mark.parametrize("w", GUIDANCE)
def test_negative_prompt_makes_the_source_row_plain_ddim_whatever_the_guidance(w: float) -> None:
    pivot = inverted()
    source = replay(pivot, correction_named("negative_prompt"), w)[:, :1]
    assert torch.equal(source, conditional(pivot, "a cat"))


@pytest.mark.parametrize("w", GUIDANCE)
def test_negative_prompt_under_the_same_prompt_makes_the_target_row_the_source(w: float) -> None:
    rows = replay(inverted(), correction_named("negative_prompt"), w, target="a cat")
    assert torch.equal(rows[:, 1], rows[:, 0])


@pytest.mark.parametrize("w", GUIDANCE)
def test_negative_prompt_reads_the_source_where_plain_guidance_reads_the_negative(w: float) -> None:
    pivot = inverted("")
    mine = replay(pivot, correction_named("negative_prompt"), w, negative="unused")
    assert torch.equal(mine[:, 1:], plain_guided(pivot, w, "a dog", negative=""))


# none


def test_uncorrected_without_guidance_is_plain_ddim() -> None:
    pivot = inverted()
    rows = replay(pivot, correction_named("none"), 1.0)
    torch.testing.assert_close(rows[:, :1], conditional(pivot, "a cat"), rtol=0, atol=1e-5)


def test_uncorrected_is_plain_guidance_on_both_rows() -> None:
    pivot = inverted()
    rows = replay(pivot, correction_named("none"), 7.5)
    assert torch.equal(rows[:, :1], plain_guided(pivot, 7.5, "a cat"))
    assert torch.equal(rows[:, 1:], plain_guided(pivot, 7.5, "a dog"))


def test_only_uncorrected_guidance_loses_the_picture() -> None:
    pivot = inverted()
    error = {
        name: (replay(pivot, correction_named(name), 7.5)[-1, 0] - pivot.latents[0, 0]).abs().mean().item()
        for name in ("direct", "negative_prompt", "none")
    }
    assert error["direct"] == 0.0
    assert error["negative_prompt"] < 0.1
    assert error["none"] > 10 * error["negative_prompt"]


# all


@pytest.mark.parametrize("name", CORRECTIONS)
def test_only_a_pinned_source_is_taken_from_the_trajectory(name: str) -> None:
    """The host may leave out the source's prediction exactly where `pinned` says so."""
    pivot, correction = inverted(), correction_named(name)
    x = noise(3, 1, 4, 3, 5).float()
    after = correction.source_after(x.clone(), pivot, 4)
    assert torch.equal(after, pivot.latents[4] if correction.pinned else x)


def test_an_unknown_correction_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(PivotError, match=r"direct.*negative_prompt.*none.*but got 'edict'"):
        correction_named("edict")
