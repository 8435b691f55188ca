"""Direct Inversion (Ju et al. 2023, arXiv 2310.01506): the source row is the trajectory itself."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from ..core import options
from ..core.correction import Correction
from ..core.options import NodeText
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

    node: ClassVar[NodeText] = NodeText(
        "PivotDirectInversion",
        "Direct Inversion",
        "Marks an inversion to be replayed with its source row set from the trajectory, which is "
        "exact at any cfg. Only needed for the reference's own form and its ablations: edit nodes "
        "set to auto are direct.",
        ("pnp inversion", "direct inversion", "source branch correction"),
    )

    legacy: bool = options.flag(
        False,
        "Adds the difference to the source row, as the reference does, instead of setting the row. "
        "The same to the last bit but one, and costs the source's rows.",
        advanced=True,
    )
    scale: float = options.fraction(
        1.0,
        "How much of the difference is added. 1 is exact; the paper's ablation tries 0.4 and 0.8.",
        step=0.05,
        advanced=True,
    )
    every: int = options.integer(
        1,
        1,
        999,
        "Only at every k-th step. 1 is exact; the paper's ablation tries 2 to 49.",
        advanced=True,
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
