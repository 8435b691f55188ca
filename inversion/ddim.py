"""DDIM inversion (Song et al. 2021, arXiv 2010.02502; as used by Mokady et al. 2022, arXiv
2211.09794, sec. 3.2)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.correction import Correction
from ..core.inverter import Inverter, Move, Step
from ..core.path import Denoise
from ..core.stepper import Moment, StepRule
from ..core.trajectory import Trajectory

EVALUATIONS = ("reference", "naive")


@dataclasses.dataclass(frozen=True)
class Ddim(Inverter):
    """Inverts with one prediction a step, at the lower latent."""

    name: ClassVar[str] = "ddim"
    label: ClassVar[str] = "one evaluation a step"

    evaluation: str = options.choice(
        "reference",
        EVALUATIONS,
        "Of ddim: where the network is asked. reference: at the time of the upper level, as public "
        "implementations do, and closer; naive: of the lower level.",
        advanced=True,
    )
    """The time at which the network sees the lower latent. `reference` is the upper level's, as in
    every public implementation. `naive` is the lower level's own, the formula as printed."""

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        # at level 0 there is no noise to predict, so that the naive step starts as the reference's
        reference = self.evaluation == "reference" or move.lower == 0.0
        at, path = move.upper if reference else move.lower, move.path
        eps = path.predict_eps(denoise, x, at)
        return Step(path.step(x, eps, move.lower, move.upper), path.denoised(x, eps, at))


@dataclasses.dataclass(frozen=True)
class DdimStep(StepRule):
    """The deterministic step of DDIM, which in the host's space is Euler's."""

    name: ClassVar[str] = "ddim"
    label: ClassVar[str] = "deterministic, the mathematics of the inversion"

    def step(
        self, x: torch.Tensor, denoised: torch.Tensor, now: Moment, state: Any
    ) -> torch.Tensor:
        eps = now.path.eps(x, denoised, now.sigma)
        return now.path.step(x, eps, now.sigma, now.sigma_next)


@dataclasses.dataclass(frozen=True)
class Uncorrected(Correction):
    """Plain DDIM, which guides the source row like the target.

    The source row drifts where the cfg is not the inversion's.
    """

    name: ClassVar[str] = "none"
    label: ClassVar[str] = "plain DDIM, drifts at another cfg than the inversion's"

    def remark(self, trajectory: Trajectory, cfg: float, negative: str) -> str:
        guidance = trajectory.guidance
        return (
            ""
            if cfg == guidance
            else f"the inversion was made at cfg {guidance:g}: use it here, or correction direct"
        )
