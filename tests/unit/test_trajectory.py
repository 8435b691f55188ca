"""The pivot trajectory: what it promises, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from reference import noise, sd_sigmas

from pivot_edit.core.errors import PivotError
from pivot_edit.core.path import VP
from pivot_edit.core.recipe import Recipe
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


@pytest.mark.parametrize(
    "shape", [(10, 2, 4, 3, 5), (12, 2, 4, 3, 5), (11, 4, 3, 5), (11, 2, 4, 1, 3, 5, 1)]
)
def test_latents_that_do_not_fit_the_levels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PivotError, match=r"latents \[11, B, C, H, W\] or \[11, B, C, F, H, W\]"):
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


# extras, recipes, coordinates


def test_latents_of_a_video_are_taken() -> None:
    video = trajectory(noise(0, 11, 2, 4, 7, 3, 5).float())
    assert (video.steps, video.batch) == (10, 2)


def with_extra(extra: torch.Tensor, name: str = "noises") -> Trajectory:
    return dataclasses.replace(trajectory(), extras={name: extra})


@pytest.mark.parametrize("shape", [(10,), (10, 2, 4, 3, 5)])
def test_extras_have_a_part_for_every_step(shape: tuple[int, ...]) -> None:
    assert with_extra(torch.zeros(shape)).extras["noises"].shape == shape


@pytest.mark.parametrize("shape", [(), (11, 2), (9,)])
def test_extras_of_another_count_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PivotError, match=r"extra noises as \[10, \.\.\.\], but got"):
        with_extra(torch.zeros(shape))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            torch.zeros(10, dtype=torch.float64),
            "in torch.float32 on the cpu, but got torch.float64",
        ),
        (torch.zeros(10, dtype=torch.int32), "but got torch.int32 on the cpu"),
        (torch.zeros(10, device="meta"), "but got torch.float32 on the meta"),
        (torch.full((10,), math.nan), "finite numbers in extra noises"),
        (torch.full((10,), -math.inf), "finite numbers in extra noises"),
    ],
)
def test_extras_of_another_kind_are_refused(extra: torch.Tensor, message: str) -> None:
    with pytest.raises(PivotError, match=message):
        with_extra(extra)


@pytest.mark.parametrize("name", ["", "two words", "a.b"])
def test_extras_have_plain_names(name: str) -> None:
    with pytest.raises(PivotError, match="name of an extra as one plain word"):
        with_extra(torch.zeros(10), name)


def test_extras_and_options_cannot_be_changed_afterwards() -> None:
    given = {"noises": torch.zeros(10)}
    one = dataclasses.replace(trajectory(), extras=given)
    given["others"] = torch.zeros(3)
    options = {"scale": 1.0}
    recipe = Recipe("direct", options)
    options["scale"] = 2.0
    assert list(one.extras) == ["noises"] and dict(recipe.options) == {"scale": 1.0}
    for frozen in (one.extras, recipe.options, trajectory().extras):
        with pytest.raises(TypeError, match="does not support item assignment"):
            frozen["noises"] = 0  # type: ignore[index]


def test_it_can_be_copied_in_depth_and_pickled() -> None:
    """ComfyUI deep-copies what hangs on a model."""
    one = dataclasses.replace(with_extra(torch.ones(10)), correction=Recipe("direct", {"every": 2}))
    for other in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert torch.equal(other.extras["noises"], one.extras["noises"])
        assert other.correction == one.correction


def test_it_replays_by_ddim_in_variance_preserving_coordinates_unless_told() -> None:
    assert (trajectory().stepper, trajectory().path) == (None, "vp")


def test_unknown_coordinates_are_refused() -> None:
    with pytest.raises(PivotError, match=r"path to be one of \('vp', 'flow'\), but got 'polar'"):
        dataclasses.replace(trajectory(), path="polar")
