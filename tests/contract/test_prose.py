"""Documents and docstrings are written in sentences that can be read at once."""

from __future__ import annotations

import ast
import pathlib
import re
import statistics
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).absolute().parents[2]
DOCUMENTS = {
    "README.md": 15.0,
    "docs/ARCHITECTURE.md": 16.0,
    "docs/BENCHMARKS.md": 16.0,
    "docs/METHODS.md": 16.0,
    "docs/NULL_TEXT.md": 16.0,
    "docs/PIE_BENCH.md": 16.0,
}
"""Words of a mean sentence, at most."""
DOCSTRINGS = 16.0
ROOMS = (
    "core",
    "attention",
    "inversion",
    "guidance",
    "features",
    "host/model",
    "host/text",
    "host/run",
    "host/tasks",
    "show",
    "nodes",
    "toy",
    "tools",
    "bench",
)
"""The rooms whose docstrings meet that; a room that comes to meet it is added here."""
APART = re.compile(r"<!-- (\w+) -->.*?<!-- /\1 -->|^```.*?^```$|<!--.*?-->", re.S | re.M)
"""What is no prose: generated sections, blocks of code, comments."""
SHORT = re.compile(r"\b(et al|sec|secs|eq|fig|i\.e|e\.g|vs|cf)\. ")
LIST = re.compile(r"\s*(?:[*+-]|\d+\.)\s+")
LABEL = re.compile(r"^\*\*[^*]+\*\*\.?\s*")
"""A bold word in front of a paragraph, which is no sentence."""
END = re.compile(r"[.!?]['\"*)]*(?=\s)")


def blocks(text: str) -> Iterator[str]:
    """Paragraphs and list items of a Markdown text, each on one line; no headings, no tables."""
    block: list[str] = []
    for line in [*APART.sub("\n\n", text).splitlines(), ""]:
        starts, stands_alone = LIST.match(line), line.startswith(("#", "|", "!["))
        if (not line.strip() or starts or stands_alone) and block:
            yield " ".join(block)
            block = []
        if line.strip() and not stands_alone:
            block.append(line[starts.end() :] if starts else line.strip())


def sentences(text: str) -> list[int]:
    """The number of words of every sentence of three words or more. Code in a sentence is one
    word."""
    found = []
    for block in blocks(text):
        block = re.sub(r"`[^`]*`", "code", LABEL.sub("", block))
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", block)
        plain = SHORT.sub(r"\1 ", plain + " ")
        counts = [len(re.findall(r"[\w'./-]*\w[\w'./-]*", part)) for part in END.split(plain)]
        found += [count for count in counts if count > 2]
    return found


def docstrings(room: str) -> Iterator[str]:
    """Every docstring of a room's files."""
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_documents_sentences_are_short(name: str) -> None:
    found = sentences((ROOT / name).read_text())
    assert len(found) > 20
    assert statistics.mean(found) <= DOCUMENTS[name]


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_docstrings_are_in_short_sentences(room: str) -> None:
    found = [count for text in docstrings(room) for count in sentences(text)]
    assert len(found) > 5
    assert statistics.mean(found) <= DOCSTRINGS


def test_sentences_are_told_from_everything_else() -> None:
    text = """# A heading. Of two

One two, by Ho et al. 2022,
three `a. b c` four 2.8. Five six seven! Short one.

* **Label.** a first item
* second of items. Another one of them
1. [a link](https://a.b.c) and more. Done

| a. b | c |
<!-- made -->
Not this. Nor this.
<!-- /made -->
```
no. code.
```
"""
    assert sentences(text) == [11, 3, 3, 3, 4, 4]
