"""Proximal guidance (Han et al. 2023, ProxEdit, arXiv 2306.05414, eq. 7): small differences between
prompts are noise.

delta = eps_c - eps_u is put through a proximal operator: what is below a threshold does not guide,
so that the picture stays where the prompts agree. ProxNPI is this rule with Negative-Prompt
Inversion, ProxMasaCtrl with MasaCtrl.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import torch

from ..core import options
from ..core.control import Place, window_open
from ..core.errors import PivotError
from ..core.guidance import Guidance, Guided, source_cfg_option
from ..core.path import TIMES
from ..core.stepper import Moment

Operator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""An operator prox(delta, threshold), where the threshold is broadcast."""
POPULATIONS = ("target", "legacy")


def soft(delta: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """The proximal operator of L1, which is sign(d) (|d| - threshold)+."""
    return delta - torch.maximum(torch.minimum(delta, threshold), -threshold)


def hard(delta: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """The proximal operator of L0, which is d where |d| > threshold, else 0."""
    return torch.where(delta.abs() > threshold, delta, torch.zeros_like(delta))


def legacy_l1(delta: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """What the reference's `l1` computes: `soft`, and then once more a shift on either side.

    The second shift turns some signs, which is the reference's quirk.
    """
    shrunk = soft(delta, threshold)
    shifted = torch.where(shrunk > 0, shrunk - threshold, shrunk)
    return torch.where(shifted < 0, shifted + threshold, shifted)


OPERATORS: dict[str, Operator] = {
    "soft": soft,
    "hard": hard,
    "legacy_l1": legacy_l1,
}
ALIASES = {"legacy_l0": "soft"}
"""The reference calls `l0` what is the proximal operator of L1; graphs may go on saying so."""
OPERATOR_NAMES = ("soft", "hard", "legacy_l0", "legacy_l1")
"""Every name of an operator, in the order of the nodes' choice, which graphs hold by name."""


@dataclasses.dataclass(frozen=True)
class Proximal(Guidance):
    """Guides only by what differs enough between the prompts, and pulls to the source where nothing
    does."""

    title: ClassVar[str] = "Proximal Guidance"

    operator: str = options.choice(
        "soft",
        OPERATOR_NAMES,
        "What becomes of differences between the prompts' predictions. cfg: all guide; soft: "
        "shrunk by the threshold (the reference's l0); hard: only those above it; legacy_l1: the "
        "reference's l1, which turns some signs.",
    )
    """One of OPERATOR_NAMES."""
    quantile: float = options.fraction(
        0.4,
        "The part of the differences that does not guide. Higher keeps more and edits less; 0.4 to "
        "0.8.",
    )
    """The threshold is this quantile of |delta|, where 0 is no threshold."""
    threshold: float = options.number(
        0.0,
        0.0,
        10.0,
        0.01,
        "A fixed threshold in units of noise, in the quantile's place; 0 takes the quantile. 0.01 "
        "to 0.2.",
        advanced=True,
    )
    """The threshold itself, in units of eps, where it is not 0."""
    population: str = options.choice(
        "target",
        POPULATIONS,
        "What the quantile is taken over. target: each target's own differences; legacy: source "
        "and target together as in the reference, whose 0.7 is then the target's 0.4.",
        advanced=True,
    )
    """`target` gives every target row a quantile of its own, and thresholds targets only. `legacy`
    has one quantile over source and targets of a picture, and thresholds all. With one target and
    a source difference of 0 its quantile q is the target's 2q - 1."""
    window: tuple[float, float] = options.window(
        (0.0, 1.0),
        "First thresholded step, as a fraction of all; before it guidance is plain.",
        "Last thresholded step, as a fraction of all; after it guidance is plain.",
    )
    """(start, end) of the thresholding, in fractions of the steps. Outside of it guidance is plain
    and nothing pulls."""
    inversion_rate: float = options.fraction(
        0.0,
        "Inversion guidance: how far latents move to the trajectory after a step where nothing is "
        "edited. 1 keeps these places exactly; 0 is off, and right where something is to move "
        "away. Papers 0.1 to 1.",
    )
    """By how much latents move to the trajectory where nothing is edited, after a step in
    guide_window. Source rows are edited nowhere, unless their differences are thresholded too."""
    reconstruction_rate: float = options.fraction(
        0.0,
        "Reconstruction guidance: the same for the predicted picture, towards the source picture. "
        "0 is off.",
        advanced=True,
    )
    """By how much the step's x0 moves to the picture itself, in the same places and steps."""
    guide_window: tuple[float, float] = options.window(
        (0.6, 1.0),
        "First step with either, as a fraction of all. Lower keeps more; papers 0.4 to 0.6.",
        "Last step with either, as a fraction of all.",
        prefix="guide_",
    )
    """(start, end) of both pulls, in fractions of the steps, where guide_time is 0."""
    dilation: int = options.integer(
        1,
        0,
        32,
        "By how many latent pixels (8 picture pixels) edited places grow before that. Higher keeps "
        "less.",
        advanced=True,
    )
    """By how many latent pixels edited places grow before anything pulls."""
    source_cfg: float | None = source_cfg_option()
    """The cfg of source rows; None is the targets'."""
    guide_time: float = options.number(
        0.0,
        0.0,
        TIMES,
        1.0,
        "Both pulls by the model's time, 1000 for noise to 0 for the picture, in guide_start and "
        "guide_end's place: steps below it pull, whatever the number of steps. Papers 400 to "
        "1000; 0 is off.",
        optional=True,
        advanced=True,
    )
    """The model's time under which both pull, the authors' recon_t; 0 leaves it to guide_window."""

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        if not window_open(self.window, place, place.steps):
            return Guided(delta)
        threshold = self._threshold(delta, batch)
        sparse = OPERATORS[ALIASES.get(self.operator, self.operator)](delta, threshold)
        # as in the reference, the mask is of what the operator left: soft has shrunk it already
        edit = (sparse.abs() > threshold).to(delta)
        if self.population == "target":
            sparse = torch.cat([delta[:batch], sparse[batch:]])
            edit[:batch] = 0.0
        pulls = self.inversion_rate > 0.0 or self.reconstruction_rate > 0.0
        if not pulls or not self._pulls(place):
            return Guided(sparse)
        if self.dilation:
            edit = torch.nn.functional.max_pool2d(edit, 2 * self.dilation + 1, 1, self.dilation)
        return Guided(sparse, edit)

    def _pulls(self, place: Place) -> bool:
        """Whether it is late enough for both pulls."""
        if not self.guide_time:
            return window_open(self.guide_window, place, place.steps)
        if place.time is None:
            raise PivotError(
                "the model's time at every step, for guide_time",
                f"none at step {place.step + 1} of {place.steps}",
                "Sample with the Edit Sampler or the Edit Guider, or set guide_time to 0.",
                self.title,
            )
        return place.time < self.guide_time

    def _threshold(self, delta: torch.Tensor, batch: int) -> torch.Tensor:
        """The threshold of every row, [rows, 1, 1, 1]."""
        if self.threshold > 0.0 or self.quantile == 0.0:
            return delta.new_full((len(delta), 1, 1, 1), self.threshold)
        sizes = delta.abs().flatten(1)
        if self.population == "legacy":
            pictures = sizes.view(-1, batch, sizes.shape[1]).transpose(0, 1).flatten(1)
            # [source; targets] repeat the pictures, and so do their quantiles
            limits = quantile(pictures, self.quantile).repeat(len(delta) // batch)
        else:
            limits = quantile(sizes, self.quantile)
        return limits[:, None, None, None]

    def after_step(
        self, x: torch.Tensor, denoised: torch.Tensor, guided: Guided, now: Moment
    ) -> torch.Tensor:
        if guided.edit is None:
            return x
        pivots, rows = now.trajectory, len(x) // now.trajectory.batch
        keep = 1.0 - guided.edit
        pivot, picture = (torch.cat([pivots.latents[i]] * rows).to(x) for i in (now.lower, 0))
        if self.reconstruction_rate:
            signal = now.path.signal(now.sigma_next)
            x = x - signal * self.reconstruction_rate * (denoised - picture) * keep
        if self.inversion_rate:
            # x - (x - pivot) would round: at a rate of 1 these places are exact
            x = torch.where(
                keep * self.inversion_rate == 1.0,
                pivot,
                x - self.inversion_rate * (x - pivot) * keep,
            )
        return x


def quantile(values: torch.Tensor, q: float) -> torch.Tensor:
    """The quantile of every row [R, n], linear between neighbours as torch.quantile's."""
    # torch.quantile refuses more than 2^24 numbers, which a large picture has
    place = q * (values.shape[1] - 1)
    below, part = math.floor(place), place - math.floor(place)
    ordered = values.sort(dim=1).values
    return torch.lerp(ordered[:, below], ordered[:, min(below + 1, values.shape[1] - 1)], part)
