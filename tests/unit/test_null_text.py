"""Null-text optimisation on a small analytic network: the paper's loop, the faster one, and what
both promise."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from reference import abar_of, all_latents, noise, sd_sigmas, vp_step

from pivot_edit.core.control import Place
from pivot_edit.core.correction import NEGATIVE
from pivot_edit.core.errors import PivotError
from pivot_edit.core.path import VP
from pivot_edit.core.recipe import recipe_of
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.inversion import Ddim, NullText, correction_for
from pivot_edit.inversion.null_text import (
    NULLS,
    PRESETS,
    Optimized,
    Problem,
    Secant,
    Settings,
    optimize,
)

TOKENS, WIDTH, PICTURE = 3, 8, (4, 4, 5)
CFG = 7.5
SOURCE, EMPTY = noise(11, 1, TOKENS, WIDTH), 0.3 * noise(12, 1, TOKENS, WIDTH)
WEIGHTS = noise(13, TOKENS * WIDTH, math.prod(PICTURE)) / (TOKENS * WIDTH) ** 0.5
STD = 0.4 + 0.3 * noise(14, *PICTURE).abs()


def predict(x: torch.Tensor, sigma: float, text: torch.Tensor) -> torch.Tensor:
    """eps [P, C, H, W] of normal data around a mean that the text says, bent a little."""
    mean = torch.tanh(text.flatten(1) @ WEIGHTS.to(text)).view(-1, *PICTURE)
    a = abar_of(sigma)
    return math.sqrt(1 - a) * (x - math.sqrt(a) * mean) / (a * STD.to(x) ** 2 + 1 - a)


class Analytic:
    """The network; counts the rows that it was asked for and that gradients went back through."""

    def __init__(self, source: torch.Tensor = SOURCE) -> None:
        self.source, self.forward, self.backward = source, 0, 0

    def cond(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.forward += len(x)
        return predict(x, sigma, self.source)

    def null(
        self, x: torch.Tensor, sigma: float, embedding: torch.Tensor, pictures: torch.Tensor
    ) -> torch.Tensor:
        self.forward += len(x)
        made = predict(x, sigma, embedding)
        if made.requires_grad:
            made.register_hook(self._back)
        return made

    def _back(self, gradient: torch.Tensor) -> None:
        self.backward += len(gradient)


def pivot(steps: int = 20, batch: int = 1, seed: int = 7) -> Trajectory:
    """DDIM inversion of pictures that the source text is about."""
    sigmas = VP.levels(sd_sigmas(), steps)
    x0 = torch.tanh(SOURCE.flatten(1) @ WEIGHTS).view(1, *PICTURE) + STD * noise(
        seed, batch, *PICTURE
    )

    def denoise(exploding: torch.Tensor, sigma: float) -> torch.Tensor:
        return exploding - sigma * predict(VP.from_host(exploding, sigma), sigma, SOURCE)

    return Trajectory(sigmas, all_latents(Ddim(), denoise, x0, sigmas), "ddim", "toy", "source")


def optimized(
    settings: Settings,
    trajectory: Trajectory,
    cfg: float = CFG,
    network: Analytic | None = None,
    start: torch.Tensor | None = None,
) -> Optimized:
    start = start if start is not None else SOURCE if settings.base == "source" else EMPTY
    return optimize(
        network or Analytic(),
        trajectory,
        start.expand(trajectory.batch, -1, -1).clone(),
        cfg,
        settings,
    )


def replay(trajectory: Trajectory, nulls: torch.Tensor, cfg: float = CFG) -> torch.Tensor:
    """Mean squared distances to the trajectory after every step [N, B] under embeddings [N, B, T,
    D]."""
    x, found, levels = trajectory.noise, [], trajectory.sigmas.flip(0).tolist()
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:], strict=False)):
        eps = predict(x, sigma, nulls[i])
        x = vp_step(
            x, eps + cfg * (predict(x, sigma, SOURCE) - eps), abar_of(sigma), abar_of(sigma_next)
        )
        found.append((x - trajectory.latents[trajectory.steps - 1 - i]).square().flatten(1).mean(1))
    return torch.stack(found)


def the_papers(
    trajectory: Trajectory, cfg: float = CFG, inner: int = 10, exploding: bool = False
) -> tuple[torch.Tensor, int]:
    """The reference's loop with torch's own Adam, for one picture, and how many inner steps it
    took.

    exploding: the loss in variance-exploding units, and the rule to stop in the same.
    """
    x, null, nulls, taken = trajectory.noise, EMPTY.clone(), [], 0
    levels = trajectory.sigmas.flip(0).tolist()
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:], strict=False)):
        a, b, wanted = (
            abar_of(sigma),
            abar_of(sigma_next),
            trajectory.latents[trajectory.steps - 1 - i],
        )
        unit = 1.0 / b if exploding else 1.0
        null = null.clone().detach().requires_grad_(True)
        adam = torch.optim.Adam([null], lr=1e-2 * (1.0 - i / 100.0), eps=1e-8 * unit)
        eps_c = predict(x, sigma, SOURCE)
        for _ in range(inner):
            eps = predict(x, sigma, null)
            loss = (
                torch.nn.functional.mse_loss(vp_step(x, eps + cfg * (eps_c - eps), a, b), wanted)
                * unit
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
            taken += 1
            if loss.item() < (1e-5 + i * 2e-5) * unit:
                break
        null = null.detach()
        nulls.append(null)
        eps = predict(x, sigma, null)
        x = vp_step(x, eps + cfg * (eps_c - eps), a, b)
    return torch.stack(nulls), taken


# the reference


@pytest.mark.parametrize(("steps", "cfg", "stops"), [(20, 7.5, False), (60, 1.05, True)])
def test_the_reference_is_the_papers_loop(steps: int, cfg: float, stops: bool) -> None:
    """Nulls, errors and rows: a prediction under the source, forward and backward of every inner
    step, the last one."""
    trajectory, network = pivot(steps), Analytic()
    expected, taken = the_papers(trajectory, cfg)
    found = optimized(PRESETS["reference"], trajectory, cfg, network)
    assert trajectory.steps < taken and (taken < 10 * trajectory.steps) == stops
    torch.testing.assert_close(found.nulls, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        found.error, replay(trajectory, expected, cfg), rtol=1e-6, atol=1e-12
    )
    assert found.forward_rows.tolist() == [
        2 * trajectory.steps + taken
    ] and found.backward_rows.tolist() == [taken]
    assert (network.forward, network.backward) == (2 * trajectory.steps + taken, taken)


def test_the_reference_does_not_depend_on_the_units_of_its_loss() -> None:
    """Oracle 25: in variance-exploding units, with the rule to stop rescaled, the same
    embeddings."""
    trajectory = pivot()
    torch.testing.assert_close(
        the_papers(trajectory, exploding=True)[0],
        optimized(PRESETS["reference"], trajectory).nulls,
        rtol=0,
        atol=1e-6,
    )


def test_more_than_a_hundred_steps_have_a_rate_above_zero() -> None:
    trajectory = pivot(120)
    found = optimized(PRESETS["reference"], trajectory)
    plain = replay(trajectory, EMPTY.expand(120, 1, -1, -1))
    assert torch.isfinite(found.nulls).all() and found.error.mean() < plain.mean()
    late = found.nulls[110] - found.nulls[109]
    assert 0.0 < late.abs().max() < 1e-2


def test_no_inner_step_is_plain_guidance() -> None:
    trajectory = pivot()
    found = optimized(dataclasses.replace(PRESETS["reference"], inner_steps=0), trajectory)
    assert torch.equal(found.nulls, EMPTY.expand(20, 1, -1, -1))
    torch.testing.assert_close(found.error, replay(trajectory, found.nulls), rtol=1e-9, atol=0)


# keep-best


ROUGH = Settings("adam", rate=0.3)


def test_keep_best_never_ends_a_step_worse_than_it_began() -> None:
    """Oracle 23, from a good start at a rate at which the reference's own rule does end worse."""
    trajectory = pivot()
    worse = optimized(ROUGH, trajectory, start=SOURCE)
    assert (worse.error > 1.05 * worse.before).any()
    kept = optimized(dataclasses.replace(ROUGH, keep_best=True), trajectory, start=SOURCE)
    assert (kept.error <= kept.before * (1 + 1e-9)).all()
    torch.testing.assert_close(kept.error, replay(trajectory, kept.nulls), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("reach", [0.05, 5.0])
def test_fast_never_ends_a_step_worse_than_it_began(reach: float) -> None:
    """Also where its first trial leads astray."""
    found = optimized(dataclasses.replace(PRESETS["fast"], reach=reach), pivot(batch=3))
    assert (found.error <= found.before * (1 + 1e-9)).all()
    assert (found.error < 0.99 * found.before).any()


# fast


def test_fast_comes_nearer_with_a_quarter_of_the_rows() -> None:
    trajectory = pivot(50)
    fast, slow = (optimized(PRESETS[name], trajectory) for name in ("fast", "reference"))
    rows = [int(each.forward_rows + each.backward_rows) for each in (fast, slow)]
    assert rows[0] < rows[1] / 4
    assert fast.error.mean() < slow.error.mean() / 10
    torch.testing.assert_close(fast.error, replay(trajectory, fast.nulls), rtol=1e-6, atol=1e-12)


def test_fast_gains_on_what_it_starts_from() -> None:
    """At every step the source's embedding has the inversion's own error; optimised, less is left
    in the end."""
    trajectory = pivot(50)
    start = replay(trajectory, SOURCE.expand(50, 1, -1, -1))
    assert optimized(PRESETS["fast"], trajectory).error.mean() < 0.5 * start.mean()


@pytest.mark.parametrize("reach", [0.03, 0.3])
def test_the_secant_finds_the_lowest_point_of_its_direction(reach: float) -> None:
    """Where predictions are linear in the embedding the slope there is 0, from a shorter trial or a
    longer one."""

    class Linear(Analytic):
        def null(
            self, x: torch.Tensor, sigma: float, embedding: torch.Tensor, pictures: torch.Tensor
        ) -> torch.Tensor:
            fixed = predict(x, sigma, SOURCE)
            return fixed + 0.3 * ((embedding - SOURCE).flatten(1) @ WEIGHTS).view(-1, *PICTURE)

    trajectory = pivot()
    x, levels = trajectory.noise, tuple(trajectory.sigmas.flip(0)[:2].tolist())
    problem = Problem(
        Linear(), x, trajectory.latents[-2] + 0.01 * noise(5, *x.shape), levels, CFG, SOURCE
    )
    null, _, before = Secant(dataclasses.replace(PRESETS["fast"], reach=reach), SOURCE)(problem, 0)
    eps, gradient = problem.gradient(null, problem.pictures)
    along = null - SOURCE
    assert problem.miss(eps, problem.pictures).square().mean() < 0.99 * before
    assert abs((gradient * along).sum()) < 1e-6 * gradient.norm() * along.norm()


def test_a_direction_that_leads_nowhere_is_not_taken() -> None:
    """Where a trial only moves the prediction sideways, half as far again from the trajectory, the
    start is kept."""

    class Sideways(Analytic):
        aside: torch.Tensor | None = None

        def null(
            self, x: torch.Tensor, sigma: float, embedding: torch.Tensor, pictures: torch.Tensor
        ) -> torch.Tensor:
            made = super().null(x, sigma, embedding, pictures)
            return made if self.aside is None else problem.cond + self.aside

    trajectory, network = pivot(), Sideways()
    levels = tuple(trajectory.sigmas.flip(0)[:2].tolist())
    problem = Problem(network, trajectory.noise, trajectory.latents[-2] + 0.01, levels, CFG, SOURCE)
    miss = problem.miss(problem.cond, problem.pictures)
    across = noise(6, *miss.shape)
    across -= miss * (across * miss).sum() / miss.square().sum()
    moved = problem.miss(problem.cond + across, problem.pictures) - miss
    network.aside = across * (0.7 * miss.norm() / moved.norm())
    null, eps, before = Secant(PRESETS["fast"], SOURCE)(problem, 0)
    assert torch.equal(null, SOURCE) and torch.equal(eps, problem.cond)
    assert (
        problem.miss(problem.cond + network.aside, problem.pictures).square().mean() / before
    ).item() < 1.6


class Line:
    """A problem whose prediction [P, 2, 1, 1] is its miss: (1, 0) at the start, and (a, b) at a
    trial of the length 1."""

    def __init__(self, a: float, b: float) -> None:
        self.trial = torch.tensor([a, b]).view(1, 2, 1, 1)
        self.lengths: list[float] = []

    def predict(self, embedding: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        self.lengths.append(float(embedding[0, 0, 0]))
        return self.trial

    def miss(self, eps: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return eps


def tried(a: float, b: float) -> tuple[list[float], float]:
    """The lengths that the secant tries, and the one that it begins the next step with."""
    solver = Secant(dataclasses.replace(PRESETS["fast"], reach=1.0), torch.ones(1, 1, 1))
    problem, null, rows = Line(a, b), torch.zeros(1, 1, 1), torch.tensor([0])
    start = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    solver._tries(problem, null, start, torch.ones(1, 1, 1), rows)  # type: ignore[arg-type]
    return problem.lengths, float(solver.length)


@pytest.mark.parametrize(
    ("a", "b_squared", "again"),
    [
        (0.2, 0.026, True),  # promises .59 of what the trial reached
        (0.2, 0.0275, False),  # .61
        (0.8, 0.72, True),  # the trial is worse than the start: promises .947 of the start's loss
        (0.8, 0.80, False),  # .952
    ],
)
def test_the_secant_goes_on_where_it_promises_enough(
    a: float, b_squared: float, again: bool
) -> None:
    assert len(tried(a, b_squared**0.5)[0]) == 1 + again


@pytest.mark.parametrize(
    ("a", "longer", "next_length"),
    [
        (0.5, 2.0, 2.0),  # the secant's length, and the next trial's
        (0.95, 10.0, 10.0),  # 20 by the secant: never more than ten trials
        (1.2, -3.0, 0.1),  # -5: never more than three back, and the next trial is ahead
        (-19.0, 0.05, 0.1),  # 1/20: as short as it says, and the next a tenth
    ],
)
def test_the_secants_length_is_bounded(a: float, longer: float, next_length: float) -> None:
    lengths, after = tried(a, 0.0)
    assert lengths == pytest.approx([1.0, longer], rel=1e-5)
    assert after == pytest.approx(next_length, rel=1e-5)


def test_the_secants_direction_is_scaled_by_the_gradients_so_far() -> None:
    """Mean squares decay by .9 a step, and a tenth keeps quiet coordinates from taking over."""
    solver, rows = Secant(PRESETS["fast"], torch.zeros(1, 1, 2)), torch.tensor([0])
    for gradient, expected in (
        ((3.0, 1.0), (-0.8100, -0.5864)),
        ((1.0, 3.0), (-0.3261, -0.9453)),
    ):
        found = solver._direction(torch.tensor(gradient).view(1, 1, 2), rows)
        assert found.flatten().tolist() == pytest.approx(expected, abs=1e-4)


def test_the_secants_first_trial_is_a_part_of_the_embeddings_length() -> None:
    assert torch.equal(
        Secant(Settings("secant"), SOURCE).length, 0.05 * SOURCE.flatten(1).norm(dim=1)
    )


def test_pictures_within_tolerance_are_left_alone_beside_others() -> None:
    batch = pivot(batch=2)
    errors = replay(batch, SOURCE.expand(20, 2, -1, -1))
    between = Settings("secant", 1, float(errors.mean()), 0.0)
    together = optimized(between, batch)
    moved = (together.nulls != SOURCE).flatten(2).any(2)
    assert moved.any() and not moved.all() and (moved[:, 0] != moved[:, 1]).any()
    for row in range(2):
        alone = optimized(
            between, dataclasses.replace(batch, latents=batch.latents[:, row : row + 1])
        )
        torch.testing.assert_close(together.nulls[:, row : row + 1], alone.nulls, rtol=0, atol=1e-6)


def test_fast_within_tolerance_asks_for_nothing_more() -> None:
    trajectory, network = pivot(), Analytic()
    found = optimized(
        dataclasses.replace(PRESETS["fast"], epsilon=1e3), trajectory, network=network
    )
    assert torch.equal(found.nulls, SOURCE.expand(20, 1, -1, -1))
    assert (network.forward, network.backward) == (20, 0)


def test_fast_counts_the_rows_it_asks_for() -> None:
    network = Analytic()
    found = optimized(PRESETS["fast"], pivot(batch=2), network=network)
    assert network.forward == int(found.forward_rows.sum()) and network.backward == int(
        found.backward_rows.sum()
    )


# both


@pytest.mark.parametrize("preset", PRESETS)
def test_every_picture_of_a_batch_is_optimised_as_if_alone(preset: str) -> None:
    batch = pivot(batch=3)
    together = optimized(PRESETS[preset], batch)
    for row in range(3):
        alone = dataclasses.replace(batch, latents=batch.latents[:, row : row + 1])
        one = optimized(PRESETS[preset], alone)
        torch.testing.assert_close(together.nulls[:, row : row + 1], one.nulls, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            together.error[:, row : row + 1], one.error, rtol=1e-4, atol=1e-9
        )
        if preset != "fast":  # which goes back through the first prediction of all pictures at once
            assert together.forward_rows[row] == one.forward_rows[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_without_guidance_embeddings_are_left_alone(preset: str) -> None:
    """Oracle 23: at cfg 1 nothing depends on them."""
    trajectory, network = pivot(), Analytic()
    found = optimized(PRESETS[preset], trajectory, cfg=1.0, network=network)
    start = SOURCE if preset == "fast" else EMPTY
    assert network.backward == (0 if start is EMPTY else int(found.backward_rows.sum()))
    assert torch.equal(found.nulls, start.expand(20, 1, -1, -1))
    torch.testing.assert_close(
        found.error, replay(trajectory, found.nulls, 1.0), rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize("at_source", [False, True])
def test_the_gradient_is_the_losss_slope(at_source: bool) -> None:
    """By central differences, in every coordinate."""
    trajectory = pivot(batch=2)
    x, wanted, levels = (
        trajectory.noise,
        trajectory.latents[-2],
        trajectory.sigmas.flip(0)[:2].tolist(),
    )
    where = (
        SOURCE.expand(2, -1, -1).clone() if at_source else EMPTY + 0.1 * noise(3, 2, TOKENS, WIDTH)
    )
    problem = Problem(
        Analytic(), x, wanted, (levels[0], levels[1]), CFG, where if at_source else None
    )
    everyone = torch.arange(2)
    found = problem.gradient_at_source() if at_source else problem.gradient(where, everyone)[1]

    def loss(embedding: torch.Tensor) -> torch.Tensor:
        return problem.miss(predict(x, levels[0], embedding), everyone).square().flatten(1).mean(1)

    for token in range(TOKENS):
        for column in range(WIDTH):
            nudge = torch.zeros_like(where)
            nudge[:, token, column] = 1e-5
            slope = (loss(where + nudge) - loss(where - nudge)) / 2e-5
            torch.testing.assert_close(found[:, token, column], slope, rtol=1e-5, atol=1e-12)


def test_the_way_back_is_scaled_to_one_for_half_precision() -> None:
    """A miss of 1e-9 would underflow in fp16; what the network is given to go back with is about
    1."""
    trajectory, given = pivot(), []

    class Watched(Analytic):
        def _back(self, gradient: torch.Tensor) -> None:
            given.append(gradient.abs().max().item())

    near = trajectory.latents[-2].clone()
    problem = Problem(
        Watched(), trajectory.noise, near, tuple(trajectory.sigmas.flip(0)[:2].tolist()), CFG
    )
    problem.pivot = (
        problem.landing(predict(trajectory.noise, problem.sigma, EMPTY), problem.pictures) + 1e-9
    )
    problem.gradient(EMPTY, problem.pictures)
    assert len(given) == 1 and 0.5 <= given[0] <= 2.0


def test_nan_is_an_error_that_names_the_step() -> None:
    class Broken(Analytic):
        def cond(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
            return super().cond(x, sigma) * (float("nan") if sigma < 5.0 else 1.0)

    trajectory = pivot()
    below = int((trajectory.sigmas.flip(0)[:-1] >= 5.0).sum()) + 1
    with pytest.raises(PivotError, match=f"null-text, step {below}"):
        optimized(PRESETS["reference"], trajectory, network=Broken())


def test_each_step_is_reported_with_its_error() -> None:
    trajectory, seen = pivot(), []
    start = EMPTY.clone()
    found = optimize(
        Analytic(),
        trajectory,
        start,
        CFG,
        PRESETS["reference"],
        lambda i, x, x0, e: seen.append((i, x, x0, e)),
    )
    assert [i for i, *_ in seen] == list(range(20))
    assert torch.equal(torch.stack([e for *_, e in seen]), found.error)
    after = [(x - trajectory.latents[19 - i]).square().flatten(1).mean(1) for i, x, *_ in seen]
    torch.testing.assert_close(torch.stack(after), found.error)
    assert (seen[-1][2] - trajectory.latents[0]).abs().mean() < (
        seen[0][2] - trajectory.latents[0]
    ).abs().mean()
    assert torch.equal(start, EMPTY), "the start is not changed"


# the correction


def test_rows_read_the_embedding_of_the_step() -> None:
    place = Place(3, 20, 1.0)
    both, single = NullText(), NullText(single_branch=True, base="source")
    assert both.uncond("source", place) == both.uncond("target", place)
    assert both.uncond("source", place).null and both.uncond("source", place).base == "negative"
    assert single.uncond("source", place).null and single.uncond("source", place).base == "source"
    assert single.uncond("target", place) == NEGATIVE
    assert not both.pinned


def test_null_text_without_embeddings_says_where_they_come_from() -> None:
    with pytest.raises(PivotError, match="Null-Text Optimize"):
        correction_for(pivot(), "null_text")


def test_another_cfg_than_the_optimised_one_is_remarked() -> None:
    trajectory = pivot()
    made = NullText(cfg=7.5, negative="empty")
    assert made.remark(trajectory, 7.5, "empty") == ""
    assert "cfg 7.5" in made.remark(trajectory, 5.0, "empty")


def test_another_negative_prompt_is_remarked_where_it_matters() -> None:
    """Under the source's pooled vector and sizes, the negative prompt is not in the source row at
    all."""
    trajectory = pivot()
    assert "negative prompt" in NullText(negative="empty").remark(trajectory, 7.5, "ugly")
    assert NullText(True, "source", negative="empty").remark(trajectory, 7.5, "ugly") == ""


def test_auto_takes_the_optimised_embeddings() -> None:
    correction = NullText(True, "source", 5.0)
    extras = {NULLS: torch.zeros(20, 1, TOKENS, WIDTH)}
    made = dataclasses.replace(pivot(), extras=extras, correction=recipe_of(correction))
    assert correction_for(made) == correction
    assert correction_for(made, "null_text") == correction
    assert correction_for(made, "direct").name == "direct"


@pytest.mark.parametrize("shape", [(20, 2, TOKENS, WIDTH), (20, 1, TOKENS * WIDTH), (20,)])
def test_embeddings_of_other_pictures_are_refused(shape: tuple[int, ...]) -> None:
    made = dataclasses.replace(pivot(), extras={NULLS: torch.zeros(shape)})
    with pytest.raises(PivotError, match=r"embeddings \[20, 1, T, D\], but got .* in null_text"):
        correction_for(made, "null_text")
