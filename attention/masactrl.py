"""MasaCtrl, mutual self-attention (Cao et al. 2023, arXiv 2304.08465): the target asks, the
source's content answers.

In chosen layers and steps, conditioned and unconditioned rows alike, target queries meet the
source's keys and values (METHODS 7). With masks the object's queries meet only the object's keys
and the rest only the rest's: keys are selected, not masked, so both parts run on fused attention
and no attention matrix is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import ClassVar

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
    MapSum,
    StepMaps,
    key_of,
    mask_pictures,
    resize,
    word_maps,
)
from ..core.options import NodeText
from ..core.words import Words, check_in_pairs, columns_in_both, phrases


def decoder_layers(layers: Iterable[Layer]) -> frozenset[Layer]:
    """The paper's layers on any model: the way up from half the latent's size on. SD1.x: its layers
    10 to 15 of 16 (up.2-3); SDXL: its layers 64 to 69 of 70 (up.1)."""
    return frozenset(layer for layer in layers if layer.stage == "up" and layer.scale <= 2)


@dataclasses.dataclass(frozen=True, eq=False)
class AutoMask:
    """The object's mask from word maps of the step before (16x16 of 64x64 in the paper).

    The paper's code takes the same step's layers so far; a host may run unconditioned rows in a
    call of their own, and before the others, and they must see the same mask.

    groups: the words of the source and of each target; scales: the scales the model has attention
    at;
    threshold: of maps normalised from their least to their greatest value.
    """

    groups: Groups
    scales: tuple[int, ...]
    threshold: float = 0.1

    def mask(self, maps: MapSum, row: Row) -> torch.Tensor | None:
        """1 where the row's words are looked at, [h, w]; None while there are no maps."""
        summed = maps.sums.get(key_of(row))
        if summed is None:
            return None
        flat = summed.sum(-1)
        span = flat.max() - flat.min()
        return ((flat - flat.min()) / span.clamp(min=1e-12) >= self.threshold).float()


@dataclasses.dataclass(frozen=True, eq=False)
class MasaCtrl(Controller):
    """Target self-attention reads the source's keys and values.

    layers: where; start, end: when, as fractions of the steps (0.08 is the paper's step 4 of 50).
    union: the target reads its own keys and values too.
    source_mask, target_mask: [pictures or 1, H, W], 1 on the object; auto: masks from words
    instead.
    """

    title: ClassVar[str] = "MasaCtrl Mutual Self-Attn"
    layers: frozenset[Layer]
    start: float = 0.08
    end: float = 1.0
    union: bool = False
    source_mask: torch.Tensor | None = None
    target_mask: torch.Tensor | None = None
    auto: AutoMask | None = None

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
        """Self-attention of the layers; cross-attention where the automatic mask's maps are
        read."""
        if kind == "self":
            return layer in self.layers
        return self.auto is not None and layer.scale == map_scale(latent, self.auto.scales)

    def reads(self, place: Place) -> Reads:
        """The unconditioned source row too: guidance would otherwise pull the target away from the
        source."""
        if self.wants("self", place):
            return "both"
        return "cond" if self.wants("cross", place) else "nothing"

    def begin(self) -> StepMaps:
        """Maps of the current step and of the one before."""
        return StepMaps()

    def __call__(self, call: AttentionCall, attend: Attend, state: StepMaps) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        if call.site.kind == "cross":
            if self.auto is not None:
                state.add(call, word_maps(call, self.auto.groups))
            return attend(call)
        pairs = all_pairs(call.rows)
        if not pairs:
            return attend(call)
        masks = {row: self._masks(call, row, source, state) for row, source in pairs}
        whole = [pair for pair in pairs if masks[pair[0]] is None and not self.union]
        out = attend(_with_source_content(call, whole))
        if len(whole) < len(pairs):
            out = out.clone()
            for row, source in pairs:
                found = masks[row]
                if found is not None:
                    out[row] = self._masked(call, row, source, *found)
                elif self.union:
                    out[row] = _read(call, row, self._keys(call, row, source))
        return out

    def _masks(
        self, call: AttentionCall, row: int, source: int, state: StepMaps
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Which tokens are the object's, [tokens] of the source and of the target; None without
        masks."""
        own = self._mask(call, row, self.target_mask, state)
        theirs = self._mask(call, source, self.source_mask, state)
        if own is None and theirs is None:
            return None
        own, theirs = (theirs if own is None else own), (own if theirs is None else theirs)
        if own is None or theirs is None or not theirs.any() or bool(theirs.all() and own.all()):
            return None
        return theirs, own

    def _mask(
        self, call: AttentionCall, row: int, given: torch.Tensor | None, state: StepMaps
    ) -> torch.Tensor | None:
        if given is not None:
            mask = given[call.rows[row].picture % len(given)]
        else:
            found = (
                None
                if self.auto is None
                else self.auto.mask(state.finished(call.place.step), call.rows[row])
            )
            if found is None:
                return None
            mask = found
        size = (call.site.height, call.site.width)
        return resize(mask.float().to(call.q.device), size).flatten() > 0.5

    def _masked(
        self, call: AttentionCall, row: int, source: int, theirs: torch.Tensor, own: torch.Tensor
    ) -> torch.Tensor:
        """The object's queries on the object's keys, all others on all others."""
        out = torch.empty_like(call.q[row])
        keys, values = self._keys(call, row, source)
        inside = torch.cat([theirs, own]) if self.union else theirs
        for queries, chosen in ((own, inside), (~own, ~inside)):
            chosen = chosen if chosen.any() else torch.ones_like(chosen)
            if queries.any():
                part = call.fused(
                    call.q[row : row + 1, queries], keys[:, chosen], values[:, chosen]
                )
                out[queries] = part[0]
        return out

    def _keys(
        self, call: AttentionCall, row: int, source: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that a target row reads, [1, tokens, channels]: the source's, in union
        then its own."""
        rows = [source, row] if self.union else [source]
        return torch.cat([call.k[i] for i in rows])[None], torch.cat([call.v[i] for i in rows])[
            None
        ]


def _read(
    call: AttentionCall, row: int, content: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    return call.fused(call.q[row : row + 1], *content)[0]


def _with_source_content(call: AttentionCall, pairs: list[tuple[int, int]]) -> AttentionCall:
    """The call with k and v of target rows replaced by their source's."""
    order = list(range(len(call.q)))
    for target, source in pairs:
        order[target] = source
    return call.replace(call.q, call.k[order], call.v[order])


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
        return controller, _named(model.layers, chosen)

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


def _named(there: Sequence[Layer], chosen: frozenset[Layer]) -> str:
    names = dict.fromkeys(layer.name for layer in there if layer in chosen)
    blocks = f"{len(chosen)} of {len(there)} self-attention layers"
    return f"{blocks}: {', '.join(names)}" if chosen else f"{blocks}: without effect"
