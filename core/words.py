"""Prompts as words on token columns, and how two prompts align (Hertz et al. 2022, arXiv 2208.01626, sec. 3.2).

A column is an index into the text encoder's output, `chunk * 77 + position`; long prompts have several chunks.
Words are whitespace-separated; comparing ignores case and surrounding punctuation.
"""

from __future__ import annotations

import dataclasses

import torch

from .errors import PivotError

CHUNK = 77
MODES = ("auto", "replace", "refine")
_PUNCTUATION = "\"'`.,;:!?()[]{}<>…“”‘’«»、。，！？；：（）-–—"


def bare(word: str) -> str:
    """A word as it is compared: without case and surrounding punctuation."""
    return word.strip(_PUNCTUATION).casefold()


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a prompt. columns: all its token columns; core: those without surrounding punctuation."""

    text: str
    columns: tuple[int, ...]
    core: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt on its token columns. tokens: the token id of every column, special ones and padding included."""

    text: str
    words: tuple[Word, ...]
    tokens: tuple[int, ...]

    def find(self, phrase: str) -> tuple[int, ...]:
        """The columns of every occurrence of a word or phrase, without its punctuation.

        Raises PivotError listing the words there are if it does not occur.
        """
        wanted = [bare(part) for part in phrase.split()]
        here = [bare(word.text) for word in self.words]
        starts = [i for i in range(len(here)) if wanted and here[i : i + len(wanted)] == wanted]
        if not starts:
            there = ", ".join(dict.fromkeys(name for name in here if name))
            raise PivotError(
                f"a word of the prompt {self.text!r}",
                repr(phrase),
                f"Its words are: {there}.",
            )
        return tuple(
            column for start in starts for word in self.words[start : start + len(wanted)] for column in word.core
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """How target columns read the source's attention: `edited = probs_source @ mapper + own * probs_target`.

    mapper: [source columns, target columns]; own: [target columns], the share a column keeps of itself.
    mode: replace | refine; note: the alignment in words.
    """

    mapper: torch.Tensor
    own: torch.Tensor
    mode: str
    note: str


@dataclasses.dataclass(frozen=True)
class PromptPair:
    """A source and a target prompt, read on the same tokenizer."""

    source: Prompt
    target: Prompt

    def align(self, mode: str = "auto") -> Alignment:
        """The alignment of the two prompts; `auto` replaces words where the word counts agree, else refines.

        Raises PivotError for an unknown mode, or when words cannot be replaced one by one.
        """
        if mode not in MODES:
            raise PivotError(f"mode to be one of {MODES}", repr(mode), "Choose one of them.")
        same_count = len(self.source.words) == len(self.target.words)
        if mode == "replace" and not same_count:
            raise PivotError(
                "as many words in the target prompt as in the source prompt to replace them one by one",
                f"{len(self.target.words)} and {len(self.source.words)}",
                "Use mode refine or auto, or write prompts of equal length.",
            )
        if mode == "replace" or (mode == "auto" and same_count):
            return align_replace(self.source, self.target)
        return align_refine(self.source, self.target)


def align_replace(source: Prompt, target: Prompt) -> Alignment:
    """Words one by one: k source tokens share their attention over m target tokens (identity where k = m).

    Every row of the mapper sums to 1, so no attention is lost or invented: the references' mapper misaligns
    everything after a word whose token count changes (METHODS 3.5), this one does not. Padding that the target
    has no room for goes to its last column.
    """
    mapper = torch.zeros(len(source.tokens), len(target.tokens))
    changed = []
    for old, new in zip(source.words, target.words, strict=True):
        _share(mapper, old.columns, new.columns)
        if bare(old.text) != bare(new.text):
            changed.append(f"{old.text} -> {new.text} replaced")
    surplus, _ = _map_specials(mapper, source, target)
    mapper[surplus, -1] = 1.0
    kept = len(source.words) - len(changed)
    note = "; ".join([*changed, f"{kept} words kept"])
    return Alignment(mapper, torch.zeros(len(target.tokens)), "replace", note)


def align_refine(source: Prompt, target: Prompt) -> Alignment:
    """Needleman-Wunsch on token ids (match 1, mismatch -1, gap 0): new columns keep their own attention.

    Padding reads padding of the same position. The references read whatever stands there, which are words of the
    source when the target is shorter (METHODS 3.6).
    """
    old = [column for word in source.words for column in word.columns]
    new = [column for word in target.words for column in word.columns]
    pairs = _needleman_wunsch([source.tokens[i] for i in old], [target.tokens[j] for j in new])
    mapper = torch.zeros(len(source.tokens), len(target.tokens))
    own = torch.zeros(len(target.tokens))
    own[new] = 1.0
    for i, j in pairs:
        mapper[old[i], new[j]] = 1.0
        own[new[j]] = 0.0
    _, unmatched = _map_specials(mapper, source, target)
    own[unmatched] = 1.0
    return Alignment(mapper, own, "refine", _explain_refine(source, target, mapper, own))


def _share(mapper: torch.Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    if len(old) == len(new):
        mapper[list(old), list(new)] = 1.0
        return
    for column in old:
        mapper[column, list(new)] = 1.0 / len(new)


def _specials(prompt: Prompt) -> list[list[int]]:
    """Columns without words, chunk by chunk: the begin token, the end token, then padding."""
    words = {column for word in prompt.words for column in word.columns}
    starts = range(0, len(prompt.tokens), CHUNK)
    return [[c for c in range(start, start + CHUNK) if c not in words and c < len(prompt.tokens)] for start in starts]


def _map_specials(mapper: torch.Tensor, source: Prompt, target: Prompt) -> tuple[list[int], list[int]]:
    """Chunk by chunk, begin to begin and end to end, padding from the last column back (equal positions).

    Returns the source's and the target's special columns that have no partner.
    """
    old, new = _specials(source), _specials(target)
    for mine, theirs in zip(old, new, strict=False):
        pairs = [*zip(mine[:2], theirs[:2], strict=True), *zip(mine[:1:-1], theirs[:1:-1], strict=False)]
        for i, j in pairs:
            mapper[i, j] = 1.0
    alone_old = [i for chunk in old for i in chunk if not mapper[i].any()]
    alone_new = [j for chunk in new for j in chunk if not mapper[:, j].any()]
    return alone_old, alone_new


def _needleman_wunsch(old: list[int], new: list[int]) -> list[tuple[int, int]]:
    """Matched index pairs of two sequences, ascending; ties go to insertion, then deletion, as in the references."""
    score = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i, a in enumerate(old):
        for j, b in enumerate(new):
            diagonal = score[i][j] + (1 if a == b else -1)
            score[i + 1][j + 1] = max(score[i + 1][j], score[i][j + 1], diagonal)
    i, j, pairs = len(old), len(new), []
    while i > 0 and j > 0:
        if score[i][j] == score[i][j - 1]:
            j -= 1
        elif score[i][j] == score[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


def _explain_refine(source: Prompt, target: Prompt, mapper: torch.Tensor, own: torch.Tensor) -> str:
    new = [word.text for word in target.words if own[list(word.columns)].any()]
    words = [column for word in target.words for column in word.columns]
    lost = [word.text for word in source.words if not mapper[list(word.columns)][:, words].any()]
    kept = len(target.words) - len(new)
    parts = [f"{word!r} new" for word in new] + [f"{word!r} gone" for word in lost]
    return "; ".join([*parts, f"{kept} words kept"])
