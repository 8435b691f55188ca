"""Quieter attention, a method made up for tests (Nobody 2026, arXiv 2600.00001)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.control import Attend, AttentionCall, Controller, Kind, Place, cond_pairs, window_open
from ..core.options import NodeText


@dataclasses.dataclass(frozen=True, eq=False)
class Mute(Controller):
    """Takes a part of the targets' self-attention away."""

    title: ClassVar[str] = "Mute"
    node: ClassVar[NodeText] = NodeText(
        "PivotMute", title, "Takes a part of the attention away.", ("quiet attention",)
    )

    strength: float = options.fraction(0.5, "How much of the attention is taken away.")
    window: tuple[float, float] = options.window(
        (0.0, 1.0), "From which fraction of the steps on.", "Until which fraction of the steps."
    )

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "self" and window_open(self.window, place, place.steps)

    def __call__(self, call: AttentionCall, attend: Attend, state: Any) -> torch.Tensor:
        out = attend(call).clone()
        for row, _ in cond_pairs(call.rows):
            out[row] *= 1.0 - self.strength
        return out
