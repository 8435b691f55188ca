"""Negative-Prompt Inversion (Miyake et al. 2023, arXiv 2305.16807): the source prompt takes the empty one's place."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch

from ..core.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class NegativePrompt:
    """Unconditional rows read the source prompt, so guidance cancels on the source row at any cfg."""

    name: str = "negative_prompt"
    label: str = "source prompt as the negative; as exact as DDIM at cfg 1"
    uncond: Literal["negative", "source"] = "source"
    pinned: bool = False

    def source_after(self, x: torch.Tensor, trajectory: Trajectory, index: int) -> torch.Tensor:
        return x
