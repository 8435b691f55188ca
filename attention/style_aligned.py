"""StyleAligned (Hertz et al. 2023, arXiv 2312.02133): all pictures of a batch share one style.

In self-attention every picture reads the reference's keys and values beside its own. Its queries
and keys take the reference's mean and spread (AdaIN, docs/METHODS.md 20). The reference is the
source of an edit, which is an inverted picture, or the first picture of a generated batch.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.control import (
    Attend,
    AttentionCall,
    Controller,
    Kind,
    ModelFacts,
    Place,
    Reads,
    Row,
    peers,
    window_open,
)
from ..core.layers import Layer, select_layers
from ..core.options import NodeText

EPSILON = 1e-5
"""Added to a variance before its root, as in the authors' code."""


@dataclasses.dataclass(frozen=True, eq=False)
class StyleAligned(Controller):
    """Lets self-attention of every picture read the reference too.

    The reference itself is left as it is, because reading its own tokens twice would change
    nothing. Norms are not shared, which the authors' code can do, too.
    """

    title: ClassVar[str] = "StyleAligned"
    node: ClassVar[NodeText] = NodeText(
        "PivotStyleAligned",
        title,
        "All pictures of a batch get the style of one. With the stock KSampler it is the first "
        "picture of the batch. In the Edit Sampler it is your own inverted picture: the target "
        "prompt then says what to paint in its style.",
        ("style aligned", "consistent style", "style reference", "shared attention", "style"),
        note="layers",
    )
    needs_source: ClassVar[bool] = False
    same_noise: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False

    weight: float = options.number(
        1.0,
        0.0,
        16.0,
        0.1,
        "How much more the reference's tokens count than a picture's own. 1 is even, as the paper "
        "for generated pictures; 2 for an inverted reference; less for a famous picture.",
    )
    scale: float = options.number(
        1.0,
        0.0,
        2.0,
        0.05,
        "Sharpness with which the reference is read. 1 as the paper; 0.5 for a famous picture, "
        "which otherwise comes back itself.",
    )
    window: tuple[float, float] = options.window(
        (0.0, 1.0),
        "From which fraction of the steps on. Later leaves the layout to the prompt; usually 0.",
        "Until which fraction of the steps. Earlier frees the details; usually 1.",
    )
    layers: str = options.text(
        "all",
        "Where: all, as in the paper, or e.g. `up`, `mid, up.1`. Fewer layers share less.",
    )
    queries: bool = options.flag(
        True, "Queries take the reference's statistics, as in the paper.", advanced=True
    )
    keys: bool = options.flag(
        True, "Keys take the reference's statistics, as in the paper.", advanced=True
    )
    values: bool = options.flag(
        False, "Values take the reference's statistics; off in the paper.", advanced=True
    )
    chosen: frozenset[Layer] | None = None
    """The layers that `layers` names; None before the model is known."""

    def build(self, model: ModelFacts) -> tuple[Controller, str]:
        """The same at the layers of the model that the text names."""
        chosen = select_layers(self.layers, model.layers, self.title)
        note = f"{len(chosen)} of {len(model.layers)} self-attention layers"
        return dataclasses.replace(self, chosen=chosen), note

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "self" and window_open(self.window, place, place.steps)

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        """The chosen layers, or all where no choice was made."""
        return self.chosen is None or layer in self.chosen

    def reads(self, place: Place) -> Reads:
        """Both source rows, because conditioned and unconditioned rows have each a reference."""
        return "both" if self.wants("self", place) else "nothing"

    def begin(self) -> dict[Any, tuple[torch.Tensor, torch.Tensor]]:
        """Indices on the calls' device, worked out once for each layout of rows."""
        return {}

    def __call__(self, call: AttentionCall, attend: Attend, state: Any) -> torch.Tensor:
        order = references(call.rows)
        # all rows go through the chain; what follows a reference is written over
        out = attend(call)
        if not self.works(call.site, call.place) or order == list(range(len(order))):
            return out
        key = (tuple(order), call.q.device)
        if key not in state:
            follows = [i for i, reference in enumerate(order) if i != reference]
            state[key] = tuple(
                torch.tensor(each, device=call.q.device)
                for each in (follows, [order[i] for i in follows])
            )
        rows, sources = state[key]
        shared = self._shared(call, rows, sources)
        return out.index_copy(0, rows, shared.to(out.dtype))

    def _shared(
        self, call: AttentionCall, rows: torch.Tensor, sources: torch.Tensor
    ) -> torch.Tensor:
        """The attention output of the rows that follow, over their own tokens and their
        reference's."""
        followers = [each.index_select(0, rows) for each in (call.q, call.k, call.v)]
        reference = [each.index_select(0, sources) for each in (call.q, call.k, call.v)]
        takes = (self.queries, self.keys, self.values)
        q, k, v = (
            adain(each, of) if take else each
            for each, of, take in zip(followers, reference, takes, strict=True)
        )
        keys = torch.cat([k, reference[1] * self.scale], 1)
        values = torch.cat([v, reference[2]], 1)
        if self.weight == 1.0:
            return call.fused(q, keys, values)
        # a bias on a logit multiplies its probability; the host's fast attention takes one
        shift = math.log(self.weight) if self.weight > 0.0 else -math.inf
        bias = keys.new_zeros(1, 1, keys.shape[1], dtype=torch.float32)
        bias[..., k.shape[1] :] = shift
        return call.fused(q, keys, values, bias)


def references(rows: tuple[Row, ...]) -> list[int]:
    """The reference of every row.

    It is the row's source where it has one in the call, else the first of its peers. A source row
    is its own.
    """
    order = list(range(len(rows)))
    for group in peers(rows):
        for row in group:
            one = rows[row]
            if one.branch == "target":
                order[row] = group[0] if one.source is None else one.source
    return order


def adain(x: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """x [rows, tokens, channels] with the mean and spread over tokens of another tensor (Huang and
    Belongie 2017), in fp32."""

    def statistics(each: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        freedom = min(1, each.shape[1] - 1)  # a single token has no spread
        spread = (each.var(1, correction=freedom, keepdim=True) + EPSILON).sqrt()
        return each.mean(1, keepdim=True), spread

    (mean, spread), (mean_of, spread_of) = statistics(x.float()), statistics(of.float())
    return ((x.float() - mean) / spread * spread_of + mean_of).to(x.dtype)
