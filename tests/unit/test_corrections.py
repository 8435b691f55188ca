"""What makes the source row come back: each correction in a two-row replay over an analytic
denoiser."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import all_latents, few, gaussian, noise, sd_sigmas

from pivot_edit.core.control import Place
from pivot_edit.core.correction import NEGATIVE, SOURCE, Correction, Uncond
from pivot_edit.core.errors import PivotError
from pivot_edit.core.path import VP
from pivot_edit.core.recipe import Recipe, recipe_of
from pivot_edit.core.schedule import slerp
from pivot_edit.core.step import EditStep, Prediction
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.guidance import ClassifierFree
from pivot_edit.inversion import CORRECTIONS, Ddim, correction_for, correction_named, rule_for

STEPS = 25
SIGMAS = VP.levels(sd_sigmas(), STEPS)
GUIDANCE = [1.0, 7.5, 20.0]
STD = 0.3 + noise(9, 4, 3, 5).abs()
MEANS = {text: noise(seed, 4, 3, 5) for seed, text in enumerate(("", "a cat", "a dog"))}

Texts = tuple[str, ...]


def predict(texts: Texts, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """eps of rows that each read their own text: every text is normal data around its own mean."""
    mean = torch.stack([MEANS[text] for text in texts]).to(x)
    return VP.predict_eps(gaussian(mean, STD.to(x)), x, sigma)


def inverted(source: str = "a cat") -> Trajectory:
    x0 = (MEANS[source] + STD * noise(7, 1, 4, 3, 5)).float()
    latents = all_latents(Ddim(), gaussian(MEANS[source].float(), STD.float()), x0, SIGMAS)
    return Trajectory(SIGMAS, latents, "ddim", "toy", source)


def replay(
    trajectory: Trajectory,
    correction: Correction,
    w: float,
    target: str = "a dog",
    negative: str = "",
) -> torch.Tensor:
    """[source, target] rows of every level from noise to clean, [N + 1, 2, C, H, W]."""
    source = trajectory.conditioning
    texts = {"source": source, "negative": negative}
    unconds = tuple(
        texts[correction.uncond(row, Place(0, trajectory.steps, 0.0)).base]
        for row in ("source", "target")
    )
    x = torch.cat([trajectory.noise] * 2)
    latents = [x]
    for i in range(trajectory.steps, 0, -1):
        sigma, sigma_next = trajectory.sigmas[i].item(), trajectory.sigmas[i - 1].item()
        eps_u, eps_c = predict(unconds, x, sigma), predict((source, target), x, sigma)
        x = VP.step(x, eps_u + w * (eps_c - eps_u), sigma, sigma_next)
        pinned = correction.source_after(x[:1], trajectory, i - 1)
        x = torch.cat([pinned, correction.targets_after(x[1:], x[:1], pinned)])
        latents.append(x)
    return torch.stack(latents)


def plain_guided(trajectory: Trajectory, w: float, text: str, negative: str = "") -> torch.Tensor:
    """Classifier-free guidance of one row from the trajectory's noise, every level."""
    x, sigmas = trajectory.noise, trajectory.sigmas.flip(0).tolist()
    latents = [x]
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        eps_u, eps_c = predict((negative,), x, sigma), predict((text,), x, sigma)
        x = VP.step(x, eps_u + w * (eps_c - eps_u), sigma, sigma_next)
        latents.append(x)
    return torch.stack(latents)


def conditional(trajectory: Trajectory, text: str) -> torch.Tensor:
    """DDIM without guidance from the trajectory's noise, every level."""
    x, sigmas = trajectory.noise, trajectory.sigmas.flip(0).tolist()
    latents = [x]
    for sigma, sigma_next in zip(sigmas, sigmas[1:], strict=False):
        latents.append(
            VP.step(latents[-1], predict((text,), latents[-1], sigma), sigma, sigma_next)
        )
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


@pytest.mark.parametrize("w", [1.0, 7.5])
def test_direct_by_added_differences_is_direct_to_one_rounding_a_step(w: float) -> None:
    pivot = inverted()
    added, set_ = (
        replay(pivot, correction_named("direct", legacy=legacy), w) for legacy in (True, False)
    )
    assert torch.equal(added[:, 1:], set_[:, 1:])
    ulp = torch.finfo(torch.float32).eps * set_.abs().max().item()
    torch.testing.assert_close(added, set_, rtol=0, atol=ulp)


def two_passes(
    pivot: Trajectory,
    w: float,
    scale: float,
    every: int,
    target: str = "a dog",
    both: bool = False,
) -> torch.Tensor:
    """The reference's two passes, from METHODS 9: differences measured along the corrected rows
    without any control, then added to the source row of the edit (`both`: the source's to the
    target's row too, its add-source); [source, target] of every level, noise first."""
    descending = pivot.sigmas.flip(0).tolist()

    def prev(x: torch.Tensor, i: int) -> torch.Tensor:
        eps_u, eps_c = (
            predict(("", ""), x, descending[i]),
            predict((pivot.conditioning, target), x, descending[i]),
        )
        return VP.step(x, eps_u + w * (eps_c - eps_u), descending[i], descending[i + 1])

    offsets, x = [], torch.cat([pivot.noise] * 2)
    for i in range(pivot.steps):
        before = prev(x, i)
        offsets.append((pivot.latents[pivot.steps - i - 1] - before) * scale * (i % every == 0))
        x = before + offsets[-1]
    x = torch.cat([pivot.noise] * 2)
    latents = [x]
    for i in range(pivot.steps):
        before = prev(x, i)
        x = torch.cat([before[:1] + offsets[i][:1], before[1:] + both * offsets[i][:1]])
        latents.append(x)
    return torch.stack(latents)


@pytest.mark.parametrize(
    ("scale", "every"), [(1.0, 1), (0.4, 1), (0.8, 1), (1.0, 2), (1.0, 5), (1.0, 24), (0.8, 10)]
)
def test_directs_ablations_are_the_references_two_passes(scale: float, every: int) -> None:
    pivot = inverted()
    pivot = dataclasses.replace(pivot, latents=pivot.latents.double())
    mine = replay(pivot, correction_named("direct", legacy=True, scale=scale, every=every), 3.0)
    torch.testing.assert_close(mine, two_passes(pivot, 3.0, scale, every), rtol=0, atol=1e-10)
    exact = scale == 1.0 and every == 1
    assert ((mine[:, 0] - pivot.latents.flip(0)[:, 0]).abs().max() < 1e-10) == exact


@pytest.mark.parametrize(("scale", "every"), [(1.0, 1), (0.4, 1), (1.0, 5)])
def test_the_sources_difference_is_added_to_the_target_too_where_it_is_asked_for(
    scale: float, every: int
) -> None:
    pivot = inverted()
    pivot = dataclasses.replace(pivot, latents=pivot.latents.double())
    chosen = correction_named("direct", scale=scale, every=every, add_to="both")
    mine = replay(pivot, chosen, 3.0)
    expected = two_passes(pivot, 3.0, scale, every, both=True)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)
    plain = two_passes(pivot, 3.0, scale, every)
    assert torch.equal(plain[:, 0], expected[:, 0]) and not torch.equal(plain, expected)


def test_every_target_of_every_picture_gets_its_own_sources_difference() -> None:
    before, source, targets = noise(0, 2, 4, 3, 3), noise(1, 2, 4, 3, 3), noise(2, 6, 4, 3, 3)
    made = correction_named("direct", add_to="both").targets_after(targets, before, source)
    for row in range(6):
        expected = targets[row] + source[row % 2] - before[row % 2]
        torch.testing.assert_close(made[row], expected, rtol=0, atol=1e-12)
    assert correction_named("direct").targets_after(targets, before, source) is targets


def test_a_step_hands_targets_the_difference_of_its_source() -> None:
    """The step of an edit itself, and not only this file's loop."""
    pivot = dataclasses.replace(inverted(), latents=inverted().latents.double())
    chosen = correction_named("direct", add_to="both")
    step = EditStep(pivot, chosen, ClassifierFree(), rule_for(pivot))
    x, now = noise(3, 3, *pivot.latents.shape[2:]), step.moments[1]
    difference = pivot.latents[now.lower] - x[:1]
    landed = step.land(x, Prediction(x), now)
    torch.testing.assert_close(landed, x + difference, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "pinned"),
    [
        ({}, True),
        ({"legacy": True}, False),
        ({"scale": 0.9}, False),
        ({"every": 2}, False),
        ({"add_to": "both"}, False),
    ],
)
def test_only_direct_as_it_is_knows_the_source_without_running_it(
    options: dict[str, Any], pinned: bool
) -> None:
    assert correction_named("direct", **options).pinned == pinned


@pytest.mark.parametrize("options", [{"scale": 1.5}, {"scale": -0.1}, {"every": 0}])
def test_direct_refuses_impossible_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(PivotError, match=f"{name} between .* but got .* in Direct Inversion"):
        correction_named("direct", **options)


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


def reads(step: int = 9, **options: Any) -> tuple[Uncond, Uncond]:
    """What source and target read at one of ten steps."""
    correction = correction_named("negative_prompt", **options)
    return correction.uncond("source", Place(step, 10, 1.0)), correction.uncond(
        "target", Place(step, 10, 1.0)
    )


def test_interpolation_goes_from_the_source_prompt_to_the_negative_one() -> None:
    """Oracle 34: the ends are the prompts themselves."""
    assert reads(interpolation=0.0) == (SOURCE, SOURCE)
    assert reads(interpolation=0.3) == (Uncond("source", 0.3), Uncond("source", 0.3))
    assert reads(interpolation=1.0) == (NEGATIVE, NEGATIVE)


@pytest.mark.parametrize(
    ("mix", "target"), [(0.0, SOURCE), (0.3, Uncond("source", 0.3)), (1.0, NEGATIVE)]
)
def test_keep_source_holds_the_source_row_to_its_prompt(mix: float, target: Uncond) -> None:
    assert reads(interpolation=mix, keep_source=True) == (SOURCE, target)


@pytest.mark.parametrize(("start", "first"), [(0.0, 0), (0.3, 3), (0.35, 3), (1.0, 10)])
def test_before_its_start_all_rows_read_the_negative_prompt(start: float, first: int) -> None:
    for step in range(10):
        expected = (NEGATIVE, NEGATIVE) if step < first else (SOURCE, Uncond("source", 0.5))
        assert reads(step, start=start, interpolation=0.5, keep_source=True) == expected


@pytest.mark.parametrize("option", ["interpolation", "start"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_negative_prompt_refuses_what_is_no_fraction(option: str, value: float) -> None:
    with pytest.raises(
        PivotError, match=f"{option} between 0 and 1, but got {value} in Negative-Prompt Inversion"
    ):
        correction_named("negative_prompt", **{option: value})


# the sphere between two texts


def sphere(mix: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of two flattened texts, by the formula."""
    angle = math.acos((a.flatten() @ b.flatten() / (a.norm() * b.norm())).item())
    return (
        math.sin((1 - mix) * angle) / math.sin(angle) * a
        + math.sin(mix * angle) / math.sin(angle) * b
    )


@few
@given(st.floats(0.01, 0.99), st.integers(0, 100))
def test_slerp_is_the_formula_on_every_row(mix: float, seed: int) -> None:
    a, b = noise(seed, 2, 7, 5), noise(seed + 1, 2, 7, 5)
    expected = torch.stack([sphere(mix, *pair) for pair in zip(a, b, strict=True)])
    torch.testing.assert_close(slerp(mix, a, b), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        slerp(mix, a.float(), b.float()).double(), expected, rtol=0, atol=1e-6
    )


def test_slerp_turns_evenly_and_keeps_the_length() -> None:
    a, b = noise(0, 1, 7, 5), noise(1, 1, 7, 5)
    a, b = a / a.norm(), b / b.norm()
    points = [slerp(i / 4, a, b) for i in range(5)]
    angles = [math.acos((p * q).sum().item()) for p, q in zip(points, points[1:], strict=False)]
    assert [point.norm().item() for point in points] == pytest.approx([1.0] * 5, abs=1e-12)
    assert angles == pytest.approx([math.acos((a * b).sum().item()) / 4] * 4, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_slerps_ends_are_the_texts_bit_for_bit(dtype: torch.dtype) -> None:
    a, b = noise(0, 1, 7, 5).to(dtype), noise(1, 1, 7, 5).to(dtype)
    assert torch.equal(slerp(0.0, a, b), a) and torch.equal(slerp(1.0, a, b), b)
    assert slerp(0.5, a, b).dtype == dtype


@pytest.mark.parametrize("mix", [0.2, 0.5, 0.8])
def test_slerp_between_texts_of_one_direction_is_a_straight_line(mix: float) -> None:
    a = noise(0, 2, 7, 5)
    near = a + 1e-9 * noise(1, 2, 7, 5)
    for b, factor in ((a, 1.0), (2 * a, 1.0 + mix), (near, 1.0), (-a, 1.0 - 2 * mix)):
        torch.testing.assert_close(slerp(mix, a, b), factor * a, rtol=0, atol=1e-8)
    assert torch.equal(slerp(mix, torch.zeros_like(a), torch.zeros_like(a)), torch.zeros_like(a))


def test_slerp_takes_every_row_alone() -> None:
    a, b = noise(0, 2, 7, 5), torch.cat([noise(0, 2, 7, 5)[:1], noise(1, 1, 7, 5)])
    torch.testing.assert_close(slerp(0.3, a, b)[1:], slerp(0.3, a[1:], b[1:]), rtol=0, atol=0)


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
        name: (replay(pivot, correction_named(name), 7.5)[-1, 0] - pivot.latents[0, 0])
        .abs()
        .mean()
        .item()
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


# auto


def test_auto_is_direct_and_none_for_an_inversion_with_a_guidance_of_its_own() -> None:
    pivot = inverted()
    assert correction_for(pivot).name == "direct"
    assert correction_for(dataclasses.replace(pivot, guidance=3.0)).name == "none"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_auto_is_what_the_inversion_carries(guidance: float) -> None:
    correction = correction_named("negative_prompt", interpolation=0.5)
    pivot = dataclasses.replace(inverted(), correction=recipe_of(correction), guidance=guidance)
    assert correction_for(pivot) == correction
    assert correction_for(pivot, "auto") == correction


def test_a_correction_by_name_takes_the_options_that_the_inversion_carries_for_it() -> None:
    correction = correction_named("direct", legacy=True, scale=0.4)
    pivot = dataclasses.replace(inverted(), correction=recipe_of(correction))
    assert correction_for(pivot, "direct") == correction
    assert correction_for(pivot, "none") == correction_named("none")
    assert correction_for(pivot, "negative_prompt") == correction_named("negative_prompt")


def test_optimised_embeddings_are_asked_for_where_they_are_missing() -> None:
    with pytest.raises(PivotError, match="optimised embeddings, but got one without in null_text"):
        correction_for(inverted(), "null_text")


def test_an_unknown_correction_of_an_inversion_is_refused() -> None:
    with pytest.raises(PivotError, match="but got 'edict'"):
        correction_for(inverted(), "edict")


def test_every_correction_comes_back_from_its_recipe() -> None:
    for name in CORRECTIONS:
        assert correction_named(name, **recipe_of(correction_named(name)).options).name == name


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("edict", {}, r"correction to be one of .*'direct'.*, but got 'edict'"),
        ("direct", {"strength": 2}, "options of direct to be one of .*'every'.* got 'strength'"),
        ("none", {"name": "none"}, "options of none to be none, but got 'name'"),
        ("direct", {"every": 1e30}, r"every of direct to be a whole number, but got 1e\+30"),
        ("direct", {"every": True}, "every of direct to be a whole number, but got True"),
        ("direct", {"legacy": "yes"}, "legacy of direct to be true or false, but got 'yes'"),
        ("direct", {"legacy": 1}, "legacy of direct to be true or false, but got 1"),
        ("direct", {"scale": "much"}, "scale of direct to be a finite number, but got 'much'"),
        ("direct", {"scale": False}, "scale of direct to be a finite number, but got False"),
        ("null_text", {"base": "x"}, r"base of null_text to be one of \('negative', 'source'\)"),
        ("null_text", {"negative": 3}, "negative of null_text to be text, but got 3"),
    ],
)
def test_a_recipe_that_does_not_fit_its_correction_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    pivot = dataclasses.replace(inverted(), correction=Recipe(name, options))
    with pytest.raises(PivotError, match=message):
        correction_for(pivot)
    with pytest.raises(PivotError, match=message):
        correction_named(name, **options)


def test_whole_numbers_are_numbers() -> None:
    assert correction_named("direct", legacy=True, scale=1) == correction_named(
        "direct", legacy=True, scale=1.0
    )
