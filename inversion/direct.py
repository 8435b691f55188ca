"""Direct Inversion (Ju et al. 2023, arXiv 2310.01506): the source row is the trajectory itself."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from ..core.correction import Correction
from ..core.errors import PivotError
from ..core.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class Direct(Correction):
    """After each step the source row is set to x*_{t-1}, exact whatever the cfg; the target is left
    alone.

    The reference measures the difference in a first pass and adds it in a second; source rows are
    not edited, so that the difference is the same in both, and setting the row is the same to one
    ulp (METHODS 9).
    legacy: add the difference, and let the source row be run for it. The reference's ablations are
    legacy, too:
    scale: the part of the difference that is added; every: only at each k-th step, the first
    included.
    """

    name: ClassVar[str] = "direct"
    label: ClassVar[str] = "exact source at any cfg"

    legacy: bool = False
    scale: float = 1.0
    every: int = 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.scale <= 1.0 or self.every < 1:
            raise PivotError(
                "scale between 0 and 1 and every at least 1",
                f"{self.scale} and {self.every}",
                "1 and 1 bring the source back exactly.",
                "Direct Inversion",
            )

    @property
    def pinned(self) -> bool:
        return not self.legacy and self.scale == 1.0 and self.every == 1

    def source_after(self, x: torch.Tensor, trajectory: Trajectory, index: int) -> torch.Tensor:
        pivot = trajectory.latents[index].to(x)
        if self.pinned:
            return pivot
        step = trajectory.steps - 1 - index
        return x + (pivot - x) * self.scale if step % self.every == 0 else x
