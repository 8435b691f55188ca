"""One attention call of the UNet as a controller sees it, and what a controller is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol

import torch

Kind = Literal["self", "cross"]
Branch = Literal["source", "target"]
Fused = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a call happens. kind: self | cross; stage: input | middle | output; block: its number there;
    index: the transformer's depth within the block; height, width: of its tokens; latent: tokens of the latent."""

    kind: Kind
    stage: str
    block: int
    index: int
    height: int
    width: int
    latent: int

    @property
    def area(self) -> float:
        """This site's query tokens as a fraction of the latent's: 1 at full size, 1/4 one level down."""
        return self.height * self.width / self.latent


@dataclasses.dataclass(frozen=True)
class Place:
    """When a call happens: step 0 ... steps - 1 counted from noise, found from sigma and never by counting."""

    step: int
    steps: int
    sigma: float


@dataclasses.dataclass(frozen=True)
class Row:
    """What a batch row of a UNet call is. source: the row of the same call that holds its source, if any;
    target: which of the edits it belongs to."""

    branch: Branch
    cond: bool
    source: int | None = None
    target: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """q, k, v after their projections, [rows, tokens, heads * dim_head], and everything around them.

    fused(q, k, v) is the host's own fast attention for terms in addition to the chain's; it may be given fewer
    rows than the call has.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    heads: int
    site: Site
    place: Place
    rows: tuple[Row, ...]
    fused: Fused

    def replace(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> AttentionCall:
        """The same call with other q, k, v."""
        return dataclasses.replace(self, q=q, k=k, v=v)


Attend = Callable[[AttentionCall], torch.Tensor]


class Controller(Protocol):
    """A frozen set of options that edits attention calls. Controllers chain: the first of a list sees the call
    first, and `attend` runs the rest of the chain, then other packs' patches, then the host's attention."""

    def wants(self, kind: Kind, place: Place) -> bool:
        """Whether any site of this kind is edited now. Sites that nobody wants are left to the host."""
        ...

    def __call__(self, call: AttentionCall, attend: Attend) -> torch.Tensor:
        """The attention output, [rows, tokens, heads * dim_head]."""
        ...


def edited_rows(rows: tuple[Row, ...]) -> list[tuple[int, int]]:
    """(row, source row) of every conditioned target row whose source is in the same call."""
    return [
        (index, row.source)
        for index, row in enumerate(rows)
        if row.branch == "target" and row.cond and row.source is not None
    ]
