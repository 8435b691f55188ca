"""What a controller sees of a network's call, and what a controller is."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol

import torch

from .layers import Layer
from .options import Method

Kind = Literal["self", "cross", "resnet", "block"]
"""What happens at a site: self- or cross-attention; the hidden state of a residual block, before
its skip is added; the output of a whole block of the UNet."""
Branch = Literal["source", "target"]
Reads = Literal["nothing", "cond", "both"]
Probe = Callable[[torch.Tensor], torch.Tensor]


class Fused(Protocol):
    """The host's own fast attention, for terms in addition to the chain's."""

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """q, k, v [rows, tokens, heads * dim_head]; bias added to the logits, the same for all
        heads: [rows or 1, queries or 1, keys]."""


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a call happens."""

    kind: Kind
    layer: Layer
    """The layer, whose `name` is the site's name."""
    height: int
    """Of the tokens or features."""
    width: int
    latent: tuple[int, int]
    """The latent's (height, width)."""


@dataclasses.dataclass(frozen=True)
class Place:
    """When a call happens."""

    step: int
    """0 ... steps - 1, the noisiest first. It is looked up by sigma and never by counting calls,
    because samplers may ask a network twice in a step."""
    steps: int
    sigma: float
    time: float | None = None
    """The model's own time, from 0 (picture) to 1000 (noise); None where nobody has looked it
    up."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What a batch row is."""

    branch: Branch
    cond: bool
    source: int | None = None
    """The row of the same call that holds its source, if any does."""
    target: int = 0
    """Which of the edits it belongs to."""
    picture: int = 0
    """Which of the pictures it shows."""
    chunk: int = 0
    """Which text of the call it runs under. Rows of one chunk are peers: the pictures of one
    batch."""


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionCall:
    """q, k, v after their projections, [rows, tokens, heads * dim_head], and everything around
    them.

    A controller may keep q, k, v beyond the call, and may hand other ones on, with other numbers of
    keys. It never writes into them.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    heads: int
    site: Site
    place: Place
    rows: tuple[Row, ...]
    fused: Fused
    """The host's own fast attention, which takes fewer rows than the call has, too, and other
    numbers of tokens."""
    probe: Probe | None = None
    """What this call gives for other values: the maps of words, where the values are one-hot. Every
    controller's edit is in it, other packs' patches are not. It is None inside a probe, and where
    the call sees a part of the picture only."""
    texts: tuple[int, ...] | None = None
    """How many columns each row's text has, which the host may have repeated. It is None where
    nobody knows."""

    def replace(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> AttentionCall:
        """The same call with other q, k, v."""
        return dataclasses.replace(self, q=q, k=k, v=v)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureCall:
    """Features x [rows, C, h, w] of a block, which a controller may keep but never writes into."""

    x: torch.Tensor
    site: Site
    place: Place
    rows: tuple[Row, ...]

    def replace(self, x: torch.Tensor) -> FeatureCall:
        """The same call with other features."""
        return dataclasses.replace(self, x=x)


Attend = Callable[[AttentionCall], torch.Tensor]
Proceed = Callable[[FeatureCall], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What the options of a controller may ask about the model."""

    layers: tuple[Layer, ...]
    """The layers with attention, in the order in which they run."""
    scales: tuple[int, ...]
    """The scales that the model has attention at, ascending."""


class ControlOptions(Method, abc.ABC):
    """The inputs of a controller's node, a frozen dataclass.

    They are a class of their own where the controller's fields are others: words, for example,
    have to be looked up first.
    """

    @abc.abstractmethod
    def build(self, model: ModelFacts) -> tuple[Controller, str]:
        """The controller for a model, and the node's text output: what it does, in words."""


class Controller(ControlOptions):
    """A frozen set of options that edits or reads attention calls or features.

    It is its own `ControlOptions`: a controller whose fields are its node's inputs needs no other.

    Controllers chain: the first of a list sees a call first. Its `attend` (or `proceed`) runs the
    rest of the chain, then other packs' patches, then the host's attention. What a controller
    remembers during a run is in the `state` that `begin` made for it; it is dropped with the run.
    """

    title: ClassVar[str]
    """What its node is called."""
    needs_source: ClassVar[bool] = True
    """Whether it edits targets by their source, and so cannot run where there is no source."""
    same_noise: ClassVar[bool] = True
    """Whether a generated target must start from its source's noise."""
    deterministic: ClassVar[bool] = True
    """Whether samplers that draw noise for every row would part target and source."""
    sets_latents: ClassVar[bool] = False
    """Whether `after_step` does anything."""
    rank: ClassVar[int] = 1
    """Controllers of a lower rank see a call first, in whatever order their nodes stand."""

    def build(self, model: ModelFacts) -> tuple[Controller, str]:
        """Itself, where its fields are all that it needs."""
        return self, ""

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
        kinds: tuple[Kind, ...] = ("self", "cross", "resnet", "block")
        return "cond" if any(self.wants(kind, place) for kind in kinds) else "nothing"

    def begin(self) -> Any:
        """Fresh state for one run."""
        return None

    def __call__(self, call: AttentionCall, attend: Attend, state: Any) -> torch.Tensor:
        """The attention output, [rows, tokens, heads * dim_head]."""
        return attend(call)

    def feature(self, call: FeatureCall, proceed: Proceed, state: Any) -> torch.Tensor:
        """The features, [rows, C, h, w], that the network goes on with."""
        return proceed(call)

    def after_step(
        self, x: torch.Tensor, rows: tuple[Row, ...], place: Place, state: Any
    ) -> torch.Tensor:
        """The latents [rows, C, H, W] after the step at `place`, where the sampler left them at
        x."""
        return x

    def finish(self, samples: torch.Tensor, rows: tuple[Row, ...], state: Any) -> None:
        """Keeps what is to be shown of a run that is over and gave `samples` [rows, C, H, W]."""
        return None

    def remark(self, state: Any) -> tuple[str, ...]:
        """What people should know of a run that is over, in sentences; none where all went as they
        asked. The report puts the title in front of each."""
        return ()


def in_order(controllers: tuple[Controller, ...]) -> tuple[Controller, ...]:
    """A chain by rank, so that the order of control nodes does not matter; equals keep theirs."""
    # sorted is stable
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


def peers(rows: tuple[Row, ...]) -> list[list[int]]:
    """The rows of each chunk of a call, in their order."""
    chunks: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        chunks.setdefault(row.chunk, []).append(index)
    return list(chunks.values())


def window_open(window: tuple[float, float], place: Place, rows: int) -> bool:
    """Whether a window (start, end), as fractions of a table of `rows` steps, is open at a
    place."""
    start, end = window
    # rounded down at both ends, as in the references: windows that touch never overlap
    return int(start * rows) <= place.step < int(end * rows)
