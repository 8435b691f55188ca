"""Prompts as words on token columns, and how two prompts align (Hertz et al. 2022, arXiv
2208.01626, sec. 3.2).

A column is an index into the text encoder's output, `chunk * 77 + position`; long prompts have
several chunks. Where words end is said in `spelling`; comparing ignores case and surrounding
punctuation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Hashable, Sequence

import torch

from .errors import PivotError
from .spelling import bare, has_signs, is_spaceless, names, stem

CHUNK = 77
LONGEST = 64 * CHUNK
"""The columns of the longest prompt that is aligned: a mapper of 97 MB."""
MODES = ("auto", "replace", "refine", "reweight")
MAPPERS = ("fixed", "legacy")


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a prompt."""

    text: str
    columns: tuple[int, ...]
    """All its token columns."""
    core: tuple[int, ...]
    """Those without surrounding punctuation."""
    stem: tuple[int, ...] = ()
    """Those without an ending such as 's, where it has one."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt on its token columns."""

    text: str
    words: tuple[Word, ...]
    tokens: tuple[int, ...]
    """The token id of every column, special ones and padding included."""
    chunk: int = CHUNK
    """The columns that the text encoder reads at once."""

    def find(self, phrase: str) -> tuple[int, ...]:
        """The columns of every occurrence of a word or phrase, without its punctuation.

        Raises PivotError listing the words there are if it does not occur.
        """
        columns = self.seek(phrase)
        if not columns:
            raise PivotError(
                f"a word of the prompt {self.text!r}",
                repr(phrase),
                f"Its words are: {self.listed}.",
            )
        return columns

    def seek(self, phrase: str) -> tuple[int, ...]:
        """The columns that `find` gives, or none if the phrase does not occur.

        `dog` finds the dog of `dog's`, and `dog's` finds both.
        """
        parts = names(phrase)
        return tuple(
            column for start in range(len(self.words)) for column in self._columns_at(start, parts)
        )

    def _columns_at(self, start: int, parts: Sequence[str]) -> tuple[int, ...]:
        """The columns of the words from `start` on, if they are those of a phrase."""
        columns: list[int] = []
        at = start
        while parts and at < len(self.words):
            word, spelled = self.words[at], self._names[at]
            if spelled and tuple(parts[: len(spelled)]) == spelled:
                columns += word.core
            elif spelled and word.stem and parts[0] == stem(spelled[0]):
                columns += word.stem
            elif spelled or not columns:  # a comma alone may stand between two words
                return ()
            parts, at = parts[len(spelled) :], at + 1
        return () if parts else tuple(columns)

    @functools.cached_property
    def _names(self) -> tuple[tuple[str, ...], ...]:
        """Every word as it is compared. Signs that share a token are one word of several names."""
        return tuple(tuple(names(word.text)) for word in self.words)

    @property
    def listed(self) -> str:
        """The different words there are, for messages."""
        spelled = (name for each in self._names for name in each if bare(name))
        return ", ".join(dict.fromkeys(spelled))


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """How target columns read attention.

    `edited = weights * (probs_source @ mapper + target_share * probs_target)`
    """

    mapper: torch.Tensor
    """How much of each source column a target column reads [source columns, target columns]."""
    target_share: torch.Tensor
    """How much a column keeps of the target's own attention [target columns]."""
    mode: str
    """replace, refine or reweight."""
    note: str
    """The alignment in words."""
    weights: torch.Tensor | None = None
    """The paper's equalizer [target columns], None for ones."""
    windows: tuple[tuple[tuple[int, ...], tuple[float, float]], ...] = ()
    """(columns, (start, end)) of words with a window of their own."""

    def noting(self, text: str) -> Alignment:
        """The same with a further note."""
        return dataclasses.replace(self, note=f"{self.note}; {text}")


@dataclasses.dataclass(frozen=True)
class PromptPair:
    """A source and a target prompt, read on the same tokenizer."""

    source: Prompt
    target: Prompt

    def align(self, mode: str = "auto", mapper: str = "fixed") -> Alignment:
        """The alignment of the two prompts.

        The mode `auto` replaces words where `one_by_one` says so, else it refines. The mapper is
        fixed, or legacy for the tables of the public implementations with their quirks, which hold
        one chunk only. Raises PivotError for an unknown mode or mapper, or when the prompts cannot
        be aligned so.
        """
        for name, value, choices in (("mode", mode, MODES), ("mapper", mapper, MAPPERS)):
            if value not in choices:
                raise PivotError(
                    f"{name} to be one of {choices}", repr(value), "Choose one of them."
                )
        if mapper == "legacy" and max(len(self.source.tokens), len(self.target.tokens)) > CHUNK:
            raise PivotError(
                "prompts of at most 75 tokens for the legacy mapper",
                f"{len(self.source.tokens)} and {len(self.target.tokens)} columns",
                "Use the fixed mapper, or shorten the prompts.",
            )
        if mode == "reweight":
            return align_positions(self.source, self.target)
        if mode == "replace" and len(self.source.words) != len(self.target.words):
            raise PivotError(
                "as many words in the target prompt as in the source prompt to replace them one "
                "by one",
                f"{len(self.target.words)} and {len(self.source.words)}",
                "Use mode refine or auto, or write prompts of equal length.",
            )
        replace = mode == "replace" or (mode == "auto" and self.one_by_one)
        if mapper == "legacy":
            return (legacy_replace if replace else legacy_refine)(self.source, self.target)
        return (align_replace if replace else align_refine)(self.source, self.target)

    @functools.cached_property
    def one_by_one(self) -> bool:
        """Whether word i of the source stands for word i of the target.

        There are as many words, spaces separate them, and pairs by place keep no fewer words than
        a match that keeps their order: else words have moved.
        """
        if len(self.source.words) != len(self.target.words):
            return False
        if is_spaceless(self.source.text) or is_spaceless(self.target.text):
            return False
        old, new = ([bare(word.text) for word in one.words] for one in (self.source, self.target))
        in_place = sum(a == b for a, b in zip(old, new, strict=True))
        return in_place >= len(_matches(old, new))


Words = tuple[PromptPair, ...]
"""One pair for each target; all have the same source."""


def align_positions(source: Prompt, target: Prompt) -> Alignment:
    """The alignment column by column, as reweighting alone does in the references.

    Raises PivotError when one prompt fills more chunks than the other.
    """
    if len(source.tokens) != len(target.tokens):
        raise PivotError(
            "prompts of as many columns to reweight them by position",
            f"{len(source.tokens)} and {len(target.tokens)}",
            "Use mode refine; words are reweighted there too.",
        )
    columns = len(target.tokens)
    same = sum(old.text == new.text for old, new in zip(source.words, target.words, strict=False))
    return Alignment(
        torch.eye(columns), torch.zeros(columns), "reweight", f"{same} words kept in their places"
    )


def reweighted(
    alignment: Alignment, target: Prompt, weights: Sequence[tuple[str, float]]
) -> Alignment:
    """The alignment with words of the target weighted.

    A weight of 1 leaves a word as it is, 0 removes it, and a negative one repels. Raises PivotError
    for a word that is not there.
    """
    if not weights:
        return alignment
    table = (
        torch.ones(len(target.tokens)) if alignment.weights is None else alignment.weights.clone()
    )
    for phrase, weight in weights:
        table[list(target.find(phrase))] = weight
    note = ", ".join(f"{phrase!r} x {weight:g}" for phrase, weight in weights)
    return dataclasses.replace(alignment, weights=table).noting(note)


def windowed(
    alignment: Alignment, target: Prompt, windows: Sequence[tuple[str, tuple[float, float]]]
) -> Alignment:
    """The alignment with words of the target edited in windows of their own.

    Later windows win. Raises PivotError for a word that is not there.
    """
    if not windows:
        return alignment
    added = tuple((target.find(phrase), window) for phrase, window in windows)
    note = ", ".join(f"{phrase!r} from {start:g} to {end:g}" for phrase, (start, end) in windows)
    return dataclasses.replace(alignment, windows=(*alignment.windows, *added)).noting(note)


def phrases(text: str) -> list[str]:
    """A list of words or phrases, separated by commas, semicolons or lines, also full-width."""
    return [part.strip() for part in re.split(r"[,;\n，、､；]", text) if part.strip()]


def word_weights(text: str) -> list[tuple[str, float]]:
    """`shiny: 2, red: -0.5` as pairs. Raises PivotError for anything else."""
    weights = []
    for part in phrases(text):
        read = re.fullmatch(r"(.+?)\s*[:：]\s*([-+]?(?:\d+\.?\d*|\.\d+))", part)
        if read is None or not math.isfinite(float(read[2])):
            raise PivotError(
                "words with weights, such as `shiny: 2, red: -0.5`",
                f"{part!r:.100}",
                "Write word: number.",
            )
        weights.append((read[1], float(read[2])))
    return weights


def word_windows(text: str) -> list[tuple[str, tuple[float, float]]]:
    """`star: 0.2-0.8, red: 0.5` as pairs, where one number is the end. Raises PivotError for
    anything else."""
    windows = []
    number = r"(\d+\.?\d*|\.\d+)"
    for part in phrases(text):
        read = re.fullmatch(rf"(.+?)\s*[:：]\s*{number}(?:\s*[-–－~～]\s*{number})?", part)
        if read is None:
            raise PivotError(
                "words with windows, such as `star: 0.2-0.8, red: 0.5`",
                repr(part),
                "Write word: start-end.",
            )
        window = (float(read[2]), float(read[3])) if read[3] else (0.0, float(read[2]))
        if not 0.0 <= window[0] <= window[1] <= 1.0:
            raise PivotError(
                "windows between 0 and 1, start before end",
                repr(part),
                "They are fractions of the steps, noise first.",
            )
        windows.append((read[1], window))
    return windows


def check_among(prompts: Sequence[Prompt], phrase: str) -> None:
    """Raise PivotError listing all the prompts' words if none of them has a phrase."""
    if not any(prompt.seek(phrase) for prompt in prompts):
        texts = " or ".join(dict.fromkeys(repr(prompt.text) for prompt in prompts))
        words = ", ".join(
            dict.fromkeys(word for prompt in prompts for word in prompt.listed.split(", "))
        )
        raise PivotError(f"a word of the prompt {texts}", repr(phrase), f"There are: {words}.")


def align_replace(source: Prompt, target: Prompt) -> Alignment:
    """The alignment of words one by one, k source tokens sharing their attention over m target
    tokens.

    Every row of the mapper sums to 1, so that no attention is lost or invented. The references'
    mapper misaligns everything after a word whose token count changes (METHODS 3.5); this one does
    not. Padding that the target has no room for goes to its last column.
    """
    mapper = torch.zeros(len(source.tokens), len(target.tokens))
    changed = []
    for old, new in zip(source.words, target.words, strict=True):
        _share(mapper, old.columns, new.columns)
        if names(old.text) != names(new.text):
            changed.append(f"{old.text} -> {new.text} replaced")
    surplus, _ = _map_specials(mapper, source, target)
    mapper[surplus, -1] = 1.0
    unchanged = len(source.words) - len(changed)
    note = "; ".join([*changed, f"{unchanged} words kept"])
    return Alignment(mapper, torch.zeros(len(target.tokens)), "replace", note)


def align_refine(source: Prompt, target: Prompt) -> Alignment:
    """The alignment by Needleman-Wunsch on token ids (match 1, mismatch -1, gap 0).

    Tokens that are parts of a Chinese sign match in the same sign only.

    New columns keep their own attention. Padding reads padding of the same position. The references
    read whatever stands there, which are words of the source when the target is shorter (METHODS
    3.6).
    """
    old, new = _written(source), _written(target)
    columns = [*old], [*new]
    pairs = [(columns[0][i], columns[1][j]) for i, j in _matches([*old.values()], [*new.values()])]
    mapper = torch.zeros(len(source.tokens), len(target.tokens))
    share = torch.zeros(len(target.tokens))
    share[[*new]] = 1.0
    if pairs:
        read, reads = (list(columns) for columns in zip(*pairs, strict=True))
        mapper[read, reads] = 1.0
        share[reads] = 0.0
    _, unmatched = _map_specials(mapper, source, target)
    share[unmatched] = 1.0
    return Alignment(mapper, share, "refine", _explain_refine(source, target, mapper, share))


def _written(prompt: Prompt) -> dict[int, tuple[int, str]]:
    """What stands in the columns of a prompt's words: a token, and the sign it is a part of."""
    return {
        column: (prompt.tokens[column], sign)
        for word in prompt.words
        for sign in [bare(word.text) if has_signs(word.text) else ""]
        for column in word.columns
    }


def legacy_replace(source: Prompt, target: Prompt) -> Alignment:
    """The public implementations' table for replaced words, quirk included (METHODS 3.5).

    After the last changed word it writes M[j, j] where M[i, j] was meant. So everything after a
    word whose token count changes is misaligned, and attention is lost or doubled.
    """
    mapper = torch.zeros(CHUNK, CHUNK)
    changed = [
        (old, new)
        for old, new in zip(source.words, target.words, strict=True)
        if old.text != new.text and old.columns and new.columns
    ]
    i = j = done = 0
    while i < CHUNK and j < CHUNK:
        if done < len(changed) and changed[done][0].columns[0] == i:
            old, new = changed[done]
            _share(mapper, old.columns, new.columns)
            i, j, done = i + len(old.columns), j + len(new.columns), done + 1
        else:
            # the quirk: behind the last changed word the references count both prompts by j
            mapper[i if done < len(changed) else j, j] = 1.0
            i, j = i + 1, j + 1
    note = "; ".join(
        [*(f"{old.text} -> {new.text} replaced" for old, new in changed), "legacy table"]
    )
    return Alignment(mapper, torch.zeros(CHUNK), "replace", note)


def legacy_refine(source: Prompt, target: Prompt) -> Alignment:
    """The public implementations' table for added words, quirk included (METHODS 3.6).

    Behind the target's end token, every column reads the source's column of the same number. Those
    are words when the target is the shorter one.
    """
    fixed = align_refine(source, target)
    end = 2 + sum(len(word.columns) for word in target.words)
    mapper, share = fixed.mapper.clone(), fixed.target_share.clone()
    mapper[:, end:] = torch.eye(CHUNK)[:, end:]
    share[end:] = 0.0
    return dataclasses.replace(fixed, mapper=mapper, target_share=share).noting("legacy table")


def _share(mapper: torch.Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> None:
    """Write a word's columns into the mapper: one to one where there are as many, else in equal
    parts."""
    if len(old) == len(new):
        mapper[list(old), list(new)] = 1.0
        return
    for column in old:
        mapper[column, list(new)] = 1.0 / len(new)


def _specials(prompt: Prompt) -> list[list[int]]:
    """The columns without words of each chunk: the begin token, the end token, then padding."""
    words = {column for word in prompt.words for column in word.columns}
    starts = range(0, len(prompt.tokens), prompt.chunk)
    return [
        [c for c in range(start, start + prompt.chunk) if c not in words and c < len(prompt.tokens)]
        for start in starts
    ]


def _map_specials(
    mapper: torch.Tensor, source: Prompt, target: Prompt
) -> tuple[list[int], list[int]]:
    """Write the special columns into the mapper, chunk by chunk: begin to begin and end to end.

    Returns the source's and the target's special columns that have no partner.
    """
    old, new = _specials(source), _specials(target)
    for old_chunk, new_chunk in zip(old, new, strict=False):
        pairs = [
            *zip(old_chunk[:2], new_chunk[:2], strict=True),
            # padding from the last column back, so that equal positions meet
            *zip(old_chunk[:1:-1], new_chunk[:1:-1], strict=False),
        ]
        for i, j in pairs:
            mapper[i, j] = 1.0
    read, reads = mapper.any(1).tolist(), mapper.any(0).tolist()
    alone_old = [i for chunk in old for i in chunk if not read[i]]
    alone_new = [j for chunk in new for j in chunk if not reads[j]]
    return alone_old, alone_new


def _matches(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[tuple[int, int]]:
    """The matched index pairs of two sequences by Needleman-Wunsch, ascending.

    Ties go to insertion, then to deletion, as in the references. They then fall on the earliest
    pairs, so that a common beginning is matched as it stands.
    """
    same = next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b),
        min(len(old), len(new)),
    )
    scores = _scores(old[same:], new[same:])
    i, j, pairs = len(old) - same, len(new) - same, []
    row, above = scores[i].tolist(), scores[max(i - 1, 0)].tolist()
    while i > 0 and j > 0:
        if row[j] == row[j - 1]:
            j -= 1
            continue
        if row[j] != above[j]:
            j -= 1
            pairs.append((same + i - 1, same + j))
        i -= 1
        row, above = above, scores[max(i - 1, 0)].tolist()
    return [(i, i) for i in range(same)] + pairs[::-1]


def _scores(old: Sequence[Hashable], new: Sequence[Hashable]) -> torch.Tensor:
    """The scores [old + 1, new + 1] of all beginnings of two sequences: how many can be matched.

    A mismatch is never better than two gaps. So a row is the running maximum of what the row above
    offers.
    """
    numbers = {item: number for number, item in enumerate(dict.fromkeys([*old, *new]))}
    targets = torch.tensor([numbers[item] for item in new], dtype=torch.int64)
    scores = torch.zeros(len(old) + 1, len(new) + 1, dtype=torch.int16)
    for i, item in enumerate(old if len(new) else ()):
        diagonal = scores[i, :-1] + (targets == numbers[item])
        scores[i + 1, 1:] = torch.maximum(scores[i, 1:], diagonal).cummax(0).values
    return scores


def _explain_refine(
    source: Prompt, target: Prompt, mapper: torch.Tensor, share: torch.Tensor
) -> str:
    """A refined alignment in words: what is new, what is gone, how much stays."""
    fresh, read = share.tolist(), mapper.any(1).tolist()
    new = [word.text for word in target.words if any(fresh[column] for column in word.columns)]
    lost = [word.text for word in source.words if not any(read[i] for i in word.columns)]
    unchanged = len(target.words) - len(new)
    parts = [f"{word!r} new" for word in new] + [f"{word!r} gone" for word in lost]
    return "; ".join([*parts, f"{unchanged} words kept"])


def check_in_pairs(words: Words, phrase: str) -> None:
    """Raise PivotError listing the words there are if no prompt of any pair has a phrase."""
    check_among([prompt for pair in words for prompt in (pair.source, pair.target)], phrase)


def columns_in_both(
    pair: PromptPair, listed: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The columns of words in the source and in the target.

    A word of one prompt stands for its counterpart in the other, where the words are aligned one by
    one.
    """
    source: dict[int, None] = {}
    target: dict[int, None] = {}
    for phrase in listed:
        old, new = pair.source.seek(phrase), pair.target.seek(phrase)
        if pair.one_by_one:
            old, new = (
                old or _counterpart(pair.target, pair.source, new),
                new or _counterpart(pair.source, pair.target, old),
            )
        source.update(dict.fromkeys(old))
        target.update(dict.fromkeys(new))
    return tuple(source), tuple(target)


def _counterpart(prompt: Prompt, other: Prompt, columns: tuple[int, ...]) -> tuple[int, ...]:
    """The columns, in another prompt of as many words, of those that stand at the same place."""
    at = [index for index, word in enumerate(prompt.words) if set(word.core) & set(columns)]
    return tuple(column for index in at for column in other.words[index].core)


WordColumns = tuple[str, tuple[int, ...]]
"""A word or phrase as it was written, and its token columns."""
_SIDE = re.compile(r"(source|target)\s*[:\uff1a]\s*(.*)", re.IGNORECASE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class WordList:
    """Words that people listed: for both prompts, or for each of them apart."""

    text: str
    both: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.both or self.source or self.target)

    def check(self, words: Words) -> None:
        """Raise PivotError for a word that none of the prompts has that it is listed for."""
        for phrase in self.both:
            check_in_pairs(words, phrase)
        for phrase in self.source:
            check_among([pair.source for pair in words], phrase)
        for phrase in self.target:
            check_among([pair.target for pair in words], phrase)


def word_list(text: str, name: str, where: str) -> WordList:
    """`cat, dog` for both prompts, or `source: cat, target: dog` for each of them apart.

    A label counts until the next one. Raises PivotError for words in front of the first label,
    and for labels without any words.
    """
    lists: dict[str, list[str]] = {"both": [], "source": [], "target": []}
    side = "both"
    for phrase in phrases(text):
        labelled = _SIDE.fullmatch(phrase)
        if labelled is not None:
            side, phrase = labelled[1].lower(), labelled[2]
        if phrase:
            lists[side].append(phrase)
    apart = lists["source"] or lists["target"]
    if side != "both" and (lists["both"] or not apart):
        raise PivotError(
            f"{name} for both prompts (`cat, dog`) or for each apart (`source: cat, target: dog`)",
            repr(text),
            "Write the words behind the label of their prompt, or leave both labels out.",
            where,
        )
    return WordList(text, *(tuple(each) for each in lists.values()))


def columns_of_list(
    pair: PromptPair, listed: WordList
) -> tuple[tuple[WordColumns, ...], tuple[WordColumns, ...]]:
    """The listed words that the source has, and those that the target has, with their columns.

    Of a list for both, a word of one prompt stands for its counterpart in the other
    (`columns_in_both`). No column counts twice.
    """
    both = [(phrase, *columns_in_both(pair, [phrase])) for phrase in listed.both]
    source = [(phrase, columns) for phrase, columns, _ in both]
    target = [(phrase, columns) for phrase, _, columns in both]
    source += [(phrase, pair.source.seek(phrase)) for phrase in listed.source]
    target += [(phrase, pair.target.seek(phrase)) for phrase in listed.target]
    return _once(source), _once(target)


def _once(words: Sequence[WordColumns]) -> tuple[WordColumns, ...]:
    """Words without columns that an earlier one has; words without any are left out."""
    seen: set[int] = set()
    left = []
    for phrase, columns in words:
        fresh = tuple(column for column in columns if column not in seen)
        seen.update(fresh)
        if fresh:
            left.append((phrase, fresh))
    return tuple(left)
