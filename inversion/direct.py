"""Direct Inversion (Ju et al. 2023, arXiv 2310.01506): the source row is the trajectory itself."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from ..core.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class Direct:
    """After each step the source row is set to x*_{t-1}, exact whatever the cfg; the target is left alone.

    The reference adds the difference instead, measured in a first pass; setting it is the same to one ulp and
    needs no first pass (METHODS 9).
    """

    name: str = "direct"
    label: str = "exact source at any cfg"
    uncond: Literal["negative", "source"] = "negative"
    pinned: bool = True

    def source_after(self, x: torch.Tensor, trajectory: Trajectory, index: int) -> torch.Tensor:
        return trajectory.latents[index].to(x)
