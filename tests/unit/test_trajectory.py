"""The pivot trajectory: what it promises, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from reference import noise, sd_sigmas

from pivot_edit.core.errors import PivotError
from pivot_edit.core.path import VP
from pivot_edit.core.trajectory import Trajectory

SIGMAS = VP.levels(sd_sigmas(), 10)


def trajectory(latents: torch.Tensor | None = None) -> Trajectory:
    latents = noise(0, 11, 2, 4, 3, 5).float() if latents is None else latents
    return Trajectory(SIGMAS, latents, "ddim", "a model", "a prompt")


def test_it_counts_its_steps_and_pictures() -> None:
    assert (trajectory().steps, trajectory().batch) == (10, 2)


def test_its_noise_is_the_last_latent() -> None:
    assert torch.equal(trajectory().noise, trajectory().latents[10])


def test_it_descends_for_the_host_in_fp32() -> None:
    sigmas = trajectory().descending
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, SIGMAS.float().flip(0))


def test_a_level_is_found_by_its_value_even_in_half_precision() -> None:
    found = [trajectory().index_of(float(sigma)) for sigma in SIGMAS.half()]
    assert found == list(range(11))


@pytest.mark.parametrize("shape", [(10, 2, 4, 3, 5), (12, 2, 4, 3, 5), (11, 4, 3, 5)])
def test_latents_that_do_not_fit_the_levels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PivotError, match=r"latents \[11, B, C, H, W\]"):
        trajectory(torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_latents_that_are_not_finite_are_refused(value: float) -> None:
    latents = noise(0, 11, 2, 4, 3, 5)
    latents[3, 1, 2, 0, 4] = value
    with pytest.raises(PivotError, match="finite numbers in the latents of a trajectory"):
        trajectory(latents)


def test_a_latent_of_its_own_shape_matches() -> None:
    trajectory().check_matches(torch.zeros(2, 4, 3, 5), "Edit")


@pytest.mark.parametrize("shape", [(1, 4, 3, 5), (2, 4, 5, 3), (2, 3, 3, 5)])
def test_a_latent_of_another_size_or_batch_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PivotError, match=r"size \[2, 4, 3, 5\], but got .* in Edit\."):
        trajectory().check_matches(torch.zeros(shape), "Edit")


def test_it_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        trajectory().method = "another"  # type: ignore[misc]
