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
    LEAST_SHARE,
    MOST_SHARE,
    Groups,
    Key,
    MapSum,
    key_of,
    mask_pictures,
    resize,
    share_of_range,
    word_maps,
)
from ..core.options import NodeText
from ..core.words import Words, check_in_pairs, columns_in_both, phrases

Masks = tuple[torch.Tensor, torch.Tensor]
"""The object's tokens [tokens] in the source and in the target."""
AutoMasks = Mapping[Key, torch.Tensor]
"""The masks [h, w] of words, 1 on the object."""
MODE, SOURCE, JOINT, NONE = "mode", "source", "joint", "none"
INJECTIONS = (MODE, SOURCE, JOINT, NONE)
"""What target rows read: as `union` says; the source's keys; their own too; only their own."""


def decoder_layers(layers: Iterable[Layer]) -> frozenset[Layer]:
    """The paper's layers on any model: the way up from half the latent's size on.

    They are layers 10 to 15 of 16 in SD1.x (up.2-3), and 64 to 69 of 70 in SDXL (up.1).
    """
    return frozenset(layer for layer in layers if layer.stage == "up" and layer.scale <= 2)


@dataclasses.dataclass(frozen=True, eq=False)
class AutoMask:
    """The object's mask from word maps (16x16 of 64x64 in the paper)."""

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
        masks = (share_of_range(flat) >= self.threshold).float().cpu()
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
class WordMasks:
    """The automatic masks of a run, step by step.

    A layer's masks are of the maps of its own step's layers before it, as in the paper's code.
    Conditioned rows have these maps. A host may run unconditioned rows in a call of their own,
    before the others. All rows then take the maps of the whole step before, because conditioned and
    unconditioned rows must see one mask.
    """

    auto: AutoMask
    values: dict[Any, torch.Tensor] = dataclasses.field(default_factory=dict)
    """The one-hot values that maps are asked with."""
    current: dict[int, bool] = dataclasses.field(default_factory=dict)
    """Whether a step has its own maps, by step."""
    bare: dict[str, None] = dataclasses.field(default_factory=dict)
    """The names of layers that no map came before, so that they had no mask."""
    masked: bool = False
    """Whether there was any mask at all."""
    _step: int = -1
    _now: MapSum = dataclasses.field(default_factory=MapSum)
    _before: MapSum = dataclasses.field(default_factory=MapSum)
    _summed: set[Layer] = dataclasses.field(default_factory=set)
    _settled: dict[Layer, AutoMasks] = dataclasses.field(default_factory=dict)
    _latest: AutoMasks | None = None

    def add(self, call: AttentionCall) -> None:
        """Add the maps of a call of cross-attention."""
        self._turn(call.place.step)
        maps = word_maps(call, self.auto.groups, self.values)
        if maps and call.site.layer not in self._summed:
            self._summed.add(call.site.layer)
            self._now.add(call, maps)
            # those of a whole step before do not change
            if self.current.get(self._step, True):
                self._latest = None

    def at(self, call: AttentionCall) -> AutoMasks:
        """The masks of a call's layer, the same for every call of a step."""
        step, layer = call.place.step, call.site.layer
        self._turn(step)
        if layer not in self._settled:
            # the first call of a step decides for all of it
            current = self.current.setdefault(step, any(row.cond for row in call.rows))
            if self._latest is None:
                self._latest = self.auto.masks(self._now if current else self._before)
            self._settled[layer] = self._latest
            self.masked |= bool(self._latest)
            self.bare |= {} if self._latest else {layer.name: None}
        return self._settled[layer]

    def _turn(self, step: int) -> None:
        """Begin a step, if it is another one."""
        if step != self._step:
            self._step, self._before, self._now = step, self._now, MapSum()
            self._summed, self._settled, self._latest = set(), {}, None


@dataclasses.dataclass(eq=False)
class MasaState:
    """What a run remembers."""

    words: WordMasks | None
    """The automatic masks, where there are any."""
    masks: AutoMasks = dataclasses.field(default_factory=dict)
    """Those that `readings` are under."""
    readings: dict[Any, Reading] = dataclasses.field(default_factory=dict)
    """Who reads what under these masks, by the kind of the call."""
    shares: dict[Key, dict[int, float]] = dataclasses.field(default_factory=dict)
    """Which part of a picture its mask holds, by step."""


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
    inject_cond: str = MODE
    """What conditioned target rows read, one of INJECTIONS."""
    inject_uncond: str = MODE
    """What unconditioned target rows read, one of INJECTIONS."""

    def wants(self, kind: Kind, place: Place) -> bool:
        first, last = int(self.start * place.steps), int(self.end * place.steps)
        idle = self._reads(True) == self._reads(False) == NONE
        if not self.layers or first >= last or idle:
            return False
        if kind == "self":
            return first <= place.step < last
        # from the step before on, whose maps may be needed
        return self._words is not None and first - 1 <= place.step < last

    @property
    def _words(self) -> AutoMask | None:
        """The words' masks, where they are needed beside those that are given."""
        both = self.source_mask is not None and self.target_mask is not None
        return None if both else self.auto

    def _reads(self, cond: bool) -> str:
        """What target rows read: SOURCE, JOINT or NONE."""
        chosen = self.inject_cond if cond else self.inject_uncond
        if chosen != MODE:
            return chosen
        return JOINT if self.union else SOURCE

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        """Self-attention of the layers, and cross-attention where the automatic mask's maps are
        read."""
        if kind == "self":
            return layer in self.layers
        words = self._words
        return words is not None and layer.scale == map_scale(latent, words.scales)

    def reads(self, place: Place) -> Reads:
        """Both source rows, because guidance would else pull the target away from the source.

        The conditioned one alone serves the masks, and where unconditioned rows read nothing.
        """
        if self.wants("self", place) and self._reads(False) != NONE:
            return "both"
        working = self.wants("self", place) or self.wants("cross", place)
        return "cond" if working else "nothing"

    def begin(self) -> MasaState:
        """A state without maps and masks."""
        words = self._words
        return MasaState(None if words is None else WordMasks(words))

    def __call__(self, call: AttentionCall, attend: Attend, state: MasaState) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        if call.site.kind == "cross":
            if state.words is not None:
                state.words.add(call)
            return attend(call)
        if all(self._reads(call.rows[row].cond) == NONE for row, _ in all_pairs(call.rows)):
            return attend(call)
        return _read(call, attend, self._reading(call, state))

    def remark(self, state: MasaState) -> tuple[str, ...]:
        """Which step's maps the masks are of, what part of the picture they hold, and what to
        change where that is nearly nothing or nearly all."""
        words = state.words
        if words is not None and words.current and not words.masked:
            return (
                "No map of mask_words was seen, so that they masked nothing. Areas and bounds of "
                "a conditioning hide maps: connect source_mask and target_mask.",
            )
        remarks = [] if words is None or not words.current else [*_whose_maps(words)]
        if state.shares:
            held = [
                f"{100 * _mean(steps):.3g} % of {_named(key, state.shares)}"
                for key, steps in state.shares.items()
            ]
            remarks.append(f"The masks hold {', '.join(held)}.")
        remarks += [line for key in state.shares for line in self._odd(key, state.shares)]
        return tuple(remarks)

    def _odd(self, key: Key, shares: Mapping[Key, Mapping[int, float]]) -> Iterator[str]:
        """What to change where a mask holds nearly nothing of a picture, or nearly all of it."""
        steps = shares[key]
        few = sum(share < LEAST_SHARE for share in steps.values())
        most = sum(share > MOST_SHARE for share in steps.values())
        drawn = {"source": self.source_mask, "target": self.target_mask}
        by_words = drawn[key[0]] is None and self.auto is not None
        for count, limit, lower, draw in (
            (few, f"under {100 * LEAST_SHARE:g} %", "lower", "more"),
            (most, f"over {100 * MOST_SHARE:g} %", "raise", "less"),
        ):
            often = f" in {count} of {len(steps)} steps" if by_words else ""
            do = (
                f"{lower} mask_threshold, or write other mask_words"
                if by_words
                else f"draw {draw} of the picture white"
            )
            if count:
                yield f"The mask of {_named(key, shares)} holds {limit} of it{often}: {do}."

    def _reading(self, call: AttentionCall, state: MasaState) -> Reading:
        """Who reads what in a call."""
        masks = state.words.at(call) if state.words else state.masks
        if masks is not state.masks:
            state.masks = masks
            state.readings.clear()
        own_size = call.site.height, call.site.width
        # all sizes of the layers at once, so that the device is waited for, and written to, once a
        # step
        if (call.rows, own_size, call.q.device) not in state.readings:
            sizes = {_size(call.site.latent, layer.scale) for layer in self.layers}
            every = tuple(sizes) if own_size in sizes else (own_size,)
            plans = [self._plan(call.rows, size, masks) for size in every]
            for size, reading in zip(every, _sent(plans, call.q.device), strict=True):
                state.readings[call.rows, size, call.q.device] = reading
            for key, share in self._shares(call.rows, max(every), masks):
                state.shares.setdefault(key, {})[call.place.step] = share
        return state.readings[call.rows, own_size, call.q.device]

    def _plan(self, rows: tuple[Row, ...], size: tuple[int, int], auto: AutoMasks) -> Reading:
        """Who reads what at a size, on the CPU. Rows with the same masks read as one."""
        order = list(range(len(rows)))
        groups: dict[Any, tuple[Masks, list[tuple[int, int]]]] = {}
        for row, source in all_pairs(rows):
            reads = self._reads(rows[row].cond)
            if reads == NONE:
                continue
            masks = self._read_masks(rows[row], rows[source], size, auto, reads == JOINT)
            if masks is not None:
                # by content: targets and pictures under one mask are one part, and one call
                name = (reads, *(mask.numpy().tobytes() for mask in masks))
                groups.setdefault(name, (masks, []))[1].append((row, source))
            else:
                order[row] = source
        parts = [
            part
            for (reads, *_), (masks, pairs) in groups.items()
            for part in _parts(*masks, pairs, reads == JOINT)
        ]
        plain = order == list(range(len(rows)))
        written = torch.cat([part.queries.flatten() for part in parts] or [torch.empty(0).long()])
        return Reading(None if plain else torch.tensor(order), tuple(parts), written)

    def _shares(
        self, rows: tuple[Row, ...], size: tuple[int, int], auto: AutoMasks
    ) -> Iterator[tuple[Key, float]]:
        """Which part of the picture the masks of a call's pictures hold."""
        for row, source in all_pairs(rows):
            masks = self._masks(rows[row], rows[source], size, auto)
            if masks is not None and self._reads(rows[row].cond) != NONE:
                for each, mask in zip((rows[source], rows[row]), masks, strict=True):
                    yield key_of(each), float(mask.double().mean())

    def _read_masks(
        self, row: Row, source: Row, size: tuple[int, int], auto: AutoMasks, joint: bool
    ) -> Masks | None:
        """The masks that a target row reads under.

        It is None where all its tokens read all of the source's, and nothing else.
        """
        masks = self._masks(row, source, size, auto)
        if masks is not None and masks[0].any() and not all(mask.all() for mask in masks):
            return masks
        # a union without masks is one of masks of ones
        ones = torch.ones(size, dtype=torch.bool).flatten()
        return (ones, ones) if joint else None

    def _masks(self, row: Row, source: Row, size: tuple[int, int], auto: AutoMasks) -> Masks | None:
        """Which tokens are the object's, in the source and in the target; None without masks."""
        target_mask = self._mask(row, self.target_mask, size, auto)
        source_mask = self._mask(source, self.source_mask, size, auto)
        # a mask of one of the two stands for both
        target_mask = source_mask if target_mask is None else target_mask
        source_mask = target_mask if source_mask is None else source_mask
        if source_mask is None or target_mask is None:
            return None
        return source_mask, target_mask

    def _mask(
        self,
        row: Row,
        user_mask: torch.Tensor | None,
        size: tuple[int, int],
        auto: AutoMasks,
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


def _whose_maps(words: WordMasks) -> Iterator[str]:
    """Which step's maps a run's masks are of."""
    steps, before = len(words.current), list(words.current.values()).count(False)
    if before < steps:
        often = f" in {steps - before} of {steps} steps" if before else ""
        yield f"The words' masks are of the maps of the current step{often}."
    if before:
        yield (
            f"The words' masks are of the maps of the step before in {before} of {steps} steps, "
            "because unconditioned rows ran in a call before the others."
        )
    if words.bare:
        yield (
            f"No map comes before {', '.join(words.bare)}, which read without the words' masks. "
            "The layers of auto come after maps."
        )


def _mean(steps: Mapping[int, float]) -> float:
    return sum(steps.values()) / len(steps)


def _named(key: Key, among: Iterable[Key]) -> str:
    """A picture in words, with numbers where there are several."""
    branch, target, picture = key
    targets = {each[1] for each in among if each[0] == "target"}
    pictures = {each[2] for each in among}
    name = f"target {target + 1}" if branch == "target" and len(targets) > 1 else f"the {branch}"
    return f"{name} of picture {picture + 1}" if len(pictures) > 1 else name


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
    inject_cond: str = options.choice(
        MODE,
        INJECTIONS,
        "What the rows of the target prompt read. mode: as `mode` says; source: the source's "
        "content; joint: their own too; none: only their own.",
        optional=True,
        advanced=True,
    )
    inject_uncond: str = options.choice(
        MODE,
        INJECTIONS,
        "The same for the rows of the negative prompt. ProxMasaCtrl's authors try source for the "
        "one and joint for the other, for new poses.",
        optional=True,
        advanced=True,
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
            self.inject_cond,
            self.inject_uncond,
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
