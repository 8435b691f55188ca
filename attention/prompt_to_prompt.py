"""Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626), folded into V.

Every edit of the paper is linear in the attention probabilities, so it can be applied to V instead
and computed
by fused attention: `(P_source M) V_target = P_source (M V_target)`. No map is ever built (METHODS
29.1). With alpha the window of each target column, c its weight, M and own its alignment, the
edited output is

    P_source [M (alpha c V_target)] + P_target [((1 - alpha) + alpha c own) V_target].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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
    cond_pairs,
    window_open,
)
from ..core.errors import PivotError, check_window
from ..core.layers import Layer
from ..core.options import NodeText
from ..core.words import (
    MAPPERS,
    MODES,
    Alignment,
    PromptPair,
    Words,
    check_among,
    reweighted,
    windowed,
    word_weights,
    word_windows,
)

Tables = tuple[torch.Tensor | None, torch.Tensor | None]
"""M diag(alpha c) [T, T] and (1 - alpha) + alpha c own [T, 1]; None where it is all zero."""


@dataclasses.dataclass(frozen=True, eq=False)
class PromptToPrompt(Controller):
    """Replace, refine and reweight edits of cross-attention, and source self-attention.

    alignments: how the columns of each target read the source's, one for each target prompt.
    cross, self_: windows (start, end) as fractions of the steps, noise first; start = end is never.
    self_limit: self-attention is edited in layers with at most this fraction of the latent's
    positions.
    """

    title: ClassVar[str] = "P2P Attention Controller"
    alignments: tuple[Alignment, ...]
    cross: tuple[float, float] = (0.0, 0.8)
    self_: tuple[float, float] = (0.0, 0.4)
    self_limit: float = 0.25

    def __post_init__(self) -> None:
        check_window(self.cross, "cross_", self.title)
        check_window(self.self_, "self_", self.title)

    def wants(self, kind: Kind, place: Place) -> bool:
        """Cross windows count on a table of N + 1 rows, self windows on N, as in the reference
        (METHODS 3.3)."""
        if kind == "self":
            return window_open(self.self_, place, place.steps)
        own = (window for alignment in self.alignments for _, window in alignment.windows)
        return any(window_open(window, place, place.steps + 1) for window in (self.cross, *own))

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        """Cross-attention everywhere, self-attention up to the limit."""
        return kind == "cross" or layer.area <= self.self_limit

    def begin(self) -> dict[Any, Tables]:
        """The run's tables by target, window and call, so that each is built once."""
        return {}

    def __call__(
        self, call: AttentionCall, attend: Attend, state: dict[Any, Tables]
    ) -> torch.Tensor:
        pairs = cond_pairs(call.rows)
        if not pairs or not self.works(call.site, call.place):
            return attend(call)
        if call.site.kind == "cross":
            return self._cross(call, attend, state, pairs)
        return attend(_with_source_maps(call, pairs))

    def _cross(
        self,
        call: AttentionCall,
        attend: Attend,
        state: dict[Any, Tables],
        pairs: list[tuple[int, int]],
    ) -> torch.Tensor:
        """The first term for all rows through the chain; the second only for rows that keep
        anything of theirs."""
        edited, read, kept = call.v.clone(), [], []
        for row, source in pairs:
            mapper, own = self._tables(call, self._alignment(call.rows[row].target), state)
            if mapper is None:
                edited[row] = _scaled(own, call.v[row])
                continue
            read.append((row, source))
            edited[row] = (mapper @ call.v[row].to(mapper.dtype)).to(call.v.dtype)
            if own is not None:
                kept.append((row, _scaled(own, call.v[row])))
        out = attend(_with_source_maps(call.replace(call.q, call.k, edited), read))
        if kept:
            rows = [row for row, _ in kept]
            out = out.clone()
            out[rows] += call.fused(call.q[rows], call.k[rows], torch.stack([v for _, v in kept]))
        return out

    def _alignment(self, target: int) -> Alignment:
        if target < len(self.alignments):
            return self.alignments[target]
        raise PivotError(
            f"words for {target + 1} target prompts",
            f"{len(self.alignments)}",
            "Connect the words that belong to these target prompts.",
            PromptToPrompt.title,
        )

    def _tables(
        self, call: AttentionCall, alignment: Alignment, state: dict[Any, Tables]
    ) -> Tables:
        alpha = self._alpha(alignment, call.place)
        key = (id(alignment), tuple(alpha.tolist()), call.v.shape[1], call.v.dtype, call.v.device)
        if key not in state:
            state[key] = _fit_columns(alignment, alpha, call.v)
        return state[key]

    def _alpha(self, alignment: Alignment, place: Place) -> torch.Tensor:
        """1 for each target column whose window is open at a place: [columns]."""
        rows = place.steps + 1
        alpha = torch.full((len(alignment.own),), float(window_open(self.cross, place, rows)))
        for columns, window in alignment.windows:
            alpha[list(columns)] = float(window_open(window, place, rows))
        return alpha


def _with_source_maps(call: AttentionCall, pairs: list[tuple[int, int]]) -> AttentionCall:
    """The call with q and k of every target row replaced by its source's: the source's map on the
    target's v."""
    order = list(range(len(call.q)))
    for target, source in pairs:
        order[target] = source
    return call.replace(call.q[order], call.k[order], call.v)


def _fit_columns(alignment: Alignment, alpha: torch.Tensor, v: torch.Tensor) -> Tables:
    """The tables for the T columns of this call, on v's device.

    Prompts of unequal length reach the UNet repeated to their common multiple. Repeats hold equal
    keys and values and share the attention equally, so the source's repeats all map to one copy of
    the target's columns.
    """
    precision = torch.promote_types(v.dtype, torch.float32)
    mapper, own, alpha = (table.to(precision) for table in (alignment.mapper, alignment.own, alpha))
    columns = v.shape[1]
    if columns % mapper.shape[0] or columns % mapper.shape[1]:
        raise PivotError(
            f"text context of a multiple of {mapper.shape[0]} and {mapper.shape[1]} tokens",
            f"{columns} tokens",
            "Encode both prompts with the same CLIP and do not append tokens to the conditioning.",
            PromptToPrompt.title,
        )
    weight = alpha if alignment.weights is None else alpha * alignment.weights.to(precision)
    fitted = torch.zeros(columns, columns, dtype=precision)
    fitted[:, : mapper.shape[1]] = (mapper * weight).repeat(columns // mapper.shape[0], 1)
    kept = (1.0 - alpha) + weight * own
    repeated = kept.repeat(columns // len(own))[:, None]
    there = [table.to(v.device) if table.any() else None for table in (fitted, repeated)]
    return there[0], there[1]


def _scaled(own: torch.Tensor | None, v: torch.Tensor) -> torch.Tensor:
    """v with its columns scaled, in the tables' precision."""
    return torch.zeros_like(v) if own is None else (own * v.to(own.dtype)).to(v.dtype)


Window = tuple[float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class PromptToPromptOptions(ControlOptions):
    """Which words are edited, how and when, as people write it."""

    node: ClassVar[NodeText] = NodeText(
        "PivotPromptToPrompt",
        PromptToPrompt.title,
        "Prompt-to-Prompt: the edit takes over where the source picture looks, so that shapes and "
        "places stay while words change. Works on the fused attention of the host, at any "
        "resolution.",
        (
            "p2p",
            "prompt-to-prompt",
            "attention replace",
            "attention refine",
            "attention reweight",
        ),
        note="alignment",
    )

    words: Words = options.words(
        "Which words correspond, from Prompt Pair or Add Target.",
    )
    mode: str = options.choice(
        "auto",
        MODES,
        "replace: swap words one for one (equal word counts); refine: add or remove words; auto: "
        "replace where the counts agree, else refine; reweight: by position, for weights alone.",
    )
    cross: Window = options.window(
        PromptToPrompt.cross,
        "When cross-attention edits begin, as a fraction of the steps. Usually 0.",
        "When cross-attention edits end. Higher keeps more of the source's layout; 0.4 to 0.8.",
        prefix="cross_",
    )
    self_: Window = options.window(
        PromptToPrompt.self_,
        "When self-attention edits begin, as a fraction of the steps. Usually 0.",
        "When self-attention edits end. Higher keeps more of the source's shapes; 0.2 to 0.8.",
        prefix="self_",
    )
    self_limit: float = options.fraction(
        PromptToPrompt.self_limit,
        "Self-attention is edited in layers with at most this fraction of the latent's positions. "
        "0.0625: coarse layers only (as prompt-to-prompt), 0.25: as null-text inversion, 1: all.",
    )
    word_weights: str = options.text(
        "",
        "How strongly words of the target prompt act, e.g. `shiny: 2, red: 0`. Above 1 more, below "
        "1 less, 0 not at all, negative the opposite; -2 to 5. Works while the cross window is "
        "open.",
        optional=True,
    )
    word_windows: str = options.text(
        "",
        "Cross windows of single words, e.g. `star: 0-0.3, red: 0.9`. A shorter window lets this "
        "word take a shape of its own; other words keep cross_start and cross_end.",
        optional=True,
    )
    mapper: str = options.choice(
        "fixed",
        MAPPERS,
        "fixed: attention is never lost between words; legacy: the table of the public "
        "implementations, to compare with their results.",
        optional=True,
        advanced=True,
    )

    def build(self, model: ModelFacts) -> tuple[PromptToPrompt, str]:
        """The controller, and what it does with the words, in words."""
        targets = [pair.target for pair in self.words]
        weights, windows = word_weights(self.word_weights), word_windows(self.word_windows)
        for phrase, _ in (*weights, *windows):
            check_among(targets, phrase)
        alignments = tuple(self._aligned(pair, weights, windows) for pair in self.words)
        controller = PromptToPrompt(alignments, self.cross, self.self_, self.self_limit)
        return controller, "\n".join(f"{each.mode}: {each.note}" for each in alignments)

    def _aligned(
        self,
        pair: PromptPair,
        weights: Sequence[tuple[str, float]],
        windows: Sequence[tuple[str, Window]],
    ) -> Alignment:
        """One target's alignment with those of the weights and windows whose words it has."""
        weights = [each for each in weights if pair.target.seek(each[0])]
        windows = [each for each in windows if pair.target.seek(each[0])]
        weighted = reweighted(pair.align(self.mode, self.mapper), pair.target, weights)
        return windowed(weighted, pair.target, windows)
