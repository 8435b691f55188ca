"""Modest guidance, a method made up for tests (Nobody 2026, arXiv 2600.00006)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from ..core import options
from ..core.control import Place
from ..core.guidance import Guidance, Guided
from ..core.options import NodeText


@dataclasses.dataclass(frozen=True)
class Modest(Guidance):
    """Only a share of what cfg asks for."""

    title: ClassVar[str] = "Modest"
    node: ClassVar[NodeText] = NodeText(
        "PivotModest", title, "Takes a share of the guidance.", ("modest cfg",)
    )

    share: float = options.fraction(0.5, "The share of the guidance that stays.")
    instead: float | None = options.number(None, 0.0, 30.0, 0.1, "A cfg instead; 0 is none.")

    def scale(self, cfg: float, place: Place) -> float:
        return 1.0 + self.share * (cfg - 1.0) if self.instead is None else self.instead

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        return Guided(delta)
