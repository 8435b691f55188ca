"""DDIM inversion: against diffusers, exact where it must be, first order where it can only be
that."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import (
    abar_of,
    all_latents,
    convolution,
    denoiser,
    few,
    gaussian,
    noise,
    sd_sigmas,
    v_denoiser,
    vp_step,
)

from pivot_edit.core.errors import PivotError
from pivot_edit.core.path import VP, Denoise
from pivot_edit.inversion import Ddim

LEVELS = VP.levels(sd_sigmas(), 50)


def invert(
    denoise: Denoise,
    x0: torch.Tensor,
    sigmas: torch.Tensor,
    evaluation: str = "reference",
    on_step: Any = None,
) -> torch.Tensor:
    """DDIM inversion."""
    return all_latents(Ddim(evaluation), denoise, x0, sigmas, on_step)


def sample(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """DDIM from noise to clean over ascending levels: all latents [N + 1, ...], the clean one
    first."""
    latents, descending = [x], sigmas.flip(0).tolist()
    for sigma, sigma_next in zip(descending, descending[1:], strict=False):
        x = latents[-1]
        latents.append(VP.step(x, VP.predict_eps(denoise, x, sigma), sigma, sigma_next))
    return torch.stack(latents[::-1])


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.fixture(scope="module")
def peers() -> tuple[Any, Any]:
    """diffusers' DDIM and inverse DDIM over 50 steps, set as Stable Diffusion's pipeline sets
    them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
    options = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    forward, inverse = DDIMScheduler(**options), DDIMInverseScheduler(**options)
    forward.set_timesteps(50)
    inverse.set_timesteps(50)
    return forward, inverse


def peer_sigmas(scheduler: Any) -> torch.Tensor:
    abar = scheduler.alphas_cumprod.double()
    return ((1.0 - abar) / abar).sqrt()


def test_the_levels_are_those_of_diffusers(peers: tuple[Any, Any]) -> None:
    forward, _ = peers
    times = forward.timesteps.flip(0)
    assert times.tolist() == list(range(1, 982, 20))
    theirs = torch.cat([forward.final_alpha_cumprod[None], forward.alphas_cumprod[times]]).double()
    ours = torch.tensor([abar_of(sigma) for sigma in LEVELS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-7)


def test_one_step_is_the_step_of_diffusers_both_ways(peers: tuple[Any, Any]) -> None:
    forward, inverse = peers
    sigmas = VP.levels(peer_sigmas(forward), 50).tolist()
    x, eps = noise(0, 1, 4, 4, 4), noise(1, 1, 4, 4, 4)
    for i, time in enumerate(inverse.timesteps.tolist()):
        lower, upper = sigmas[i], sigmas[i + 1]
        assert (
            relative(VP.step(x, eps, upper, lower), forward.step(eps, time, x).prev_sample) < 1e-6
        )
        assert (
            relative(VP.step(x, eps, lower, upper), inverse.step(eps, time, x).prev_sample) < 1e-6
        )


def test_a_whole_sampling_run_is_that_of_diffusers(peers: tuple[Any, Any]) -> None:
    forward, _ = peers
    net, table = convolution(3), peer_sigmas(forward)
    x = noise(0, 2, 4, 6, 6)
    ours = sample(denoiser(net), x, VP.levels(table, 50))
    for i, time in enumerate(forward.timesteps):
        x = forward.step(net(x, table[time].item()), time, x).prev_sample
        assert relative(ours[49 - i], x) < 1e-5


def test_a_whole_inversion_is_that_of_diffusers(peers: tuple[Any, Any]) -> None:
    """Also the evaluation point: the network gets the lower latent at the time of the upper
    level."""
    _, inverse = peers
    net, table = convolution(3), peer_sigmas(inverse)
    x = noise(0, 2, 4, 6, 6)
    ours = invert(denoiser(net), x, VP.levels(table, 50))
    for i, time in enumerate(inverse.timesteps):
        x = inverse.step(net(x, table[time].item()), time, x).prev_sample
        assert relative(ours[i + 1], x) < 1e-5


def test_every_step_is_the_formula_of_the_paper() -> None:
    net = convolution(3)
    latents, sigmas = invert(denoiser(net), noise(0, 1, 4, 4, 4), LEVELS), LEVELS.tolist()
    for i, (lower, upper) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        eps = net(latents[i], upper)
        expected = vp_step(latents[i], eps, abar_of(lower), abar_of(upper))
        torch.testing.assert_close(latents[i + 1], expected, rtol=0, atol=1e-12)


@few
@given(
    st.integers(1, 120),
    st.sampled_from(["reference", "host"]),
    st.sampled_from(["reference", "naive"]),
)
def test_a_constant_eps_comes_back_exactly_in_any_number_of_steps(
    steps: int, end: str, evaluation: str
) -> None:
    x0, eps = noise(0, 1, 4, 2, 2), noise(1, 1, 4, 2, 2)
    denoise, sigmas = denoiser(lambda x, sigma: eps), VP.levels(sd_sigmas(), steps, end)
    there = invert(denoise, x0, sigmas, evaluation)
    torch.testing.assert_close(sample(denoise, there[-1], sigmas), there, rtol=0, atol=1e-12)


MEAN, STD = noise(5, 4, 4, 4), 0.1 + 0.3 * noise(6, 4, 4, 4).abs()


def round_trip_error(steps: int, back_end: str) -> float:
    denoise, x0 = gaussian(MEAN, STD), MEAN + STD * noise(7, 1, 4, 4, 4)
    there = invert(denoise, x0, VP.levels(sd_sigmas(), steps))
    back = sample(denoise, there[-1], VP.levels(sd_sigmas(), steps, back_end))
    return (back[0] - x0).abs().mean().item()


def test_another_clean_end_on_the_way_back_leaves_an_error_that_no_number_of_steps_removes() -> (
    None
):
    def at_infinity(back_end: str) -> float:
        return 2 * round_trip_error(500, back_end) - round_trip_error(250, back_end)

    assert abs(at_infinity("reference")) < 0.05 * round_trip_error(500, "reference")
    assert at_infinity("host") > 0.5 * round_trip_error(500, "host")


def test_it_keeps_every_latent_and_the_first_is_the_input_bit_for_bit() -> None:
    x0 = noise(0, 3, 4, 5, 7).float()
    latents = invert(denoiser(convolution(3)), x0, LEVELS)
    assert latents.shape == (51, *x0.shape)
    assert torch.equal(latents[0], x0)


def test_two_runs_are_equal_bit_for_bit() -> None:
    x0 = noise(0, 1, 4, 5, 7)
    first, second = (invert(denoiser(convolution(3)), x0, LEVELS) for _ in range(2))
    assert torch.equal(first, second)


def test_a_picture_inverts_alike_alone_and_in_any_row_of_a_batch() -> None:
    x0, denoise = noise(0, 3, 4, 5, 7), denoiser(convolution(3))
    together, turned = invert(denoise, x0, LEVELS), invert(denoise, x0.flip(0), LEVELS)
    torch.testing.assert_close(turned.flip(1), together, rtol=0, atol=1e-10)
    for row in range(3):
        alone = invert(denoise, x0[row : row + 1], LEVELS)
        torch.testing.assert_close(alone[:, 0], together[:, row], rtol=0, atol=1e-10)


def test_fp32_stays_near_fp64() -> None:
    x0, denoise = noise(0, 1, 4, 5, 7), denoiser(convolution(3))
    drift = invert(denoise, x0.float(), LEVELS).double() - invert(denoise, x0, LEVELS)
    assert drift.abs().max() < 1e-4


def test_a_v_network_gives_the_trajectory_of_its_eps_network() -> None:
    eps_net = convolution(3)

    def v_net(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return math.sqrt(1.0 + sigma**2) * eps_net(x, sigma) - sigma * x

    x0 = noise(0, 1, 4, 5, 7)
    eps_latents, v_latents = (invert(d, x0, LEVELS) for d in (denoiser(eps_net), v_denoiser(v_net)))
    torch.testing.assert_close(v_latents, eps_latents, rtol=0, atol=1e-10)
    back = [sample(d, eps_latents[-1], LEVELS) for d in (denoiser(eps_net), v_denoiser(v_net))]
    torch.testing.assert_close(back[1], back[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("evaluation", "end", "times"),
    [
        ("reference", "reference", LEVELS[1:]),
        ("reference", "host", LEVELS[1:]),
        ("naive", "reference", LEVELS[:-1]),
        ("naive", "host", torch.cat([LEVELS[1:2], LEVELS[1:-1]])),
    ],
)
def test_the_network_sees_the_lower_latent_at_the_chosen_time(
    evaluation: str, end: str, times: torch.Tensor
) -> None:
    seen: list[tuple[torch.Tensor, float]] = []

    def net(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append((x, sigma))
        return convolution(3)(x, sigma)

    latents = invert(
        denoiser(net), noise(0, 1, 4, 2, 2), VP.levels(sd_sigmas(), 50, end), evaluation
    )
    torch.testing.assert_close(torch.stack([x for x, _ in seen]), latents[:-1], rtol=0, atol=1e-12)
    assert [sigma for _, sigma in seen] == times.tolist()


@pytest.mark.parametrize("evaluation", ["reference", "naive"])
def test_on_step_reports_each_step_with_the_latent_and_the_denoised(evaluation: str) -> None:
    reports: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    denoised: list[torch.Tensor] = []

    def denoise(X: torch.Tensor, sigma: float) -> torch.Tensor:
        denoised.append(denoiser(convolution(3))(X, sigma))
        return denoised[-1]

    latents = invert(
        denoise,
        noise(0, 1, 4, 2, 2),
        LEVELS,
        evaluation,
        lambda i, step: reports.append((i, step.x, step.denoised)),
    )
    assert [i for i, _, _ in reports] == list(range(50))
    assert torch.equal(torch.stack([x for _, x, _ in reports]), latents[1:])
    torch.testing.assert_close(
        torch.stack([d for _, _, d in reports]), torch.stack(denoised), rtol=0, atol=1e-12
    )


def test_nan_is_an_error_that_names_the_step() -> None:
    def denoise(X: torch.Tensor, sigma: float) -> torch.Tensor:
        return X * math.nan if sigma > LEVELS[7] else X

    with pytest.raises(PivotError, match=r"NaN or infinity in ddim inversion, step 8\."):
        invert(denoise, noise(0, 1, 4, 2, 2), LEVELS)


def test_an_unknown_evaluation_is_refused() -> None:
    with pytest.raises(PivotError, match="reference.*naive.*but got 'midpoint'"):
        invert(denoiser(convolution(3)), noise(0, 1, 4, 2, 2), LEVELS, "midpoint")
