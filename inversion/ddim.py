"""DDIM inversion (Song et al. 2021, arXiv 2010.02502; as used by Mokady et al. 2022, arXiv
2211.09794, sec. 3.2)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from ..core.correction import Correction
from ..core.errors import PivotError
from ..core.inverter import Inverter, Step
from ..core.schedule import Denoise, ddim_step, predict_eps
from ..core.trajectory import Trajectory

EVALUATIONS = ("reference", "naive")


@dataclasses.dataclass(frozen=True)
class Ddim(Inverter):
    """One prediction a step, made at the lower latent.

    evaluation: the network sees the lower latent at the time of the upper level (`reference`, as
    every public implementation does) or of its own level (`naive`, the formula as printed).
    """

    name: ClassVar[str] = "ddim"
    label: ClassVar[str] = "one evaluation a step"

    evaluation: str = "reference"

    def __post_init__(self) -> None:
        if self.evaluation not in EVALUATIONS:
            raise PivotError(
                f"evaluation to be one of {EVALUATIONS}",
                repr(self.evaluation),
                "Choose one of them.",
            )

    def step(self, denoise: Denoise, x: torch.Tensor, lower: float, upper: float) -> Step:
        at = upper if self.evaluation == "reference" or lower == 0.0 else lower
        eps = predict_eps(denoise, x, at)
        return Step(ddim_step(x, eps, lower, upper), x * (1.0 + at * at) ** 0.5 - at * eps)


@dataclasses.dataclass(frozen=True)
class Uncorrected(Correction):
    """Plain DDIM: the source row is guided like the target and drifts when cfg is not the
    inversion's."""

    name: ClassVar[str] = "none"
    label: ClassVar[str] = "plain DDIM, drifts at another cfg than the inversion's"

    def remark(self, trajectory: Trajectory, cfg: float, negative: str) -> str:
        known = trajectory.guidance
        return (
            ""
            if cfg == known
            else f"the inversion was made at cfg {known:g}: use it here, or correction direct"
        )
