"""A hasty inversion, a method made up for tests (Nobody 2026, arXiv 2600.00003)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.inverter import Inverter, Move, Step
from ..core.path import Denoise


@dataclasses.dataclass(frozen=True)
class Hasty(Inverter):
    """A step of DDIM whose prediction is taken in part only."""

    name: ClassVar[str] = "hasty"
    label: ClassVar[str] = "a part of every prediction"

    haste: float = options.fraction(0.5, "Of hasty: the part that is left out.")

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        eps = move.path.predict_eps(denoise, x, move.upper) * (1.0 - self.haste)
        x0 = move.path.denoised(x, eps, move.upper)
        return Step(move.path.step(x, eps, move.lower, move.upper), x0)
