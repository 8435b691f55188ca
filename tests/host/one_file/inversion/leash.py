"""A correction by a leash, a method made up for tests (Nobody 2026, arXiv 2600.00004)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from ..core import options
from ..core.correction import Correction
from ..core.options import NodeText
from ..core.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class Leash(Correction):
    """After each step the source row is pulled towards the trajectory."""

    name: ClassVar[str] = "leash"
    label: ClassVar[str] = "pulled towards the trajectory"
    node: ClassVar[NodeText] = NodeText(
        "PivotLeash", "Leash", "Pulls the source row back.", ("leash correction",)
    )

    pull: float = options.fraction(1.0, "How far it is pulled after a step.")

    def source_after(self, x: torch.Tensor, trajectory: Trajectory, index: int) -> torch.Tensor:
        return torch.lerp(x, trajectory.latents[index].to(x), self.pull)
