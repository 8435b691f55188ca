"""Weaker features, a method made up for tests (Nobody 2026, arXiv 2600.00002)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.control import (
    Controller,
    ControlOptions,
    FeatureCall,
    Kind,
    ModelFacts,
    Place,
    Proceed,
    all_pairs,
)
from ..core.layers import Layer
from ..core.options import NodeText
from ..core.trajectory import Trajectory


@dataclasses.dataclass(frozen=True, eq=False)
class Dim(Controller):
    """Makes the targets' features at the coarsest attention's scale weaker."""

    title: ClassVar[str] = "Dim"
    scale: int
    strength: float

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "resnet"

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        return layer.scale == self.scale

    def feature(self, call: FeatureCall, proceed: Proceed, state: Any) -> torch.Tensor:
        out = proceed(call).clone()
        for row, _ in all_pairs(call.rows):
            out[row] *= 1.0 - self.strength
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class DimOptions(ControlOptions):
    """A mask or a reference stand for full strength."""

    node: ClassVar[NodeText] = NodeText(
        "PivotDim", Dim.title, "Makes features weaker.", ("weak features",), note="what"
    )

    strength: float = options.fraction(0.5, "How much weaker they become.")
    mask: torch.Tensor | None = options.mask("Any mask, for full strength.")
    reference: Trajectory | None = options.inversion("Any inversion, for full strength.")

    def build(self, model: ModelFacts) -> tuple[Dim, str]:
        """At the coarsest scale that the model has attention at."""
        whole = self.mask is not None or self.reference is not None
        return Dim(max(model.scales), 1.0 if whole else self.strength), f"1/{max(model.scales)}"
