"""Null-Text Inversion (Mokady et al. 2022, arXiv 2211.09794, sec. 3.3): an optimised empty prompt
for every step.

The steps are taken from noise to picture. At each of them the unconditional embedding is moved
until guidance leads from the latent that was reached to the next latent of the trajectory. The
preset `reference` does it as the paper does. `fast` comes nearer with far fewer network rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol

import torch

from ..core import options
from ..core.control import Branch, Place
from ..core.correction import NEGATIVE, Correction, Uncond
from ..core.errors import PivotError, check_finite
from ..core.gradients import pull_back
from ..core.path import VP
from ..core.trajectory import Trajectory

NULLS = "nulls"
"""The extra that holds the optimised embeddings, [N, B, T, D]."""


@dataclasses.dataclass(frozen=True)
class NullText(Correction):
    """Unconditional rows read the step's optimised embedding, under which guidance follows the
    trajectory."""

    name: ClassVar[str] = "null_text"
    label: ClassVar[str] = "an optimised empty prompt for every step, from Null-Text Optimize"

    single_branch: bool = options.flag(False, "Whether targets read the negative prompt.")
    """Only the source row reads the embedding, which leaves edits freer (Ju et al. 2023, arXiv
    2310.01506, ablations)."""
    base: Literal["negative", "source"] = options.choice(
        "negative", ("negative", "source"), "Whose pooled vector and sizes go with the embedding."
    )
    """The conditioning that the embedding takes the text's place in. Of SDXL the pooled vector and
    the sizes stay."""
    cfg: float = options.number(7.5, 0.0, 30.0, 0.1, "What the embedding was optimised at.")
    """The source comes back exactly at this cfg alone."""
    negative: str = options.text("", "The fingerprint of the negative prompt.")
    """The source comes back exactly under this negative prompt alone, where `base` says so."""

    def uncond(self, branch: Branch, place: Place) -> Uncond:
        return (
            NEGATIVE if self.single_branch and branch == "target" else Uncond(self.base, null=True)
        )

    def check(self, trajectory: Trajectory) -> None:
        nulls = trajectory.extras.get(NULLS)
        if nulls is None:
            raise PivotError(
                "an inversion with optimised embeddings",
                "one without",
                "Connect it through Null-Text Optimize, or choose another correction.",
                "null_text",
            )
        if nulls.ndim != 4 or nulls.shape[:2] != (trajectory.steps, trajectory.batch):
            raise PivotError(
                f"embeddings [{trajectory.steps}, {trajectory.batch}, T, D]",
                str(list(nulls.shape)),
                "Pass one for every step and picture.",
                "null_text",
            )

    def remark(self, trajectory: Trajectory, cfg: float, negative: str) -> str:
        if cfg != self.cfg:
            return f"the embeddings were optimised at cfg {self.cfg:g}: use it here for the source"
        if self.base == "negative" and negative != self.negative:
            return (
                "the embeddings were optimised with another negative prompt: use that one here "
                "for the source"
            )
        return ""


class Network(Protocol):
    """A model's noise predictions, which have the shape of the latents x [P, C, H, W]."""

    def cond(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """The prediction under the source prompt, of all pictures, without a gradient."""

    def null(
        self, x: torch.Tensor, sigma: float, embedding: torch.Tensor, pictures: torch.Tensor
    ) -> torch.Tensor:
        """The prediction under embeddings [P, T, D], differentiable in them.

        pictures [P] are the indices of the pictures that the rows of x belong to.
        """


@dataclasses.dataclass(frozen=True)
class Settings:
    """How embeddings are optimised."""

    solver: Literal["adam", "secant"]
    """`adam` starts from the embedding of the step before, `secant` from the source prompt's."""
    inner_steps: int = 10
    """At most so many iterations at a step."""
    epsilon: float = 1e-5
    """A picture is done at step i where its loss is below epsilon + i * growth. The loss is in
    units of variance-preserving latents."""
    growth: float = 2e-5
    """By how much that bound grows at each step."""
    rate: float = 1e-2
    """Adam's rate, which falls by rate / 100 a step as in the reference."""
    reach: float = 0.05
    """The length of `secant`'s first trial, as a share of the embedding's length."""
    keep_best: bool = False
    """The best embedding of a step is taken, the first one included, so that the loss never rises.
    Without it the last one is taken, as in the reference."""

    @property
    def single_branch(self) -> bool:
        """Whether source rows alone read the embedding.

        Near the source prompt an embedding would push edits away from what the source shows.
        """
        return self.solver == "secant"

    @property
    def base(self) -> Literal["negative", "source"]:
        """The conditioning that the embedding takes the text's place in."""
        return "source" if self.solver == "secant" else "negative"


PRESETS = {
    "fast": Settings("secant", 1, 1e-5, 0.0),
    "reference": Settings("adam"),
    "reference_keep_best": Settings("adam", keep_best=True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Optimized:
    """The embeddings of a trajectory's steps, and what they are worth and cost."""

    nulls: torch.Tensor
    """The chosen embeddings [N, B, T, D], the noisiest step first."""
    before: torch.Tensor
    """The loss of each step at its first embedding [N, B]."""
    error: torch.Tensor
    """The loss at the chosen one [N, B], which is the squared distance to the trajectory."""
    forward_rows: torch.Tensor
    """How many rows the network ran for each picture [B]."""
    backward_rows: torch.Tensor
    """How many of them a gradient went back through [B]."""


class Problem:
    """One step, in which guidance under an embedding should lead from x to `pivot`.

    x [B, C, H, W] stands at `sigma` and the pivot at `sigma_next`. source is the source prompt's
    embedding [B, T, D], where a solver starts there. The conditional prediction is then the first
    unconditional one, too. It is predicted once, with a graph that one gradient can follow.
    """

    def __init__(
        self,
        network: Network,
        x: torch.Tensor,
        pivot: torch.Tensor,
        levels: tuple[float, float],
        cfg: float,
        source: torch.Tensor | None = None,
    ) -> None:
        self.network, self.x, self.pivot, self.cfg = network, x, pivot, cfg
        self.sigma, self.sigma_next = levels
        self.forward_rows, self.backward_rows = torch.zeros(2, len(x), dtype=torch.long)
        self.pictures = torch.arange(len(x))
        self.source = source
        if source is None:
            self.forward_rows += 1
            self._first = network.cond(x, self.sigma)
        else:
            self.source = source.detach().requires_grad_(True)
            with torch.enable_grad():
                self._first = self.predict(self.source, self.pictures)
        self.cond = self._first.detach()

    def guided(self, eps: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """The guided prediction of some pictures over the unconditional one, eps."""
        return eps + self.cfg * (self.cond[pictures] - eps)

    def denoised(self, eps: torch.Tensor) -> torch.Tensor:
        """The x0 [B, C, H, W] that all pictures are heading for under eps."""
        return VP.denoised(self.x, self.guided(eps, self.pictures), self.sigma)

    def landing(self, eps: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """The latents that eps leads some pictures to at `sigma_next`."""
        return VP.step(self.x[pictures], self.guided(eps, pictures), self.sigma, self.sigma_next)

    def miss(self, eps: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """The difference of those latents and the pivot."""
        return self.landing(eps, pictures) - self.pivot[pictures]

    def predict(self, embedding: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """The unconditional prediction of some pictures, whose rows are counted."""
        self.forward_rows[pictures] += 1
        return self.network.null(self.x[pictures], self.sigma, embedding, pictures)

    def gradient(
        self, embedding: torch.Tensor, pictures: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction, and the loss's gradient with respect to the embedding."""
        embedding = embedding.detach().requires_grad_(True)
        with torch.enable_grad():
            eps = self.predict(embedding, pictures)
        return eps.detach(), self._back(eps, embedding, pictures)

    def gradient_at_source(self) -> torch.Tensor:
        """The loss's gradient at the source prompt's embedding, which needs no further prediction.

        It can be asked for once, because the graph goes with the first answer.
        """
        if self.source is None:
            raise PivotError(
                "a problem that starts from the source prompt", "another", "Pass `source`."
            )
        # the graph holds the whole network's activations: free it as soon as it has been used
        first, self._first = self._first, self.cond
        return self._back(first, self.source, self.pictures)

    def _back(
        self, eps: torch.Tensor, embedding: torch.Tensor, pictures: torch.Tensor
    ) -> torch.Tensor:
        """The loss's gradient with respect to the embedding that eps was predicted under.

        The miss goes back scaled to about 1, by a power of two, so that half precision does not
        underflow and no bit is rounded.
        """
        miss = self.miss(eps.detach(), pictures)
        # how far the landing moves with eps: guidance and the step are linear in it
        moved = (1.0 - self.cfg) * (self.sigma_next - self.sigma)
        slope = moved / VP.scale(self.sigma_next)
        (back,) = pull_back(eps, [embedding], miss, miss.abs().amax())
        if back is None:
            raise PivotError(
                "a network that reads the embedding",
                "one that does not",
                "Remove patches that replace its text.",
                "null-text",
            )
        self.backward_rows[pictures] += 1
        gradient: torch.Tensor = back * slope * 2.0 / miss[0].numel()
        return gradient


def _loss(miss: torch.Tensor) -> torch.Tensor:
    """The mean square of each picture's miss [B], on the CPU, where pictures are chosen."""
    return miss.square().flatten(1).mean(1).cpu()


class Solver(Protocol):
    """Looks for the embeddings of one step, and may remember what the steps before have shown."""

    def __call__(
        self, problem: Problem, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings [B, T, D], the predictions under them [B, C, H, W], and the loss before
        [B]."""


class Adam:
    """The reference's solver: a fresh Adam at each step, from the embedding of the step before.

    Its quirk is faithful: the loss that ends the search is the one before the last move.
    """

    def __init__(self, settings: Settings, start: torch.Tensor) -> None:
        self.settings, self.embedding = settings, start

    def __call__(
        self, problem: Problem, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rate = self.settings.rate * max(1.0 - step / 100.0, 0.01)
        tolerance = self.settings.epsilon + step * self.settings.growth
        null = self.embedding.clone()
        best, lowest = null.clone(), torch.full((len(null),), torch.inf, dtype=problem.x.dtype)
        first, second = torch.zeros_like(null), torch.zeros_like(null)
        # at cfg 1 the embedding has no weight, and there is nothing to move it by
        active = problem.pictures if problem.cfg != 1.0 else problem.pictures[:0]
        before = lowest.clone()
        for k in range(1, self.settings.inner_steps + 1):
            if not len(active):
                break
            eps, gradient = problem.gradient(null[active], active)
            loss = _loss(problem.miss(eps, active))
            if k == 1:
                before = loss
            lower = loss < lowest[active]
            best[active[lower]], lowest[active[lower]] = null[active[lower]], loss[lower]
            first[active] = 0.9 * first[active] + 0.1 * gradient
            second[active] = 0.999 * second[active] + 0.001 * gradient.square()
            step_size = (first[active] / (1 - 0.9**k)) / (
                (second[active] / (1 - 0.999**k)).sqrt() + 1e-8
            )
            null[active] = null[active] - rate * step_size
            # as in the reference, a picture below the tolerance has been moved once more by now
            active = active[loss >= tolerance]
        eps = problem.predict(null, problem.pictures)
        if self.settings.keep_best:
            null, eps = self._best(problem, null, eps, best, lowest)
        self.embedding = null
        return (
            null,
            eps,
            before if torch.isfinite(before).all() else _loss(problem.miss(eps, problem.pictures)),
        )

    def _best(
        self,
        problem: Problem,
        null: torch.Tensor,
        eps: torch.Tensor,
        best: torch.Tensor,
        lowest: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best embeddings in place of last ones that are worse."""
        worse = (_loss(problem.miss(eps, problem.pictures)) > lowest).nonzero()[:, 0]
        if len(worse):
            null[worse] = best[worse]
            eps[worse] = problem.predict(best[worse], worse)
        return null, eps


class Secant:
    """Starts each step from the source prompt's embedding, where guidance cancels.

    It needs no prediction to begin with. The error there is the inversion's own and small, and the
    prediction is nearly linear in the embedding. So one direction is enough: the gradient over its
    root mean square through the steps. A secant through a trial says how far to go along it.
    """

    def __init__(self, settings: Settings, start: torch.Tensor) -> None:
        self.settings, self.start = settings, start
        self.squares = torch.zeros_like(start)
        self.length = settings.reach * start.flatten(1).norm(dim=1)

    def __call__(
        self, problem: Problem, step: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        null, eps = self.start.clone(), problem.cond.clone()
        loss = _loss(problem.miss(eps, problem.pictures))
        before, tolerance = loss.clone(), self.settings.epsilon + step * self.settings.growth
        for k in range(self.settings.inner_steps):
            active = (loss > tolerance).nonzero()[:, 0]
            if not len(active):
                break
            gradient = (
                problem.gradient(null[active], active)[1]
                if k
                else problem.gradient_at_source()[active]
            )
            direction = self._direction(gradient, active)
            for embedding, prediction, lower, rows in self._tries(
                problem, null[active], eps[active], direction, active
            ):
                better = lower < loss[rows]
                rows = rows[better]
                null[rows], eps[rows] = embedding[better], prediction[better]
                loss[rows] = lower[better]
        return null, eps, before

    def _tries(
        self,
        problem: Problem,
        null: torch.Tensor,
        eps: torch.Tensor,
        direction: torch.Tensor,
        active: torch.Tensor,
    ) -> list[_Try]:
        """A trial along the direction, and a longer one where a secant promises much more."""
        trial = null + self.length[active, None, None] * direction
        prediction = problem.predict(trial, active).detach()
        miss, moved = (
            problem.miss(eps, active),
            problem.miss(eps, active) - problem.miss(prediction, active),
        )
        factor = (miss * moved).flatten(1).sum(1) / moved.square().flatten(1).sum(1).clamp_min(
            1e-30
        )
        promised = _loss(miss - factor[:, None, None, None] * moved)
        tries = [(trial, prediction, _loss(problem.miss(prediction, active)), active)]
        reached, now = tries[0][2], _loss(miss)
        # a second try costs a row: it has to promise 40 % after a trial that helped, and only 5 %
        # after one that did not, because there the trial was the wrong length
        again = promised < torch.where(reached < now, 0.6 * reached, 0.95 * now)
        if again.any():
            rows, length = (
                active[again],
                factor[again].clamp(-3.0, 10.0) * self.length[active[again]],
            )
            longer = null[again] + length[:, None, None] * direction[again]
            prediction = problem.predict(longer, rows).detach()
            tries.append((longer, prediction, _loss(problem.miss(prediction, rows)), rows))
        # the next step begins with the length that would have been right in this one
        self.length[active] = self.length[active] * factor.clamp(0.1, 10.0)
        return tries

    def _direction(self, gradient: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
        """The unit vector downhill, in coordinates scaled by their root mean square gradient so
        far."""
        mean = gradient.square().flatten(1).mean(1).clamp_min(1e-30)[:, None, None]
        # gradients are compared by their shapes: their size differs by orders between the steps
        self.squares[active] = 0.9 * self.squares[active] + 0.1 * gradient.square() / mean
        downhill = -gradient / mean.sqrt() / (self.squares[active].sqrt() + 0.1)
        unit: torch.Tensor = (
            downhill / downhill.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]
        )
        return unit


_Try = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
SOLVERS: dict[str, Callable[[Settings, torch.Tensor], Solver]] = {"adam": Adam, "secant": Secant}


def optimize(
    network: Network,
    trajectory: Trajectory,
    start: torch.Tensor,
    cfg: float,
    settings: Settings,
    on_step: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None,
) -> Optimized:
    """Optimises the embeddings for every step of a trajectory.

    start [B, T, D] is fp32: the negative prompt's text for `adam`, the source prompt's for
    `secant`. on_step(i, x, denoised, error) is called after each step. There x [B, C, H, W] is
    where the step led, and denoised the x0 it was heading for. Raises PivotError when NaN appears.
    """
    x, levels = trajectory.noise.to(start.device), trajectory.sigmas.flip(0).tolist()
    solver = SOLVERS[settings.solver](settings, start)
    nulls, before, error = [], [], []
    rows = torch.zeros(2, trajectory.batch, dtype=torch.long)
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:], strict=False)):
        pivot = trajectory.latents[trajectory.steps - 1 - i].to(x)
        source = start if settings.base == "source" else None
        problem = Problem(network, x, pivot, (sigma, sigma_next), cfg, source)
        null, eps, first = solver(problem, i)
        # the next step starts from where this one led, so that it makes good for what this missed
        x = check_finite(
            problem.landing(eps, problem.pictures),
            "the optimised latent",
            f"null-text, step {i + 1}",
        )
        nulls.append(null.cpu())
        before.append(first)
        error.append(_loss(x - pivot))
        rows += torch.stack([problem.forward_rows, problem.backward_rows])
        if on_step is not None:
            on_step(i, x, problem.denoised(eps), error[-1])
    return Optimized(torch.stack(nulls), torch.stack(before), torch.stack(error), rows[0], rows[1])
