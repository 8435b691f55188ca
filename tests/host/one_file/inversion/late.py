"""A late start, a method made up for tests (Nobody 2026, arXiv 2600.00005)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.options import NodeText
from ..core.stepper import Moment, StepRule


@dataclasses.dataclass(frozen=True)
class Late(StepRule):
    """DDIM's steps without the first ones."""

    name: ClassVar[str] = "late"
    label: ClassVar[str] = "without the first steps"
    node: ClassVar[NodeText] = NodeText(
        "PivotLate", "Late", "Leaves out the first steps of the replay.", ("late start", "skip")
    )

    skipped: int = options.integer(1, 0, 998, "How many steps are left out.")

    def levels(self, steps: int) -> tuple[int, ...]:
        return tuple(range(max(steps - self.skipped, 1), -1, -1))

    def step(
        self, x: torch.Tensor, denoised: torch.Tensor, now: Moment, state: Any
    ) -> torch.Tensor:
        eps = now.path.eps(x, denoised, now.sigma)
        return now.path.step(x, eps, now.sigma, now.sigma_next)
