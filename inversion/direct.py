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
    """Sets the source row to x*_{t-1} after each step, which is exact whatever the cfg.

    Target rows are left alone, unless `add_to` says otherwise. The reference measures the row's
    difference in a first pass and adds it in a second. Source rows are not edited, so that the
    difference is the same in both passes, and setting the row gives the same to one ulp (METHODS
    9).
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
    """Whether the difference is added, for which the source row has to be run."""
    scale: float = options.fraction(
        1.0,
        "How much of the difference is added. 1 is exact; the paper's ablation tries 0.4 and 0.8.",
        step=0.05,
        advanced=True,
    )
    """The part of the difference that is added. Any but 1 is run as `legacy` is."""
    every: int = options.integer(
        1,
        1,
        999,
        "Only at every k-th step. 1 is exact; the paper's ablation tries 2 to 49.",
        advanced=True,
    )
    """The difference is added at each k-th step, the first included."""
    add_to: str = options.choice(
        "source",
        ("source", "both"),
        "Whose row the difference is added to. source: the source's alone; both: the source's "
        "difference goes to the target too, which holds it back (the paper's ablation add source).",
        optional=True,
        advanced=True,
    )
    """With `both` the source row has to be run, as with `legacy`."""

    @property
    def pinned(self) -> bool:
        whole = self.scale == 1.0 and self.every == 1
        return whole and not self.legacy and self.add_to == "source"

    def source_after(self, x: torch.Tensor, trajectory: Trajectory, index: int) -> torch.Tensor:
        pivot = trajectory.latents[index].to(x)
        if self.pinned:
            return pivot  # x + (pivot - x) would round
        step = trajectory.steps - 1 - index
        return x + (pivot - x) * self.scale if step % self.every == 0 else x

    def targets_after(
        self, x: torch.Tensor, before: torch.Tensor, source: torch.Tensor
    ) -> torch.Tensor:
        """Every target row x, with its source's difference where it is asked for."""
        if self.add_to == "source":
            return x
        return x + torch.cat([source - before] * (len(x) // len(source)))
