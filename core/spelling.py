"""How a text falls into words, by its characters alone.

White space separates words. So does punctuation, but for hyphens and apostrophes between letters
and points between digits. In scripts that are written without spaces every character is a word.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterator

EMBEDDING = re.compile(r"embedding:\s*(\S+)", re.IGNORECASE)
"""An embedding by name in a list of words, as the host reads it in a prompt."""
_APOSTROPHES = "'’ʼ＇"
_JOINTS = frozenset("-‐‑" + _APOSTROPHES)
"""What joins letters to one word."""
_ENDINGS = re.compile(rf"[{_APOSTROPHES}](?:s|re|ve|m|ll|d)$", re.IGNORECASE)
"""Short forms that a tokenizer splits off: `dog's` names a dog."""
_ALONE = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1a20-\u1aaf\u3005-\u3007\u3021-\u3029\u3040-\u312f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\ua9e0-\ua9ff\uaa60-\uaa7f"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Thai to Tibetan, Burmese, Khmer, kana, bopomofo, ideographs: scripts without spaces."""
_SCRIPT = re.compile(f"[{_ALONE}]")
_RUN = re.compile(f"[{_ALONE}]{{2}}")
_COMMAS = ",，、、"


@dataclasses.dataclass(frozen=True)
class Span:
    """Where a word stands in a text."""

    start: int
    end: int
    """With the punctuation around it."""
    first: int
    last: int
    """Without."""
    stem: int
    """The end without an ending such as 's, else `last`."""


def bare(word: str) -> str:
    """A word as it is compared: without case, invisible characters and surrounding punctuation."""
    text = "".join(char for char in word if unicodedata.category(char)[0] != "C")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    text = "".join("'" if char in _APOSTROPHES else char for char in text)
    first, last = 0, len(text)
    while first < last and (_is_point(text[first]) or (first and _is_mark(text[first]))):
        first += 1
    base = last
    while first < base:
        base -= 1
        if _is_point(text[base]):
            last = base
        elif not _is_mark(text[base]):  # an accent goes with what is below it
            break
    return text[first:last]


def names(text: str) -> list[str]:
    """The words of a text as they are compared. An embedding is one word.

    Punctuation that stands for itself, such as `>_<`, is compared as it is written.
    """
    parts, end = [], 0
    for embedding in EMBEDDING.finditer(text):
        parts += _names(text[end : embedding.start()])
        parts.append(bare(f"embedding:{embedding[1]}"))
        end = embedding.end()
    return [part for part in [*parts, *_names(text[end:])] if part]


def stem(name: str) -> str:
    """A compared word without an ending such as 's."""
    return _ENDINGS.sub("", name) or name


def is_spaceless(text: str) -> bool:
    """Whether a text has words that no spaces separate, as in Chinese."""
    return _RUN.search(text) is not None


def has_signs(text: str) -> bool:
    """Whether a word is of a script that is written without spaces."""
    return _SCRIPT.search(text) is not None


def spans(text: str) -> list[Span]:
    """The words of a text in their order. Together they cover all but white space."""
    return [span for run in re.finditer(r"\S+", text) for span in _spans(text, *run.span())]


def _names(text: str) -> list[str]:
    return [
        bare(text[span.first : span.last]) or text[span.start : span.end].rstrip(_COMMAS)
        for span in spans(text)
    ]


def _spans(text: str, start: int, end: int) -> list[Span]:
    """The words between two white spaces, each with the punctuation that belongs to it."""
    cores = list(_cores(text, start, end))
    if not cores:
        return [Span(start, end, start, end, end)]
    cuts = [
        start,
        *(_cut(text, a[1], b[0]) for a, b in zip(cores, cores[1:], strict=False)),
        end,
    ]
    return [
        Span(cuts[i], cuts[i + 1], first, last, _stem_end(text, first, last))
        for i, (first, last) in enumerate(cores)
    ]


def _cores(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs of letters of words, without the punctuation around them."""
    at = start
    while at < end:
        if _is_point(text[at]) or (at > start and _is_mark(text[at])):
            at += 1
            continue
        first = at
        at += 1
        while at < end and _goes_on(text, first, at, end):
            at += 1
        yield first, at


def _goes_on(text: str, first: int, at: int, end: int) -> bool:
    """Whether a word that began at `first` goes on with the character at `at`."""
    before, char = text[at - 1], text[at]
    if _is_mark(char) or before == "\u200d":  # an accent, or emoji that one sign joins
        return True
    if _stands_alone(char) or _stands_alone(text[first]):
        return False
    if not _is_point(char):
        return True
    after = text[at + 1] if at + 1 < end else " "
    if char in _JOINTS:
        ends = _is_point(after) or _is_mark(after) or _stands_alone(after)
        return not (ends or after.isspace())
    return char == "." and before.isdigit() and after.isdigit()


def _cut(text: str, start: int, end: int) -> int:
    """Where punctuation between two words parts: what opens belongs to the second."""
    while end > start and (
        unicodedata.category(text[end - 1]) in ("Ps", "Pi") or text[end - 1] in "\"'"
    ):
        end -= 1
    return end


def _stem_end(text: str, first: int, last: int) -> int:
    ending = _ENDINGS.search(text, first, last)
    return ending.start() if ending else last


def _is_point(char: str) -> bool:
    """Whether a character is punctuation or a sign such as `|`, `+` or `~`."""
    if char in _APOSTROPHES:
        return True
    category = unicodedata.category(char)
    return (category[0] == "P" or category in ("Sm", "Sk")) and not _is_tone(char)


def _is_mark(char: str) -> bool:
    """Whether a character belongs to the one before: accents, invisible signs, tones of skin."""
    category = unicodedata.category(char)
    return category[0] == "M" or category in ("Cf", "Cc") or _is_tone(char)


def _is_tone(char: str) -> bool:
    return "\U0001f3fb" <= char <= "\U0001f3ff"


def _stands_alone(char: str) -> bool:
    """Whether a character is a word: in scripts without spaces, and pictures such as emoji."""
    return _SCRIPT.match(char) is not None or unicodedata.category(char) == "So"
