"""Fixed-point inversion: exact where DDIM is first order, honest about what it misses, and never
worse than DDIM."""

from __future__ import annotations

import math

import pytest
import torch
from reference import NoiseNet, all_latents, convolution, denoiser, noise, one_step, sd_sigmas

from pivot_edit.core.errors import PivotError
from pivot_edit.core.inverter import Step
from pivot_edit.core.path import VP, Denoise
from pivot_edit.inversion import Ddim, FixedPoint

SIGMAS = VP.levels(sd_sigmas(), 20)
SIZE = (4, 4, 5)
STEP = (SIGMAS[9].item(), SIGMAS[10].item())


def back(denoise: Denoise, x: torch.Tensor, sigmas: torch.Tensor = SIGMAS) -> torch.Tensor:
    """DDIM from noise to clean."""
    descending = sigmas.flip(0).tolist()
    for sigma, sigma_next in zip(descending, descending[1:], strict=False):
        x = VP.step(x, VP.predict_eps(denoise, x, sigma), sigma, sigma_next)
    return x


def round_trip(
    inverter: object, denoise: Denoise, x0: torch.Tensor, sigmas: torch.Tensor = SIGMAS
) -> torch.Tensor:
    """How far every picture comes back from itself on the mean, [B]."""
    there = all_latents(inverter, denoise, x0, sigmas)[-1]  # type: ignore[arg-type]
    return (back(denoise, there, sigmas) - x0).abs().flatten(1).mean(1)


def miss(denoise: Denoise, step: Step, x: torch.Tensor) -> torch.Tensor:
    """How far a step's latents are from what their own prediction would have made of the lower
    ones, relative, [B]."""
    image = VP.step(x, VP.predict_eps(denoise, step.x, STEP[1]), *STEP)
    return (image - step.x).flatten(1).norm(dim=1) / image.flatten(1).norm(dim=1)


def steep(slope: float) -> NoiseNet:
    """eps that turns its input over: beyond a slope of about 8, iterating this step no longer
    contracts."""
    return lambda x, sigma: torch.tanh(-slope * x)


def guided(w: float) -> Denoise:
    """Classifier-free guidance between two networks."""
    nets = (convolution(3), convolution(11))
    return denoiser(lambda x, sigma: torch.lerp(*(net(x, sigma) for net in nets), w))


# exactness


def test_the_error_falls_geometrically_with_the_iterations_to_rounding() -> None:
    """Oracle 5."""
    denoise, x0 = denoiser(convolution(3)), noise(1, 2, *SIZE)
    errors = [
        round_trip(FixedPoint(n, tolerance=0.0), denoise, x0).max().item()
        for n in (0, 1, 2, 3, 4, 5, 6, 8, 12, 20)
    ]
    assert all(
        later < 0.5 * earlier for earlier, later in zip(errors[:7], errors[1:7], strict=False)
    ), errors
    assert errors[5] < 1e-3 * errors[0] and errors[-1] < 1e-12, errors


@pytest.mark.parametrize("end", ["reference", "host"])
def test_without_iterations_it_is_ddim_bit_for_bit(end: str) -> None:
    sigmas, x0 = VP.levels(sd_sigmas(), 20, end), noise(1, 2, *SIZE).float()
    steps: list[Step] = []
    mine = all_latents(
        FixedPoint(0), denoiser(convolution(3)), x0, sigmas, lambda i, step: steps.append(step)
    )
    assert torch.equal(mine, all_latents(Ddim(), denoiser(convolution(3)), x0, sigmas))
    assert all(step.residual is None for step in steps)


@pytest.mark.parametrize("w", [2.0, 3.0])
def test_it_comes_back_at_the_guidance_it_was_made_at_where_ddim_does_not(w: float) -> None:
    x0, sigmas = noise(1, 2, *SIZE), VP.levels(sd_sigmas(), 50)
    exact, ddim = (
        round_trip(one, guided(w), x0, sigmas).max().item()
        for one in (FixedPoint(40, 1e-13), Ddim())
    )
    assert exact < 1e-9 and ddim > 1e-2


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_it_stops_at_its_tolerance(tolerance: float) -> None:
    asked: list[int] = []

    def count(x: torch.Tensor, sigma: float) -> torch.Tensor:
        asked.append(len(x))
        return convolution(3)(x, sigma)

    step = one_step(FixedPoint(50, tolerance), denoiser(count), noise(1, 1, *SIZE), *STEP)
    assert step.residual.item() <= tolerance and len(asked) < 20


# what it says


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_the_residual_is_what_the_iterate_before_misses_and_the_result_misses_less(
    iterations: int,
) -> None:
    denoise, x = denoiser(convolution(3)), noise(1, 3, *SIZE)
    before, now = (
        one_step(FixedPoint(n, 0.0), denoise, x, *STEP) for n in (iterations - 1, iterations)
    )
    torch.testing.assert_close(now.residual, miss(denoise, before, x), rtol=1e-9, atol=0)
    assert (miss(denoise, now, x) < now.residual).all()


def test_a_residual_is_the_steps_error_on_the_way_back() -> None:
    """Sampling takes a latent that misses by r back to one that is off by r, in the noisier level's
    scale."""
    denoise, x = denoiser(convolution(3)), noise(1, 2, *SIZE)
    step = one_step(FixedPoint(3, 0.0), denoise, x, *STEP)
    eps = VP.predict_eps(denoise, step.x, STEP[1])
    image, returned = VP.step(x, eps, *STEP), VP.step(step.x, eps, STEP[1], STEP[0])
    scale = math.sqrt((1 + STEP[1] ** 2) / (1 + STEP[0] ** 2))
    torch.testing.assert_close(returned - x, scale * (step.x - image), rtol=0, atol=1e-12)


def test_denoised_is_the_networks_last_word() -> None:
    said: list[torch.Tensor] = []

    def listen(exploding: torch.Tensor, sigma: float) -> torch.Tensor:
        said.append(denoiser(convolution(3))(exploding, sigma))
        return said[-1]

    step = one_step(FixedPoint(3, 0.0), listen, noise(1, 1, *SIZE), *STEP)
    torch.testing.assert_close(step.denoised, said[-1], rtol=0, atol=1e-12)
    assert len(said) == 4


# where it does not converge


@pytest.mark.parametrize("slope", [4.0, 20.0, 1e4])
def test_where_iterating_does_not_contract_it_is_finite_and_no_worse_than_ddim(
    slope: float,
) -> None:
    denoise, x = denoiser(steep(slope)), noise(1, 4, *SIZE)
    step = one_step(FixedPoint(8, 0.0), denoise, x, *STEP)
    ddim = one_step(Ddim(), denoise, x, *STEP)
    assert torch.isfinite(step.x).all()
    assert (miss(denoise, step, x) <= miss(denoise, ddim, x) + 1e-12).all()
    assert (step.residual <= miss(denoise, ddim, x) + 1e-12).all()


def test_a_picture_that_diverges_keeps_its_best_iterate_and_leaves_the_others_alone() -> None:
    def net(x: torch.Tensor, sigma: float) -> torch.Tensor:
        wild = x.abs().amax((1, 2, 3), keepdim=True) > 50.0
        return torch.where(wild, -30.0 * x, convolution(3)(x, sigma))

    calm, wild = noise(1, 1, *SIZE), 1e3 * noise(2, 1, *SIZE)
    together = one_step(FixedPoint(30, 1e-13), denoiser(net), torch.cat([calm, wild]), *STEP)
    alone = one_step(FixedPoint(30, 1e-13), denoiser(net), calm, *STEP)
    torch.testing.assert_close(together.x[:1], alone.x, rtol=0, atol=1e-11)
    assert together.residual[0] <= 1e-13 < together.residual[1]
    assert torch.equal(together.x[1:], one_step(Ddim(), denoiser(net), wild, *STEP).x)


def test_a_network_that_breaks_while_iterating_leaves_the_ddim_step() -> None:
    asked: list[float] = []

    def net(x: torch.Tensor, sigma: float) -> torch.Tensor:
        asked.append(sigma)
        return convolution(3)(x, sigma) if len(asked) == 1 else torch.full_like(x, math.nan)

    x = noise(1, 2, *SIZE)
    step = one_step(FixedPoint(5), denoiser(net), x, *STEP)
    assert torch.equal(step.x, one_step(Ddim(), denoiser(convolution(3)), x, *STEP).x)


# errors


@pytest.mark.parametrize(
    ("name", "value"), [("iterations", -1), ("tolerance", -1.0), ("tolerance", float("nan"))]
)
def test_negative_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(PivotError, match=f"{name} between 0 and .* but got {value:g} in fixed_p"):
        FixedPoint(**{name: value})  # type: ignore[arg-type]
