"""Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626), folded into V.

Every edit of the paper is linear in the attention probabilities. So it can be applied to V instead
and computed by fused attention: `(P_source M) V_target = P_source (M V_target)`. No map is ever
built (METHODS 29.1). Let alpha be the window of each target column, c its weight, and M and s the
mapper and the target's share of its alignment. The edited output is

    P_source [M (alpha c V_target)] + P_target [((1 - alpha) + alpha c s) V_target].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.columns import text_columns
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


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a call."""

    at: slice | torch.Tensor
    """The rows as they are read, which is without a copy where they lie side by side."""
    index: torch.Tensor
    """The rows as they are written, on the call's device."""

    @staticmethod
    def of(rows: Sequence[int], device: torch.device) -> Rows:
        """The rows of these numbers."""
        index = torch.tensor(rows, device=device)
        first, last = rows[0], rows[-1]
        beside = list(rows) == list(range(first, last + 1))
        return Rows(slice(first, last + 1) if beside else index, index)


@dataclasses.dataclass(frozen=True, eq=False)
class CrossEdit:
    """What one kind of cross-attention call becomes."""

    order: torch.Tensor
    """Whose q and k each row reads."""
    targets: Rows
    """The rows that are edited."""
    tables: torch.Tensor
    """[targets, T or 2T, T]: what makes their values for the first term and, below, those for the
    second, where some row has one."""


@dataclasses.dataclass(frozen=True, eq=False)
class PromptToPrompt(Controller):
    """Edits cross-attention by replacing, refining and reweighting, and self-attention by the
    source's."""

    title: ClassVar[str] = "P2P Attention Controller"
    rank: ClassVar[int] = 0
    """Before MasaCtrl, whose union and masks compute rows of their own from the queries and keys
    that reach them: behind it, the self window would be without effect there."""
    alignments: tuple[Alignment, ...]
    """How the columns of each target prompt read the source's."""
    cross: tuple[float, float] = (0.0, 0.8)
    """The window (start, end) of cross-attention in fractions of the steps, noise first. It is
    never open where start = end."""
    self_: tuple[float, float] = (0.0, 0.4)
    """The window of self-attention."""
    self_limit: float = 0.25
    """Self-attention is edited in layers with at most this fraction of the latent's positions."""

    def __post_init__(self) -> None:
        check_window(self.cross, "cross_", self.title)
        check_window(self.self_, "self_", self.title)

    def wants(self, kind: Kind, place: Place) -> bool:
        """Cross windows count on a table of N + 1 rows, self windows on N, as in the reference
        (METHODS 3.3)."""
        if kind == "self":
            return window_open(self.self_, place, place.steps)
        single = (window for alignment in self.alignments for _, window in alignment.windows)
        return any(window_open(window, place, place.steps + 1) for window in (self.cross, *single))

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        """Cross-attention everywhere, self-attention up to the limit."""
        return kind == "cross" or layer.area <= self.self_limit

    def begin(self) -> dict[Any, Any]:
        """What the run's calls become, by their kind, so that each kind is worked out once."""
        return {}

    def __call__(self, call: AttentionCall, attend: Attend, state: dict[Any, Any]) -> torch.Tensor:
        pairs = cond_pairs(call.rows)
        if not pairs or not self.works(call.site, call.place):
            return attend(call)
        if call.site.kind == "cross":
            return _edited(call, attend, self._cross(call, pairs, state))
        key = ("self", call.rows, call.q.device)
        if key not in state:
            state[key] = _order(len(call.rows), pairs, call.q.device)
        return attend(call.replace(call.q[state[key]], call.k[state[key]], call.v))

    def _cross(
        self, call: AttentionCall, pairs: list[tuple[int, int]], state: dict[Any, Any]
    ) -> CrossEdit:
        """The edit of a cross-attention call while the same windows are open."""
        opens = {row: self._opens(call.rows[row].target, call.place) for row, _ in pairs}
        # what an edit depends on beside its windows: most calls of a run share one
        like = (call.rows, call.texts, call.v.shape[1], call.v.dtype, call.v.device)
        key = ("cross", *opens.values(), *like)
        if key not in state:
            state[key] = self._cross_edit(call, pairs, opens)
        edit: CrossEdit = state[key]
        return edit

    def _cross_edit(
        self, call: AttentionCall, pairs: list[tuple[int, int]], opens: dict[int, tuple[bool, ...]]
    ) -> CrossEdit:
        """The edit of the target rows of `pairs`, under the windows that are open for each."""
        tables, read = [], []
        for row, source in pairs:
            one = self.alignments[call.rows[row].target]
            lengths = (
                text_columns(call, source, one.mapper.shape[0], self.title),
                text_columns(call, row, one.mapper.shape[1], self.title),
            )
            fitted, remaining = _fit_columns(one, opens[row], lengths, call.v)
            if fitted.any():
                read.append((row, source))
            else:  # nothing of the source is read: the row's values under its map
                fitted, remaining = remaining, torch.zeros_like(remaining)
            tables.append((fitted, remaining))
        first, second = (torch.stack(each) for each in zip(*tables, strict=True))
        both = torch.cat([first, second], 1) if second.any() else first
        device = call.v.device
        rows = Rows.of([row for row, _ in pairs], device)
        return CrossEdit(_order(len(call.rows), read, device), rows, both.to(device))

    def _opens(self, target: int, place: Place) -> tuple[bool, ...]:
        """Which windows of a target are open at a place: the common one, then its words' own."""
        if target >= len(self.alignments):
            raise PivotError(
                f"words for {target + 1} target prompts",
                f"{len(self.alignments)}",
                "Connect the words that belong to these target prompts.",
                self.title,
            )
        listed = (self.cross, *(window for _, window in self.alignments[target].windows))
        return tuple(window_open(window, place, place.steps + 1) for window in listed)


def _edited(call: AttentionCall, attend: Attend, edit: CrossEdit) -> torch.Tensor:
    """The attention output of an edited call.

    The first term goes through the chain with all rows. The second is added only where some row has
    one.
    """
    rows, tables = edit.targets, edit.tables
    values = (tables @ call.v[rows.at].to(tables.dtype)).to(call.v.dtype)
    columns = call.v.shape[1]
    v = call.v.index_copy(0, rows.index, values[:, :columns])
    out = attend(call.replace(call.q[edit.order], call.k[edit.order], v))
    if tables.shape[1] == columns:
        return out
    second = call.fused(call.q[rows.at], call.k[rows.at], values[:, columns:])
    return out.index_add(0, rows.index, second)


def _order(rows: int, pairs: Sequence[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """The row whose q and k each row takes: a target its source's, any other its own."""
    order = list(range(rows))
    for target, source in pairs:
        order[target] = source
    return torch.tensor(order, device=device)


def _fit_columns(
    alignment: Alignment, opens: tuple[bool, ...], lengths: tuple[int, int], v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """M diag(alpha c) and diag((1 - alpha) + alpha c s), [T, T], for the T columns of this call
    and texts of (source, target) lengths."""
    alignment = _with_appended(alignment, *lengths)
    # tables of half precision would round every weight before it meets a value
    precision = torch.promote_types(v.dtype, torch.float32)
    mapper, share = alignment.mapper.to(precision), alignment.target_share.to(precision)
    alpha = torch.full((lengths[1],), float(opens[0]), dtype=precision)
    for (columns, _), is_open in zip(alignment.windows, opens[1:], strict=True):
        alpha[list(columns)] = float(is_open)
    weight = alpha if alignment.weights is None else alpha * alignment.weights.to(precision)
    every = v.shape[1]
    fitted = torch.zeros(every, every, dtype=precision)
    # repeats of a text share its attention equally, so that the source's repeats may all map to one
    # copy of the target's columns
    fitted[:, : lengths[1]] = (mapper * weight).repeat(every // lengths[0], 1)
    remaining = (1.0 - alpha) + weight * share
    return fitted, torch.diag(remaining.repeat(every // lengths[1]))


def _with_appended(alignment: Alignment, source: int, target: int) -> Alignment:
    """The alignment of texts that go on behind their prompts, for `source` and `target` columns.

    Appended columns read those appended at the same place, as words that stand in both prompts do.
    Where only the target goes on, its columns are new. Where only the source does, the target's
    column at the same place is read.
    """
    old, new = alignment.mapper.shape
    if (source, target) == (old, new):
        return alignment
    mapper, share = torch.zeros(source, target), torch.zeros(target)
    mapper[:old, :new], share[:new] = alignment.mapper, alignment.target_share
    for column in range(old, source):
        partner = new + column - old
        mapper[column, partner if partner < target else column % target] = 1.0
    share[new + source - old :] = 1.0
    weights = alignment.weights
    if weights is not None:
        weights = torch.cat([weights, torch.ones(target - new)])
    return dataclasses.replace(alignment, mapper=mapper, target_share=share, weights=weights)


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
        "replace where the counts agree and no word has moved, else refine; reweight: by position, "
        "for weights alone.",
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
