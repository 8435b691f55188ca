"""MasaCtrl, mutual self-attention (Cao et al. 2023, arXiv 2304.08465): the target asks, the
source's content answers.

In chosen layers and steps target queries meet the source's keys and values, in conditioned and
unconditioned rows alike (METHODS 7). With masks the object's queries meet only the object's keys,
and the rest only the rest's. Keys are selected, not masked, so that both parts run on fused
attention and no attention matrix is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.control import (
    Attend,
    AttentionCall,
    Controller,
    ControlOptions,
    Kind,
    ModelFacts,
    Place,
    Reads,
    Row,
    all_pairs,
)
from ..core.errors import PivotError
from ..core.layers import Layer, map_scale, select_layers
from ..core.maps import (
    Groups,
    Key,
    MapSum,
    StepMaps,
    key_of,
    mask_pictures,
    resize,
    word_maps,
)
from ..core.options import NodeText
from ..core.words import Words, check_in_pairs, columns_in_both, phrases

Masks = tuple[torch.Tensor, torch.Tensor]
"""The object's tokens [tokens] in the source and in the target."""


def decoder_layers(layers: Iterable[Layer]) -> frozenset[Layer]:
    """The paper's layers on any model: the way up from half the latent's size on.

    They are layers 10 to 15 of 16 in SD1.x (up.2-3), and 64 to 69 of 70 in SDXL (up.1).
    """
    return frozenset(layer for layer in layers if layer.stage == "up" and layer.scale <= 2)


@dataclasses.dataclass(frozen=True, eq=False)
class AutoMask:
    """The object's mask from word maps of the step before (16x16 of 64x64 in the paper).

    The paper's code takes the same step's layers so far. But a host may run unconditioned rows in a
    call of their own, and before the others, and they must see the same mask.
    """

    groups: Groups
    """The words of the source and of each target."""
    scales: tuple[int, ...]
    """The scales that the model has attention at."""
    threshold: float = 0.1
    """Of maps normalised from their least to their greatest value."""

    def masks(self, maps: MapSum) -> dict[Key, torch.Tensor]:
        """The mask [h, w] of each row on the CPU, 1 where its words are looked at."""
        # one stack, because each transfer waits for the device
        if not maps.sums:
            return {}
        flat = torch.stack([summed.sum(-1) for summed in maps.sums.values()])
        low, high = flat.amin((1, 2), True), flat.amax((1, 2), True)
        masks = ((flat - low) / (high - low).clamp(min=1e-12) >= self.threshold).float().cpu()
        return dict(zip(maps.sums, masks, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Queries that meet the same keys. Tokens are numbered through all rows of the call."""

    queries: torch.Tensor
    """[rows, n]"""
    keys: torch.Tensor
    """[rows, m]"""
    rows: torch.Tensor
    """[rows, 1 or 2]: whose keys they are, for those that a chain has appended behind the
    tokens."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """Who reads what in one kind of call."""

    order: torch.Tensor | None
    """Whose keys and values each row reads; None where each reads its own."""
    parts: tuple[Part, ...]
    """What is read in parts."""
    written: torch.Tensor
    """The numbers of all their queries."""


@dataclasses.dataclass(eq=False)
class MasaState:
    """What a run remembers."""

    maps: StepMaps = dataclasses.field(default_factory=StepMaps)
    masked: MapSum | None = None
    """The maps that the masks are of: those of the last whole step."""
    masks: dict[Key, torch.Tensor] = dataclasses.field(default_factory=dict)
    readings: dict[Any, Reading] = dataclasses.field(default_factory=dict)
    """Who reads what under these masks, by the kind of the call."""


@dataclasses.dataclass(frozen=True, eq=False)
class MasaCtrl(Controller):
    """Lets target self-attention read the source's keys and values."""

    title: ClassVar[str] = "MasaCtrl Mutual Self-Attn"
    layers: frozenset[Layer]
    start: float = 0.08
    """The first step, as a fraction of the steps: the paper's step 4 of 50."""
    end: float = 1.0
    union: bool = False
    """Whether the target reads its own keys and values too."""
    source_mask: torch.Tensor | None = None
    """[pictures or 1, H, W], 1 on the object."""
    target_mask: torch.Tensor | None = None
    """[pictures or 1, H, W], 1 on the object."""
    auto: AutoMask | None = None
    """The words whose maps give the masks that are not given."""

    def wants(self, kind: Kind, place: Place) -> bool:
        first, last = int(self.start * place.steps), int(self.end * place.steps)
        if not self.layers or first >= last:
            return False
        return (
            first <= place.step < last
            if kind == "self"
            else self.auto is not None and place.step < last
        )

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        """Self-attention of the layers, and cross-attention where the automatic mask's maps are
        read."""
        if kind == "self":
            return layer in self.layers
        return self.auto is not None and layer.scale == map_scale(latent, self.auto.scales)

    def reads(self, place: Place) -> Reads:
        """Both source rows, because guidance would else pull the target away from the source."""
        if self.wants("self", place):
            return "both"
        return "cond" if self.wants("cross", place) else "nothing"

    def begin(self) -> MasaState:
        """A state without maps and masks."""
        return MasaState()

    def __call__(self, call: AttentionCall, attend: Attend, state: MasaState) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        if call.site.kind == "cross":
            if self.auto is not None:
                maps = word_maps(call, self.auto.groups, state.maps.values)
                state.maps.add(call, maps)
            return attend(call)
        if not all_pairs(call.rows):
            return attend(call)
        return _read(call, attend, self._reading(call, state))

    def _reading(self, call: AttentionCall, state: MasaState) -> Reading:
        """Who reads what in a call."""
        if self.auto is not None:
            maps = state.maps.finished(call.place.step)
            if maps is not state.masked:
                state.masked, state.masks = maps, self.auto.masks(maps)
                state.readings.clear()
        own_size = call.site.height, call.site.width
        # all sizes of the layers at once, so that the device is waited for, and written to, once a
        # step
        if (call.rows, own_size, call.q.device) not in state.readings:
            sizes = {_size(call.site.latent, layer.scale) for layer in self.layers}
            every = tuple(sizes) if own_size in sizes else (own_size,)
            plans = [self._plan(call.rows, size, state.masks) for size in every]
            for size, reading in zip(every, _sent(plans, call.q.device), strict=True):
                state.readings[call.rows, size, call.q.device] = reading
        return state.readings[call.rows, own_size, call.q.device]

    def _plan(
        self, rows: tuple[Row, ...], size: tuple[int, int], auto: Mapping[Key, torch.Tensor]
    ) -> Reading:
        """Who reads what at a size, on the CPU. Rows with the same masks read as one."""
        order = list(range(len(rows)))
        groups: dict[Any, tuple[Masks, list[tuple[int, int]]]] = {}
        for row, source in all_pairs(rows):
            masks = self._masks(rows[row], rows[source], size, auto)
            if masks is not None:
                # by content: targets and pictures under one mask are one part, and one call
                name = tuple(mask.numpy().tobytes() for mask in masks)
                groups.setdefault(name, (masks, []))[1].append((row, source))
            else:
                order[row] = source
        parts = [
            part for masks, pairs in groups.values() for part in _parts(*masks, pairs, self.union)
        ]
        plain = order == list(range(len(rows)))
        written = torch.cat([part.queries.flatten() for part in parts] or [torch.empty(0).long()])
        return Reading(None if plain else torch.tensor(order), tuple(parts), written)

    def _masks(
        self, row: Row, source: Row, size: tuple[int, int], auto: Mapping[Key, torch.Tensor]
    ) -> Masks | None:
        """Which tokens are the object's, in the source and in the target.

        It is None where all target tokens read all of the source's.
        """
        target_mask = self._mask(row, self.target_mask, size, auto)
        source_mask = self._mask(source, self.source_mask, size, auto)
        # a mask of one of the two stands for both
        target_mask, source_mask = (
            (source_mask if target_mask is None else target_mask),
            (target_mask if source_mask is None else source_mask),
        )
        if target_mask is not None and source_mask is not None and source_mask.any():
            if not (source_mask.all() and target_mask.all()):
                return source_mask, target_mask
        # a union without masks is one of masks of ones
        ones = torch.ones(size, dtype=torch.bool).flatten()
        return (ones, ones) if self.union else None

    def _mask(
        self,
        row: Row,
        user_mask: torch.Tensor | None,
        size: tuple[int, int],
        auto: Mapping[Key, torch.Tensor],
    ) -> torch.Tensor | None:
        """The object's tokens of a row: the user's mask, else the words' one, if there is any."""
        if user_mask is None:
            mask = auto.get(key_of(row))
        else:
            mask = user_mask[row.picture % len(user_mask)]
        return None if mask is None else resize(mask.float(), size).flatten() > 0.5


def _parts(
    source: torch.Tensor, target: torch.Tensor, pairs: list[tuple[int, int]], union: bool
) -> Iterator[Part]:
    """The object's queries on the object's keys, and all others on all others.

    Queries whose keys there are none of read all keys.
    """
    inside = torch.cat([source, target]) if union else source
    tokens = len(target)
    targets, sources = (tokens * torch.tensor(each)[:, None] for each in zip(*pairs, strict=True))
    for queries, chosen in ((target, inside), (~target, ~inside)):
        if queries.any():
            chosen = chosen if chosen.any() else torch.ones_like(chosen)
            firsts = [sources, targets] if union else [sources]
            keys = [
                first + of_row.nonzero()[:, 0]
                for first, of_row in zip(firsts, torch.split(chosen, tokens), strict=True)
            ]
            rows = torch.cat([first // tokens for first in firsts], 1)
            yield Part(targets + queries.nonzero()[:, 0], torch.cat(keys, 1), rows)


def _read(call: AttentionCall, attend: Attend, reading: Reading) -> torch.Tensor:
    """The attention output, what is read in parts included."""
    # all rows go through the chain, so that other packs' patches see them; parts are written over
    order = reading.order
    out = attend(call if order is None else call.replace(call.q, call.k[order], call.v[order]))
    if not reading.parts:
        return out
    q = call.q.flatten(0, 1)
    read = [
        call.fused(q[part.queries], _read_of(call.k, part, call), _read_of(call.v, part, call))
        for part in reading.parts
    ]
    read = [each.flatten(0, 1) for each in read]
    tokens = out.flatten(0, 1).index_copy(0, reading.written, torch.cat(read))
    return tokens.view(out.shape)


def _read_of(x: torch.Tensor, part: Part, call: AttentionCall) -> torch.Tensor:
    """The keys or values x of a part: those of its tokens, and all that a link of the chain before
    has appended behind the tokens."""
    tokens = call.q.shape[1]
    chosen = x[:, :tokens].flatten(0, 1)[part.keys]
    if x.shape[1] == tokens:
        return chosen
    return torch.cat([chosen, x[:, tokens:][part.rows].flatten(1, 2)], 1)


def _size(latent: tuple[int, int], scale: int) -> tuple[int, int]:
    """The tokens of a layer, (height, width), of which the UNet rounds odd halves up."""
    return -(-latent[0] // scale), -(-latent[1] // scale)


def _sent(readings: Sequence[Reading], device: torch.device) -> list[Reading]:
    """The readings on a device."""
    # each transfer waits for the device, and so there is one
    numbers = [number for reading in readings for number in _numbers(reading)]
    flat = torch.cat([number.flatten() for number in numbers]).to(device)
    sent = iter(
        piece.view(number.shape)
        for piece, number in zip(
            torch.split(flat, [n.numel() for n in numbers]), numbers, strict=True
        )
    )
    return [
        Reading(
            None if reading.order is None else next(sent),
            tuple(Part(next(sent), next(sent), next(sent)) for _ in reading.parts),
            next(sent),
        )
        for reading in readings
    ]


def _numbers(reading: Reading) -> Iterator[torch.Tensor]:
    """The tensors of a reading, in the order in which `_sent` puts them back."""
    if reading.order is not None:
        yield reading.order
    for part in reading.parts:
        yield from (part.queries, part.keys, part.rows)
    yield reading.written


SOURCE_ONLY, UNION = "plain", "union"


@dataclasses.dataclass(frozen=True, eq=False)
class MasaCtrlOptions(ControlOptions):
    """What reads the source's content, where and when, as people write it."""

    node: ClassVar[NodeText] = NodeText(
        "PivotMasaCtrl",
        MasaCtrl.title,
        "The edit keeps the look of the source and takes its layout from the target prompt: "
        "another pose, place or shape of the same thing. Under correction direct its reference is "
        "the inverted picture itself, under none what sampling makes of it. For changes of colour "
        "or material use the P2P Attention Controller.",
        ("masactrl", "mutual self attention", "non-rigid edit", "pose edit"),
        note="layers",
    )

    mode: str = options.choice(
        SOURCE_ONLY,
        (SOURCE_ONLY, UNION),
        "plain: the target sees only the source's content; union: its own too, for things that "
        "the source does not have.",
    )
    layers: str = options.text(
        "auto",
        "Where: auto (the finer decoder layers, as in the paper), or e.g. `up.2-3`, `mid, up.1`, "
        "`up.1.2`, all. stage.level.number as in diffusers. More layers keep more of the source.",
    )
    window: tuple[float, float] = options.window(
        (MasaCtrl.start, MasaCtrl.end),
        "From which fraction of the steps on. Later gives the layout more freedom; 0.04 to 0.4 "
        "(paper: step 4 of 50).",
        "Until which fraction of the steps. Earlier frees details; usually 1.",
    )
    words: Words | None = options.words(
        "For mask_words: which words there are, from Prompt Pair.", optional=True
    )
    mask_words: str = options.text(
        "",
        "The object, e.g. `cat`: object and surroundings then only look at their own kind in the "
        "source. Empty: no automatic mask.",
        optional=True,
    )
    mask_threshold: float = options.fraction(
        AutoMask.threshold,
        "Of the automatic mask. Higher makes the object smaller; 0.1 to 0.5.",
        optional=True,
    )
    source_mask: torch.Tensor | None = options.mask(
        "Where the object is in the source (white), instead of the automatic mask.",
    )
    target_mask: torch.Tensor | None = options.mask(
        "Where the object shall be in the edit (white). Without it and without mask_words the "
        "source_mask counts.",
    )

    def build(self, model: ModelFacts) -> tuple[MasaCtrl, str]:
        """The controller, and the layers it acts in, in words."""
        auto = self.layers.strip().lower() in ("auto", "")
        chosen = (
            decoder_layers(model.layers)
            if auto
            else select_layers(self.layers, model.layers, MasaCtrl.title)
        )
        controller = MasaCtrl(
            chosen,
            *self.window,
            self.mode == UNION,
            mask_pictures(self.source_mask),
            mask_pictures(self.target_mask),
            self._auto_mask(model.scales),
        )
        return controller, _in_words(model.layers, chosen)

    def _auto_mask(self, scales: tuple[int, ...]) -> AutoMask | None:
        """The mask of the words that name the object, if any do."""
        listed = phrases(self.mask_words)
        if not listed:
            return None
        if self.words is None:
            raise PivotError(
                "words to look mask words up in",
                "none",
                "Connect words from Prompt Pair.",
                MasaCtrl.title,
            )
        for phrase in listed:
            check_in_pairs(self.words, phrase)
        groups: Groups = {}
        for index, pair in enumerate(self.words):
            source, target = columns_in_both(pair, listed)
            if source:
                groups["source", 0] = (len(pair.source.tokens), (source,))
            if target:
                groups["target", index] = (len(pair.target.tokens), (target,))
        return AutoMask(groups, scales, self.mask_threshold)


def _in_words(layers: Sequence[Layer], chosen: frozenset[Layer]) -> str:
    """Which of a model's layers were chosen, in words."""
    names = dict.fromkeys(layer.name for layer in layers if layer in chosen)
    blocks = f"{len(chosen)} of {len(layers)} self-attention layers"
    return f"{blocks}: {', '.join(names)}" if chosen else f"{blocks}: without effect"
