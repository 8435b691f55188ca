"""Proximal guidance: operators, thresholds, and the reference's whole loop written out in float64
(METHODS 6)."""

from __future__ import annotations

import dataclasses
import math

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
    moment,
    noise,
    sd_abar,
    sd_sigmas,
)

from pivot_edit.core.control import Place, window_open
from pivot_edit.core.errors import PivotError
from pivot_edit.core.guidance import Guidance, Guided
from pivot_edit.core.path import VP
from pivot_edit.core.schedule import ddim_timesteps
from pivot_edit.core.step import EditStep
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.guidance.cfg import ClassifierFree
from pivot_edit.guidance.proximal import (
    ALIASES,
    OPERATOR_NAMES,
    OPERATORS,
    POPULATIONS,
    Proximal,
    hard,
    legacy_l1,
    quantile,
    soft,
)
from pivot_edit.host.tasks.guidance import PRESETS
from pivot_edit.inversion import Ddim, correction_named, rule_for

PROXNPI = PRESETS["proxnpi"]
OPEN = Place(40, 50, 0.5)
SIZE = (4, 5, 6)

numbers = st.lists(st.floats(-5.0, 5.0, width=32), min_size=1, max_size=20)
thresholds = st.floats(0.0, 3.0, width=32)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def rows(*seeds: int) -> torch.Tensor:
    """One difference for every seed, [rows, *SIZE]; seed 0 is that of a source row under NPI,
    nothing."""
    return torch.stack([noise(seed, *SIZE) * (seed > 0) for seed in seeds])


def guided(rule: Proximal, delta: torch.Tensor, batch: int = 1, place: Place = OPEN) -> Guided:
    return rule.guide(delta, batch, place)


def short_trajectory(batch: int = 1, steps: int = 4) -> Trajectory:
    sigmas = VP.levels(sd_sigmas(), steps)
    return Trajectory(sigmas, noise(50, steps + 1, batch, *SIZE), "ddim", "toy", "a cat")


# operators


@few
@given(numbers, thresholds)
def test_soft_is_odd_monotone_and_1_lipschitz_and_shrinks(
    values: list[float], threshold: float
) -> None:
    d = number(values).sort().values
    out = soft(d, number(threshold))
    assert torch.equal(soft(-d, number(threshold)), -out)
    assert (out.diff() >= 0).all() and (out.diff() <= d.diff() + 1e-12).all()
    assert (out.abs() <= d.abs()).all()
    torch.testing.assert_close(
        out, d.sign() * (d.abs() - threshold).clamp_min(0.0), rtol=0, atol=1e-12
    )


@few
@given(numbers, thresholds)
def test_hard_is_the_difference_itself_above_the_threshold_and_nothing_below(
    values: list[float], threshold: float
) -> None:
    d = number(values)
    above = d.abs() > threshold
    out = hard(d, number(threshold))
    assert torch.equal(out[above], d[above]) and not out[~above].any()


def test_the_references_l0_is_another_name_of_soft() -> None:
    """One entry of the table: the names differ, what is computed does not."""
    assert set(OPERATOR_NAMES) == {*OPERATORS, *ALIASES} and set(ALIASES.values()) <= {*OPERATORS}
    delta = rows(0, 2)
    for population in POPULATIONS:
        legacy, ours = (
            Proximal(name, 0.8, population=population) for name in ("legacy_l0", "soft")
        )
        assert torch.equal(guided(legacy, delta).delta, guided(ours, delta).delta)
        assert not torch.equal(guided(ours, delta).delta, delta)


@pytest.mark.parametrize(
    ("d", "expected"),
    [
        (1.2, 0.2),
        (1.5, 0.5),
        (2.5, 0.5),
        (-1.2, 0.8),
        (-1.5, 0.5),
        (-2.5, -0.5),
        (0.7, 0),
        (-0.7, 0),
    ],
)
def test_the_references_l1_turns_signs_exactly_as_published(d: float, expected: float) -> None:
    assert legacy_l1(number([d]), number(1.0)).item() == pytest.approx(expected, abs=1e-12)


# the threshold


@few
@given(
    st.integers(1, 400),
    st.integers(1, 3),
    st.floats(0.0, 1.0),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_quantile_is_that_of_torch(size: int, count: int, q: float, dtype: torch.dtype) -> None:
    values = noise(size, count, size).to(dtype)
    torch.testing.assert_close(
        quantile(values, q), torch.quantile(values, q, dim=1), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("operator", ["soft", "hard", "legacy_l0"])
@pytest.mark.parametrize("options", [{"quantile": 1.0}, {"threshold": 10.0}])
def test_above_all_differences_nothing_guides(
    population: str, operator: str, options: dict[str, float]
) -> None:
    """Oracle 26: the target is then eps_u, whatever w."""
    delta = rows(0, 1)
    kept = guided(Proximal(operator, population=population, **options), delta).delta
    assert torch.equal(kept, torch.zeros_like(delta))


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("operator", OPERATOR_NAMES)
def test_a_quantile_of_zero_is_plain_guidance_bit_for_bit(population: str, operator: str) -> None:
    delta = rows(1, 2)
    assert torch.equal(guided(Proximal(operator, 0.0, population=population), delta).delta, delta)


@few
@given(st.floats(0.0, 0.99))
def test_the_targets_quantile_is_the_part_that_does_not_guide(q: float) -> None:
    kept = guided(Proximal("hard", q), noise(3, 2, 4, 20, 20)).delta[1:]
    assert (kept == 0).double().mean().item() == pytest.approx(q, abs=2e-3)


@pytest.mark.parametrize("q", [0.55, 0.7, 0.75, 0.9, 0.99])
def test_a_legacy_quantile_over_a_source_of_zeros_is_the_targets_2q_minus_1(q: float) -> None:
    """Oracle 27."""
    delta = torch.cat([torch.zeros(1, 4, 32, 32).double(), noise(3, 1, 4, 32, 32)])
    legacy, own = (
        guided(Proximal("soft", *options), delta).delta
        for options in ((q, 0.0, "legacy"), (2 * q - 1,))
    )
    torch.testing.assert_close(legacy, own, rtol=0, atol=1e-3)
    found = (legacy - delta).abs().max()
    torch.testing.assert_close(found, torch.quantile(delta.abs().flatten(), q), rtol=0, atol=1e-12)


@pytest.mark.parametrize("q", [0.2, 0.5])
def test_a_legacy_quantile_of_at_most_half_is_plain_guidance_under_npi(q: float) -> None:
    delta = rows(0, 1)
    torch.testing.assert_close(
        guided(Proximal("soft", q, population="legacy"), delta).delta, delta, rtol=0, atol=1e-2
    )


def test_the_target_population_leaves_source_rows_alone_and_the_legacy_one_does_not() -> None:
    delta = rows(1, 2)
    target, legacy = (
        guided(Proximal("soft", 0.5, population=each), delta).delta for each in POPULATIONS
    )
    assert torch.equal(target[:1], delta[:1]) and not torch.equal(legacy[:1], delta[:1])


@pytest.mark.parametrize("population", POPULATIONS)
@pytest.mark.parametrize("operator", OPERATOR_NAMES)
def test_a_picture_is_thresholded_alike_alone_and_in_a_batch(
    population: str, operator: str
) -> None:
    """Two targets of three pictures, of very different sizes: no batch mate has a say."""
    rule = Proximal(operator, 0.6, population=population, inversion_rate=1.0)
    delta = rows(*range(1, 10)) * torch.tensor([1.0, 10.0, 0.1]).repeat(3)[:, None, None, None]
    together = guided(rule, delta, batch=3)
    for picture in range(3):
        alone = guided(rule, delta[picture::3])
        assert torch.equal(together.delta[picture::3], alone.delta)
        assert torch.equal(together.edit[picture::3], alone.edit)


def test_every_target_has_a_threshold_of_its_own() -> None:
    rule, delta = (
        Proximal("soft", 0.6),
        rows(0, 1, 2) * torch.tensor([1.0, 1.0, 50.0])[:, None, None, None],
    )
    together, alone = guided(rule, delta).delta, guided(rule, delta[[0, 2]]).delta
    assert torch.equal(together[2], alone[1])


def test_a_fixed_threshold_takes_the_quantiles_place() -> None:
    delta = rows(1, 2)
    kept = guided(Proximal("soft", 0.9, 0.25, "legacy"), delta).delta
    assert torch.equal(kept, soft(delta, number(0.25)))


def test_half_precision_is_thresholded_too() -> None:
    kept = guided(Proximal("soft", 0.5), rows(0, 1).half()).delta
    assert kept.dtype == torch.float16 and 0.4 < (kept[1] == 0).double().mean() < 0.6


# where and when


@pytest.mark.parametrize(("step", "open_"), [(9, False), (10, True), (39, True), (40, False)])
def test_outside_its_window_guidance_is_plain_and_nothing_pulls(step: int, open_: bool) -> None:
    rule = Proximal(window=(0.2, 0.8), guide_window=(0.0, 1.0), inversion_rate=1.0)
    delta = rows(1, 2)
    made = guided(rule, delta, place=Place(step, 50, 0.5))
    assert torch.equal(made.delta, delta) != open_
    assert (made.edit is not None) == open_


@pytest.mark.parametrize(("step", "open_"), [(29, False), (30, True), (49, True)])
def test_outside_the_guide_window_nothing_pulls(step: int, open_: bool) -> None:
    """Oracle 28, and the reference's precedence bug is absent: no rate, no pull, wherever the
    window is."""
    made = guided(Proximal(inversion_rate=1.0), rows(1, 2), place=Place(step, 50, 0.5))
    assert (made.edit is not None) == open_
    early = Proximal(guide_window=(0.0, 0.6))
    assert guided(early, rows(1, 2), place=Place(step, 50, 0.5)).edit is None


def test_edited_is_what_the_operator_leaves_above_the_threshold() -> None:
    """The reference compares what was already shrunk, so that soft needs twice the threshold."""
    delta = rows(0, 1)
    edits = {
        name: guided(Proximal(name, 0.0, 0.3, dilation=0, inversion_rate=1.0), delta).edit
        for name in OPERATORS
    }
    assert torch.equal(edits["soft"], (soft(delta, number(0.3)).abs() > 0.3).double())
    assert torch.equal(edits["hard"], (delta.abs() > 0.3).double())
    assert 0 < edits["soft"][1].sum() < edits["hard"][1].sum() < delta[1].numel()


def test_what_is_edited_grows_by_whole_pixels() -> None:
    """Oracle 28: dilation is monotone, and by hand the maximum of a square."""
    delta = rows(0, 1)
    masks = [
        guided(Proximal("hard", 0.95, dilation=r, inversion_rate=1.0), delta).edit for r in range(4)
    ]
    assert all(
        (b >= a).all() and b.sum() > a.sum() for a, b in zip(masks, masks[1:3], strict=False)
    )
    for r, mask in enumerate(masks):
        assert torch.equal(mask, dilated(masks[0], r))


def test_source_rows_are_pulled_everywhere_unless_they_are_thresholded() -> None:
    delta = rows(1, 2)
    target, legacy = (
        guided(Proximal("soft", 0.3, population=p, inversion_rate=1.0), delta).edit
        for p in POPULATIONS
    )
    assert not target[:1].any() and legacy[:1].any() and target[1:].any()


# the pull


@pytest.mark.parametrize("batch", [1, 3])
def test_where_nothing_is_edited_a_rate_of_one_gives_the_trajectory_bit_for_bit(batch: int) -> None:
    """Oracle 28."""
    pivot, x = short_trajectory(batch), noise(1, 3 * batch, *SIZE)
    nothing = Guided(x, torch.zeros_like(x))
    after = Proximal(inversion_rate=1.0).after_step(x, x, nothing, moment(pivot, 2))
    assert torch.equal(after, torch.cat([pivot.latents[2]] * 3))


def test_where_all_is_edited_or_both_rates_are_zero_nothing_moves() -> None:
    pivot, x = short_trajectory(), noise(1, 2, *SIZE)
    everything, nothing = Guided(x, torch.ones_like(x)), Guided(x, torch.zeros_like(x))
    both = Proximal(inversion_rate=0.7, reconstruction_rate=0.4)
    assert torch.equal(both.after_step(x, 2 * x, everything, moment(pivot, 1)), x)
    assert torch.equal(Proximal().after_step(x, 2 * x, nothing, moment(pivot, 1)), x)
    assert torch.equal(both.after_step(x, 2 * x, Guided(x), moment(pivot, 1)), x)


@few
@given(st.floats(0.0, 1.0))
def test_inversion_guidance_moves_by_its_rate(rate: float) -> None:
    pivot, x, edit = short_trajectory(), noise(1, 2, *SIZE), (noise(2, 2, *SIZE) > 0).double()
    after = Proximal(inversion_rate=rate).after_step(x, x, Guided(x, edit), moment(pivot, 3))
    expected = x - rate * (x - pivot.latents[3]) * (1 - edit)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)


def test_plain_guidance_keeps_all_of_the_difference() -> None:
    delta = rows(1, 2)
    made = ClassifierFree(2.0).guide(delta, 1, OPEN)
    assert made.delta is delta and made.edit is None and ClassifierFree(2.0).source_cfg == 2.0


# the reference's loop


def dilated(mask: torch.Tensor, r: int) -> torch.Tensor:
    """The maximum over squares of side 2r + 1, pixel by pixel."""
    out = torch.zeros_like(mask)
    height, width = mask.shape[-2:]
    for y in range(height):
        for x in range(width):
            square = mask[..., max(0, y - r) : y + r + 1, max(0, x - r) : x + r + 1]
            out[..., y, x] = square.amax((-1, -2))
    return out


@dataclasses.dataclass(frozen=True)
class Loop:
    """The reference's options under its own names; recon_t in timesteps of 1000."""

    prox: str = "l0"
    quantile: float = 0.7
    recon_lr: float = 1.0
    recon_t: int = 400
    dilate: int = 1
    inversion_guidance: bool = True
    reconstruction_guidance: bool = False
    w: float = 7.5

    def proximal(self, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(what guides, threshold): one quantile over the whole batch; a negative one is the
        threshold itself."""
        size = (
            torch.quantile(delta.abs(), self.quantile)
            if self.quantile > 0
            else number(-self.quantile)
        )
        out = delta - delta.clamp(-size, size)
        if self.prox == "l1":
            out = torch.where(out > 0, out - size, out)
            out = torch.where(out < 0, out + size, out)
        return out, size

    def run(self, pivots: torch.Tensor, source: int, target: int) -> torch.Tensor:
        """[source, target] latents [N + 1, 2, C, H, W], noise first, from the pivots [N + 1, 1, C,
        H, W], clean first; NPI, eps networks of the prompts `source` and `target`."""
        steps, abar = len(pivots) - 1, sd_abar()
        stride = 1000 // steps
        x = torch.cat([pivots[-1]] * 2)
        latents = [x]
        for i in range(steps):
            t = 1 + stride * (steps - 1 - i)
            a, b = abar[t], abar[max(t - stride, 0)]
            sigma = math.sqrt((1 - a) / a)
            eps_u = torch.cat([convolution(source)(row[None], sigma) for row in x])
            eps_c = torch.cat(
                [
                    convolution(net)(row[None], sigma)
                    for net, row in zip((source, target), x, strict=True)
                ]
            )
            delta, size = self.proximal(eps_c - eps_u)
            keep = 1.0 - dilated((delta.abs() > size).double(), self.dilate)
            now = self.recon_lr * keep if t < self.recon_t else 0.0 * keep
            eps = eps_u + self.w * delta
            x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
            if self.reconstruction_guidance:
                x0 = x0 - now * (x0 - pivots[0])
            x = b.sqrt() * x0 + (1 - b).sqrt() * eps
            if self.inversion_guidance:
                x = x - now * (x - pivots[steps - i - 1])
            latents.append(x)
        return torch.stack(latents)

    def ours(self) -> Proximal:
        return Proximal(
            {"l0": "legacy_l0", "l1": "legacy_l1"}[self.prox],
            max(self.quantile, 0.0),
            max(-self.quantile, 0.0),
            "legacy",
            inversion_rate=self.recon_lr * self.inversion_guidance,
            reconstruction_rate=self.recon_lr * self.reconstruction_guidance,
            dilation=self.dilate,
            guide_time=float(self.recon_t),
        )


def replay(rule: Guidance, pivot: Trajectory, w: float, source: int, target: int) -> torch.Tensor:
    """The same run from the pack's own pieces."""
    correction, nets = (
        correction_named("negative_prompt"),
        (convolution(source), convolution(target)),
    )
    x = torch.cat([pivot.noise] * 2)
    latents = [x]
    for i in range(pivot.steps):
        index = pivot.steps - i - 1
        sigma, sigma_next = pivot.sigmas[index + 1].item(), pivot.sigmas[index].item()
        eps_u, both = (
            torch.cat([VP.predict_eps(denoiser(net), row[None], sigma) for row in x])
            for net in nets
        )
        eps_c = torch.cat([eps_u[:1], both[1:]])
        place = Place(i, pivot.steps, sigma, VP.time(sd_sigmas(), sigma))
        made = rule.guide(eps_c - eps_u, 1, place)
        eps = eps_u + w * made.delta
        denoised = VP.to_host(x, sigma) - sigma * eps
        x = rule.after_step(
            VP.step(x, eps, sigma, sigma_next), denoised, made, moment(pivot, index)
        )
        x = torch.cat([correction.source_after(x[:1], pivot, index), x[1:]])
        latents.append(x)
    return torch.stack(latents)


SOURCE, TARGET = 3, 11


def inverted(steps: int) -> Trajectory:
    sigmas = VP.levels(sd_sigmas(), steps)
    latents = all_latents(Ddim(), denoiser(convolution(SOURCE)), noise(20, 1, *SIZE), sigmas)
    return Trajectory(sigmas, latents, "ddim", "toy", "source")


@pytest.mark.parametrize("steps", [50, 20, 15])
@pytest.mark.parametrize(
    "loop",
    [
        Loop(),
        Loop(prox="l1"),
        Loop(quantile=0.9, recon_lr=0.1, recon_t=600, dilate=2),
        Loop(recon_lr=0.3, inversion_guidance=False, reconstruction_guidance=True),
        Loop(prox="l1", recon_lr=0.5, recon_t=1000, dilate=0, reconstruction_guidance=True, w=2.0),
        Loop(quantile=-0.05, w=3.0),
        Loop(inversion_guidance=False, quantile=0.75),
    ],
    ids=str,
)
def test_the_whole_run_is_the_references(loop: Loop, steps: int) -> None:
    pivot = inverted(steps)
    theirs = loop.run(pivot.latents, SOURCE, TARGET)
    ours = replay(loop.ours(), pivot, loop.w, SOURCE, TARGET)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * theirs.abs().max().item())
    plain = replay(ClassifierFree(), pivot, loop.w, SOURCE, TARGET)
    assert (ours - plain)[-1, 1].abs().max() > 1e-2


@pytest.mark.parametrize("recon_t", [400, 600, 1000])
@pytest.mark.parametrize("steps", [10, 20, 25, 40, 50, 100, 200])
def test_a_recon_t_is_a_window_of_fractions_where_the_steps_divide_1000(
    steps: int, recon_t: int
) -> None:
    assert guided_steps(steps, recon_t) == [
        time < recon_t for time in reversed(ddim_timesteps(steps))
    ]


@pytest.mark.parametrize(
    ("steps", "theirs", "ours"), [(30, 17, 18), (12, 7, 7), (60, 35, 36), (70, 41, 42)]
)
def test_elsewhere_the_references_top_time_is_lower_and_it_pulls_a_little_earlier(
    steps: int, theirs: int, ours: int
) -> None:
    """30 steps start at 958 and not at 981: a fraction of the steps is not quite a fraction of the
    times."""
    times = list(reversed(ddim_timesteps(steps)))
    assert [time < 400 for time in times].index(True) == theirs
    assert guided_steps(steps, 400).index(True) == ours


@pytest.mark.parametrize("recon_t", [400, 600, 1000])
def test_guide_time_pulls_where_the_reference_does_at_every_step_count(recon_t: int) -> None:
    """The preset pulled late at 44 of these 96 counts, when it went by a fraction of the steps."""
    rule, late = dataclasses.replace(PROXNPI, guide_time=float(recon_t)), 0
    for steps in range(5, 101):
        pivot = Trajectory(
            VP.levels(sd_sigmas(), steps), torch.zeros(steps + 1, 1, 1, 1, 1), "ddim", "toy", ""
        )
        plain = correction_named("none")
        step = EditStep(pivot, plain, rule, rule_for(pivot), sd_sigmas())
        pulls = [
            rule.guide(noise(0, 2, *SIZE), 1, now.place).edit is not None for now in step.moments
        ]
        theirs = [time < recon_t for time in reversed(ddim_timesteps(steps))]
        assert pulls == theirs, steps
        late += theirs != guided_steps(steps, recon_t)
    assert recon_t != 400 or late == 44


def test_the_preset_is_the_authors_readme() -> None:
    readme = Loop().ours()
    assert dataclasses.replace(PROXNPI, operator=readme.operator) == readme
    assert PROXNPI.operator == ALIASES[readme.operator]


def test_guide_time_without_the_models_time_is_refused() -> None:
    rule = Proximal(inversion_rate=1.0, guide_time=400.0)
    with pytest.raises(PivotError, match="the model's time at every step.*none at step 1 of 50"):
        rule.guide(noise(0, 2, *SIZE), 1, Place(0, 50, 13.0))


@pytest.mark.parametrize("time", [-1.0, 1001.0, float("nan")])
def test_a_guide_time_that_no_model_has_is_refused(time: float) -> None:
    with pytest.raises(PivotError, match="guide_time between 0 and 1000"):
        Proximal(guide_time=time)


def guided_steps(steps: int, recon_t: int) -> list[bool]:
    window = (1 - recon_t / 1000, 1.0)
    return [window_open(window, Place(i, steps, 1.0), steps) for i in range(steps)]


def test_reconstruction_guidance_moves_x0_inside_the_step() -> None:
    pivot, x, edit = short_trajectory(), noise(1, 2, *SIZE), (noise(2, 2, *SIZE) > 0).double()
    x0, eps, abar = noise(3, 2, *SIZE), noise(4, 2, *SIZE), abar_of(pivot.sigmas[2].item())
    step = math.sqrt(abar) * x0 + math.sqrt(1 - abar) * eps
    moved = x0 - 0.4 * (x0 - pivot.latents[0]) * (1 - edit)
    expected = math.sqrt(abar) * moved + math.sqrt(1 - abar) * eps
    after = Proximal(reconstruction_rate=0.4).after_step(
        step, x0, Guided(x, edit), moment(pivot, 2)
    )
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-12)


# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"operator": "l2"},
            r"operator to be one of .*soft.*hard.*but got 'l2' in Proximal Guidance",
        ),
        ({"population": "all"}, r"population to be one of .*target.*legacy.*but got 'all'"),
        ({"quantile": 1.5}, "quantile between 0 and 1, but got 1.5"),
        ({"inversion_rate": -0.1}, "inversion_rate between 0 and 1, but got -0.1"),
        ({"reconstruction_rate": 2.0}, "reconstruction_rate between 0 and 1, but got 2"),
        ({"threshold": -1.0}, "threshold between 0 and 10, but got -1"),
        ({"dilation": -2}, "dilation between 0 and 32, but got -2"),
        ({"threshold": float("nan")}, "threshold between 0 and 10, but got nan"),
        ({"source_cfg": float("nan")}, "source_cfg between 0 and 30, but got nan"),
        (
            {"window": (0.8, 0.2)},
            r"Expected start and end between 0 and 1, in this order, but got 0.8 and 0.2",
        ),
        ({"guide_window": (0.8, 0.2)}, r"guide_start and guide_end between 0 and 1, in this order"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PivotError, match=message):
        Proximal(**options)  # type: ignore[arg-type]
