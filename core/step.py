"""One step of an edit in one place: predict, guide, step, land, after_step.

The batch is [source; target 0; target 1; ...], each of B pictures. Samplers and guiders are thin
hosts of `EditStep`. They say how the network is asked and where controllers come in. Everything
else happens here, from inputs to outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from .control import Place, Reads
from .correction import SOURCE, Correction
from .errors import check_finite
from .guidance import Guidance, Guided
from .path import PATHS, Path
from .stepper import Moment, StepRule
from .trajectory import Trajectory


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The network's guided answer."""

    denoised: torch.Tensor
    """x0 of all rows."""
    guided: Guided | None = None
    """What the guidance rule made of the step, where a rule was asked."""


Predict = Callable[[torch.Tensor, Moment], Prediction]
"""The guided prediction at latents x, at a moment."""
Combine = Callable[[torch.Tensor, float], torch.Tensor]
"""Targets' x0 [n * B, C, H, W] of the guiding conditioned x0 of all rows, at a cfg."""
AfterStep = Callable[[torch.Tensor, Place], torch.Tensor]
"""The latents as controllers set them after the step at a place."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stepped:
    """Where a step has led."""

    x: torch.Tensor
    """The latents at the lower level."""
    denoised: torch.Tensor
    """The x0 that the step was heading for."""


@dataclasses.dataclass(frozen=True, eq=False)
class EditStep:
    """What a step of an edit consists of. The correction is held here and nowhere else."""

    trajectory: Trajectory
    correction: Correction
    guidance: Guidance
    rule: StepRule
    table: torch.Tensor | None = None
    """The model's own levels, ascending, off which the time of each step is read."""

    @property
    def path(self) -> Path:
        """The coordinates of the trajectory."""
        return PATHS[self.trajectory.path]

    @property
    def moments(self) -> tuple[Moment, ...]:
        """The steps of a run, from noise on."""
        levels = self.rule.levels(self.trajectory.steps)
        steps, sigmas = len(levels) - 1, self.trajectory.sigmas.tolist()
        places = [
            Place(i, steps, sigmas[upper], self._time(sigmas[upper]))
            for i, upper in enumerate(levels[:-1])
        ]
        return tuple(
            Moment(self.trajectory, self.path, place, upper, lower)
            for place, upper, lower in zip(places, levels, levels[1:], strict=False)
        )

    def _time(self, sigma: float) -> float | None:
        """The model's time at a level."""
        return None if self.table is None else self.path.time(self.table, sigma)

    @property
    def descending(self) -> torch.Tensor:
        """The levels of a run in sampling order, noise first, fp32: ComfyUI's SIGMAS."""
        return self.rule.descending(self.trajectory)

    def start(self, groups: int) -> torch.Tensor:
        """The latents that a run begins with: the trajectory's, once for each group of rows."""
        first = self.trajectory.latents[self.rule.levels(self.trajectory.steps)[0]]
        return torch.cat([first] * groups)

    def __call__(
        self, x: torch.Tensor, now: Moment, predict: Predict, after_step: AfterStep, state: Any
    ) -> Stepped:
        """The step at a moment, as often as the rule repeats it, with the rule's own state.

        Raises PivotError naming the step when NaN appears.
        """
        for repeat in range(self.rule.repeats(now.place)):
            upper = self.rule.again(x, now, state) if repeat else x
            prediction = predict(upper, now)
            denoised = self.guidance.limit(prediction.denoised, now)
            x = self.rule.step(upper, denoised, now, state)
            x = self.land(x, dataclasses.replace(prediction, denoised=denoised), now)
            # controllers last: a blend reads source rows as the correction has left them
            x = check_finite(after_step(x, now.place), "the edited latent", _where(now))
        return Stepped(x, denoised)

    def guide(
        self,
        cond: torch.Tensor,
        uncond: torch.Tensor,
        place: Place,
        cfg: float,
        combine: Combine,
    ) -> Prediction:
        """The guided x0 of all rows from the conditioned and the unconditioned one.

        cfg is the targets', and `combine` the host's guidance of them.
        """
        batch = self.trajectory.batch
        scale = self.guidance.scale(cfg, place)
        # x0 = X - sigma eps: the difference of predictions has the other sign than that of x0
        guided = self.guidance.guide((uncond - cond) / place.sigma, batch, place)
        cond = _guiding(cond, uncond, guided.delta, place.sigma)
        # targets go through the host, whose cfg patches of other packs must see them; source rows
        # must come back and go past it
        targets = combine(cond, scale)
        source = uncond[:batch] + (cond[:batch] - uncond[:batch]) * self.source_cfg(scale)
        return Prediction(torch.cat([source, targets]), guided)

    def land(self, x: torch.Tensor, prediction: Prediction, now: Moment) -> torch.Tensor:
        """The rows after a step, where the step rule left them at x.

        Guidance pulls first, so that the correction has the last word on source rows.
        """
        batch = self.trajectory.batch
        if prediction.guided is not None:
            x = self.guidance.after_step(x, prediction.denoised, prediction.guided, now)
        source = self.correction.source_after(x[:batch], self.trajectory, now.lower)
        return torch.cat([source, self.correction.targets_after(x[batch:], x[:batch], source)])

    def source_cfg(self, cfg: float) -> float:
        """The cfg of source rows, which is the targets' unless the guidance rule has another."""
        source_cfg = self.guidance.source_cfg
        return cfg if source_cfg is None else source_cfg

    def cancels(self, place: Place, cfg: float) -> bool:
        """Whether guidance leaves source rows alone.

        It does where they are set afterwards, where their unconditional text is the source prompt,
        and where their cfg is 1.
        """
        reads_source = self.correction.uncond("source", place) == SOURCE
        return self.correction.pinned or reads_source or self.source_cfg(cfg) == 1.0

    def source_reads(self, place: Place, cfg: float, asked: set[Reads]) -> tuple[bool, bool]:
        """Whether anybody reads the source's conditioned and its unconditioned prediction or
        attention now.

        `asked` is what the controllers read.
        """
        asked = asked | {self.rule.reads(place)}
        cond = not self.correction.pinned or bool(asked & {"cond", "both"})
        return cond, "both" in asked or not self.cancels(place, cfg)


def _guiding(
    cond: torch.Tensor, uncond: torch.Tensor, delta: torch.Tensor, sigma: float
) -> torch.Tensor:
    """The conditioned x0 whose difference to the unconditioned one is `delta`, in eps."""
    # bit for bit where the rule left all of the difference, or nothing, as plain guidance does
    whole = delta == (uncond - cond) / sigma
    return torch.where(whole, cond, torch.where(delta == 0.0, uncond, uncond - sigma * delta))


def _where(now: Moment) -> str:
    return f"replay, step {now.place.step + 1} of {now.place.steps}, sigma {now.sigma:.4g}"
