"""One attention call of the UNet as a controller sees it, and what a controller is."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch

from .errors import PivotError
from .layers import Layer

Kind = Literal["self", "cross"]
Branch = Literal["source", "target"]
Reads = Literal["nothing", "cond", "both"]
Fused = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Probe = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a call happens. kind: self | cross; height, width: of its query tokens; latent: the
    latent's (height, width)."""

    kind: Kind
    layer: Layer
    height: int
    width: int
    latent: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Place:
    """When a call happens: step 0 ... steps - 1 counted from noise, found from sigma and never by
    counting."""

    step: int
    steps: int
    sigma: float


@dataclasses.dataclass(frozen=True)
class Row:
    """What a batch row is. source: the row of the same batch that holds its source, if any; target:
    which of the edits it belongs to; picture: which of the pictures."""

    branch: Branch
    cond: bool
    source: int | None = None
    target: int = 0
    picture: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """q, k, v after their projections, [rows, tokens, heads * dim_head], and everything around
    them.

    fused(q, k, v) is the host's own fast attention for terms in addition to the chain's; it may be
    given fewer rows than the call has, and other numbers of tokens. probe(v) is what this call
    gives for other values, every controller's edit included and other packs' patches
    left out: with one-hot values, the maps of words. It is None inside a probe.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    heads: int
    site: Site
    place: Place
    rows: tuple[Row, ...]
    fused: Fused
    probe: Probe | None = None

    def replace(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> AttentionCall:
        """The same call with other q, k, v."""
        return dataclasses.replace(self, q=q, k=k, v=v)


Attend = Callable[[AttentionCall], torch.Tensor]


class Controller(abc.ABC):
    """A frozen set of options that edits or reads attention calls.

    Controllers chain: the first of a chain sees the call first, and `attend` runs the rest of the
    chain, then other packs' patches, then the host's attention. What a controller remembers during
    a run is in the `state` that `begin` made for that run; it is dropped with the run.
    """

    title: ClassVar[str]
    """What its node is called."""
    needs_source: ClassVar[bool] = True
    """Whether it edits targets by their source, and so cannot run where there is no source."""
    sets_latents: ClassVar[bool] = False
    """Whether `after_step` does anything."""
    rank: ClassVar[int] = 1
    """Controllers of a lower rank see a call first, in whatever order their nodes stand."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Controller:
        """Itself: options never change, and ComfyUI copies everything in a model at every clone."""
        return self

    @abc.abstractmethod
    def wants(self, kind: Kind, place: Place) -> bool:
        """Whether any site of this kind is edited or read now."""

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        """Whether sites of this kind and layer are edited or read, for a latent of (height, width).
        Sites where nobody is at work are left to the host."""
        return True

    def works(self, site: Site, place: Place) -> bool:
        """Whether this site is edited or read now."""
        return self.wants(site.kind, place) and self.at(site.kind, site.layer, site.latent)

    def reads(self, place: Place) -> Reads:
        """Which source rows this controller needs in the UNet call now; where none, they may not be
        run."""
        return "cond" if self.wants("self", place) or self.wants("cross", place) else "nothing"

    def begin(self) -> Any:
        """Fresh state for one run."""
        return None

    @abc.abstractmethod
    def __call__(self, call: AttentionCall, attend: Attend, state: Any) -> torch.Tensor:
        """The attention output, [rows, tokens, heads * dim_head]."""

    def after_step(
        self, x: torch.Tensor, rows: tuple[Row, ...], place: Place, state: Any
    ) -> torch.Tensor:
        """The latents [rows, C, H, W] after the step at `place`; x is what the sampler made of
        them."""
        return x

    def finish(self, samples: torch.Tensor, rows: tuple[Row, ...], state: Any) -> None:
        """The run is over and gave `samples` [rows, C, H, W]: keep what is to be shown of it."""
        return None


def in_order(controllers: tuple[Controller, ...]) -> tuple[Controller, ...]:
    """A chain by rank, so that the order of control nodes does not matter; equals keep theirs."""
    return tuple(sorted(controllers, key=lambda controller: controller.rank))


def cond_pairs(rows: tuple[Row, ...]) -> list[tuple[int, int]]:
    """(row, source row) of every conditioned target row whose source is in the same call."""
    return [(index, source) for index, source in all_pairs(rows) if rows[index].cond]


def all_pairs(rows: tuple[Row, ...]) -> list[tuple[int, int]]:
    """(row, source row) of every target row, conditioned or not, whose source is in the same
    call."""
    return [
        (index, row.source)
        for index, row in enumerate(rows)
        if row.branch == "target" and row.source is not None
    ]


def check_window(window: tuple[float, float], name: str = "", where: str = "") -> None:
    """Raise PivotError unless 0 <= start <= end <= 1; `name` is what the inputs are called before
    start and end."""
    start, end = window
    if not 0.0 <= start <= end <= 1.0:
        raise PivotError(
            f"{name}start and {name}end between 0 and 1, in this order",
            f"{start} and {end}",
            "They are fractions of the steps, counted from noise.",
            where,
        )


def window_open(window: tuple[float, float], place: Place, rows: int) -> bool:
    """Whether a window (start, end), as fractions of a table of `rows` steps, is open at a
    place."""
    start, end = window
    return int(start * rows) <= place.step < int(end * rows)
