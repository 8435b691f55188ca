"""Plug-and-Play diffusion features (Tumanyan et al. 2022, arXiv 2211.12572): the source's features
and self-attention keep the layout, the target's words give it another look.

At one residual block of the way up the target's hidden state becomes the source's. From there on
self-attention looks where the source looks: queries and keys become the source's, values stay the
target's (docs/METHODS.md 14).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.control import (
    Attend,
    AttentionCall,
    Controller,
    FeatureCall,
    Kind,
    Place,
    Proceed,
    Reads,
    Row,
    all_pairs,
    window_open,
)
from ..core.layers import Layer
from ..core.options import NodeText

SCALE, NUMBER = 4, 1
"""The paper's block: the second of the way up at a quarter of the latent's side (SD1.x: output
block 4, our up.1.1)."""


@dataclasses.dataclass(frozen=True, eq=False)
class PlugAndPlay(Controller):
    """Gives targets the source's features and attention, in conditioned and unconditioned rows
    alike.

    Each row takes those of the source row that runs under the same kind of text. The authors have
    one source row under an empty prompt. With an empty source prompt both of ours are that row.
    """

    title: ClassVar[str] = "Plug-and-Play Features"
    node: ClassVar[NodeText] = NodeText(
        "PivotPlugAndPlay",
        title,
        "Keeps the layout of the source exactly and lets the target prompt change its material, "
        "its style, or what it is. Stronger than P2P's self-attention: features are kept, too. "
        "The paper inverts and edits with an empty source prompt.",
        ("plug and play", "pnp", "feature injection", "keep layout", "restyle", "image to image"),
    )

    features: float = options.fraction(
        0.8,
        "Until which fraction of the steps features are the source's. Higher keeps more of its "
        "shapes; 0.5 to 0.8 (paper 0.8).",
    )
    """The fraction of the steps until which features are the source's."""
    attention: float = options.fraction(
        0.5,
        "Until which fraction of the steps self-attention looks where the source looks. Higher "
        "keeps more of its layout; 0.3 to 0.8 (paper 0.5).",
    )
    """The fraction of the steps until which queries and keys are the source's."""

    def wants(self, kind: Kind, place: Place) -> bool:
        ends = {"resnet": self.features, "self": self.attention}
        return kind in ends and window_open((0.0, ends[kind]), place, place.steps)

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        """The paper's block, and self-attention from it on."""
        if layer.stage != "up" or layer.scale > SCALE:
            return False
        # scales fall and numbers rise on the way up: what is finer comes after the block
        if kind == "resnet":
            return (layer.scale, layer.number) == (SCALE, NUMBER)
        return layer.scale < SCALE or layer.number >= NUMBER

    def reads(self, place: Place) -> Reads:
        """Both source rows, because unconditioned rows take features as well."""
        active = self.wants("resnet", place) or self.wants("self", place)
        return "both" if active else "nothing"

    def begin(self) -> dict[Any, torch.Tensor]:
        """Indices on the calls' device, worked out once for each layout of rows."""
        return {}

    def __call__(self, call: AttentionCall, attend: Attend, state: Any) -> torch.Tensor:
        order = self._order(call.rows, call.q.device, state)
        if order is None or not self.works(call.site, call.place):
            return attend(call)
        q, k = (each.index_select(0, order) for each in (call.q, call.k))
        return attend(call.replace(q, k, call.v))

    def feature(self, call: FeatureCall, proceed: Proceed, state: Any) -> torch.Tensor:
        order = self._order(call.rows, call.x.device, state)
        if order is None or not self.works(call.site, call.place):
            return proceed(call)
        return proceed(call.replace(call.x.index_select(0, order)))

    @staticmethod
    def _order(
        rows: tuple[Row, ...], device: torch.device, state: dict[Any, torch.Tensor]
    ) -> torch.Tensor | None:
        """The row that each row takes features from, or None where each takes its own."""
        pairs = all_pairs(rows)
        if not pairs:
            return None
        key = (tuple(pairs), len(rows), device)
        # each tensor from a list is a copy to the device, which waits for it
        if key not in state:
            order = list(range(len(rows)))
            for target, source in pairs:
                order[target] = source
            state[key] = torch.tensor(order, device=device)
        return state[key]
