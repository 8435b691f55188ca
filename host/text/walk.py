"""The walk of the host's CLIP tokenizer over a prompt: which texts it reads, and which characters
every token holds.

A copy of the tokenizer listens while the host itself reads the prompt. So weights, escapes and
embeddings are read as the host reads them. A token's characters are those of its entry in the
vocabulary. They have to be the prompt's, character by character; else the prompt is refused.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from ...core.errors import PivotError
from ...core.spelling import Span, spans
from ...core.words import Word

Entry = tuple[Any, float, int]
"""Of a column: token or embedding, weight, and the number of its group, 0 for none."""
_END = "</w>"
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(0x100) if byte not in _PRINTED]
# the vocabulary writes bytes as printable characters; those that are none come from 256 on
_BYTES = {chr(byte): byte for byte in _PRINTED} | {
    chr(0x100 + index): byte for index, byte in enumerate(_HIDDEN)
}


@dataclasses.dataclass(frozen=True)
class Piece:
    """What the host read at once: a text, or an embedding by its name."""

    text: str
    columns: tuple[int, ...]
    is_embedding: bool


def walk(tokenizer: Any, text: str) -> tuple[list[Entry], list[Piece]]:
    """The columns of a prompt, and the pieces that the host read, with the columns of each.

    Raises PivotError where what was read does not match the columns.
    """
    listener = copy.copy(tokenizer)
    pieces: list[tuple[str, bool]] = []
    listener.tokenizer = _Listener(tokenizer.tokenizer, pieces)
    if hasattr(tokenizer, "_try_get_embedding"):
        listener._try_get_embedding = _listening(tokenizer._try_get_embedding, pieces)
    chunks = listener.tokenize_with_weights(text, return_word_ids=True)
    entries = [entry for chunk in chunks for entry in chunk]
    columns: dict[int, list[int]] = {}
    for column, entry in enumerate(entries):
        columns.setdefault(entry[2], []).append(column)
    # the host numbers the groups from 1; 0 is what belongs to none
    if max(columns, default=0) > len(pieces):
        raise _surplus(text, f"{max(columns)} groups of tokens from {len(pieces)} texts")
    return entries, [
        Piece(part, tuple(columns.get(number, ())), is_embedding)
        for number, (part, is_embedding) in enumerate(pieces, 1)
    ]


def words_of(tokenizer: Any, piece: Piece, tokens: Sequence[int]) -> list[Word]:
    """The words of a text on the columns of its tokens.

    A token belongs to the word whose letters it holds. Words that share one are one word. What
    cannot be seen belongs to the word before. Raises PivotError where the tokens hold other
    characters than the text.
    """
    fix = getattr(tokenizer.tokenizer, "fix_text", None)
    text = fix(piece.text) if callable(fix) else piece.text
    words = spans(text)
    holders = _holders(words, _placed(tokenizer, text, tokens))
    seen = [i for i, (whole, _, _) in enumerate(holders) if whole]
    words, holders = [words[i] for i in seen], [holders[i] for i in seen]
    if tokens and not words:
        return [Word(text, piece.columns, piece.columns)]
    return [
        Word(
            text[words[group[0]].start : words[group[-1]].end],
            *(tuple(piece.columns[i] for i in sorted(part)) for part in parts),
        )
        for group, parts in _grouped(words, holders, len(tokens))
        if parts[0]
    ]


def _grouped(
    words: Sequence[Span], holders: list[list[set[int]]], count: int
) -> Iterator[tuple[list[int], list[set[int]]]]:
    """The words, those that share a token together, with the tokens of all, core and stem."""
    cores = [core for _, core, _ in holders]
    belongs = {token: i for i in reversed(range(len(words))) for token in cores[i]}
    for i, (whole, _, _) in enumerate(holders):
        for token in sorted(whole):
            belongs.setdefault(token, i)
    first = belongs[min(belongs)] if belongs else 0
    for token in range(count):
        belongs.setdefault(token, belongs.get(token - 1, first))
    held: dict[int, set[int]] = {}
    for token, i in belongs.items():
        held.setdefault(i, set()).add(token)
    for group in _joined(cores):
        whole = set().union(*(held.get(i, set()) for i in group))
        core = set().union(*(cores[i] for i in group)) or whole
        stem = holders[group[0]][2] if len(group) == 1 else set()
        yield group, [whole, core, stem if stem != core else set()]


def _joined(cores: list[set[int]]) -> Iterator[list[int]]:
    """Words that share a token, in groups; they follow each other."""
    group: list[int] = []
    last = -1
    for i, core in enumerate(cores):
        if group and not (core and min(core) <= last):
            yield group
            group = []
        group.append(i)
        last = max(core, default=last)
    if group:
        yield group


def _holders(words: Sequence[Span], placed: Iterator[tuple[int, range]]) -> list[list[set[int]]]:
    """For every word the tokens that hold any of its characters: all, its core's, its stem's."""
    holders: list[list[set[int]]] = [[set(), set(), set()] for _ in words]
    at = 0
    for index, tokens in placed:
        while index >= words[at].end:
            at += 1
        word, (whole, core, stem) = words[at], holders[at]
        whole.update(tokens)
        if word.first <= index < word.last:
            core.update(tokens)
        if word.first <= index < word.stem:
            stem.update(tokens)
    return holders


def _placed(tokenizer: Any, text: str, tokens: Sequence[int]) -> Iterator[tuple[int, range]]:
    """The index of every character that the tokenizer reads, and the tokens that hold it."""
    written, holding = _written(tokenizer, tokens)
    read = _read(text)
    # composed and in lower case as it is: a second time would compose across spaces that are gone
    held = [(_one_sigma(char), i) for i, char in enumerate(written) if _is_seen(char)]
    expected, got = ("".join(char for char, _ in one) for one in (read, held))
    if expected != got:
        pairs = enumerate(zip(expected, got, strict=False))
        start = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(got)))
        near = slice(max(0, start - 8), start + 16)
        raise _surplus(expected[near], f"tokens that hold {got[near]!r}")
    return ((index, holding[place]) for (_, index), (_, place) in zip(read, held, strict=True))


def _written(tokenizer: Any, tokens: Sequence[int]) -> tuple[str, list[range]]:
    """The text that tokens hold, and the tokens that hold each of its characters."""
    content, owners = bytearray(), []
    for number, token in enumerate(tokens):
        entry = tokenizer.inv_vocab[token].removesuffix(_END)
        if not set(entry) <= _BYTES.keys():
            raise _surplus(entry, "a token of no known letters")
        content += bytes(_BYTES[char] for char in entry)
        owners += [number] * len(entry)
    try:
        written = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _surplus(str(bytes(content)), "tokens that are no text") from error
    ends = [0, *itertools.accumulate(len(char.encode("utf-8")) for char in written)]
    return written, [
        range(owners[begin], owners[end - 1] + 1) for begin, end in itertools.pairwise(ends)
    ]


def _read(text: str) -> list[tuple[str, int]]:
    """The characters of a text as CLIP's tokenizers read it, and where in the text each begins.

    They compose accents, read lower case, and drop white space and what cannot be seen.
    """
    if text.isascii():
        return [(char, i) for i, char in enumerate(text.lower()) if "!" <= char <= "~"]
    return [
        (_one_sigma(char), start)
        for start, part in _clusters(text)
        for char in part.lower()
        if _is_seen(char)
    ]


def _one_sigma(char: str) -> str:
    """A character, without the form of sigma that only ends words."""
    return "σ" if char == "ς" else char


def _clusters(text: str) -> Iterator[tuple[int, str]]:
    """A text in composed characters, each with the index where it begins."""
    start, part = 0, ""
    for index, char in enumerate(text):
        if not _is_seen(char):
            # control characters are dropped before accents are composed, spaces behind
            if part and (char in "\t\n\r" or unicodedata.category(char)[0] == "Z"):
                yield start, part
                part = ""
            continue
        alone, both = (unicodedata.normalize("NFC", one) for one in (char, part + char))
        if part and not unicodedata.combining(char) and both == part + alone:
            yield start, part
            part = ""
        start, part = (start, both) if part else (index, alone)
    if part:
        yield start, part


def _is_seen(char: str) -> bool:
    return not (char.isspace() or char == "\ufffd" or unicodedata.category(char)[0] == "C")


def nameless(text: str) -> PivotError:
    """The refusal of `embedding:` alone."""
    return PivotError("a name behind `embedding:`", repr(text), "Write embedding:name.")


def _surplus(text: str, got: str) -> PivotError:
    return PivotError(
        "tokens that hold the prompt's own characters",
        f"{got} for {text!r}",
        "Write these signs otherwise, or leave them out.",
    )


class _Listener:
    """The tokenizer inside the host's, which notes what it is asked to read."""

    def __init__(self, tokenizer: Any, pieces: list[tuple[str, bool]]) -> None:
        self._tokenizer, self._pieces = tokenizer, pieces

    def __call__(self, text: str, *args: Any, **kwargs: Any) -> Any:
        self._pieces.append((text, False))
        return self._tokenizer(text, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _listening(read: Any, pieces: list[tuple[str, bool]]) -> Any:
    """The host's function that reads an embedding, noting the name of each that it finds."""

    def reading(text: str) -> Any:
        if not text.strip():
            raise nameless(f"embedding:{text}")
        embedding, *rest = read(text)
        if embedding is not None:
            name = rest[0] if len(rest) == 2 else text.split()[0]
            pieces.append((f"embedding:{name.strip(',')}", True))
        return (embedding, *rest)

    return reading
