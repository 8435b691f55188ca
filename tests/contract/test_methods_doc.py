"""docs/METHODS.md has what code and tests cite, and a section for every method."""

from __future__ import annotations

import importlib
import pathlib
import re
from collections.abc import Iterator

import pytest

from pivot_edit.attention import CONTROLLERS
from pivot_edit.guidance import RULES
from pivot_edit.inversion import CORRECTIONS, INVERTERS

ROOT = pathlib.Path(__file__).absolute().parents[2]
DOCUMENT = ROOT / "docs" / "METHODS.md"
METHODS: list[type] = [*CONTROLLERS, *INVERTERS.values(), *CORRECTIONS.values(), *RULES]
SECTION, ORACLE = r"\d+[a-z]?(?:\.\d+)?", r"\d+"
LISTED = r"\b{}\s+({}(?:(?:,\s+|\s+(?:and|to)\s+){})*)"
CITED = {
    "METHODS": re.compile(LISTED.format("METHODS", SECTION, SECTION)),
    "Oracle": re.compile(LISTED.format("[Oo]racles?", ORACLE, ORACLE)),
}
HEADING = re.compile(rf"^#+ ({SECTION})\.? ", re.M)
ARXIV = re.compile(r"arXiv\s(\d{4}\.\d{4,5})\b")
NAMED = re.compile(r"`((?:tests|docs|core|attention|inversion|guidance)/[\w/]+\.\w+)`")
FOLDERS = (
    "core",
    "attention",
    "features",
    "inversion",
    "guidance",
    "host",
    "show",
    "nodes",
    "bench",
)


def cited(text: str) -> set[str]:
    """Everything that a text cites, such as `METHODS 3.3` and `Oracle 10`; ranges are filled."""
    found = set()
    for name, pattern in CITED.items():
        for listed in pattern.findall(text):
            numbers = re.findall(SECTION, listed)
            if " to " in listed and all(number.isdigit() for number in numbers):
                numbers += map(str, range(int(numbers[0]), int(numbers[-1]) + 1))
            found |= {f"{name} {number}" for number in numbers}
    return found


def there(document: str) -> set[str]:
    """What the document has: its numbered headings, and its oracles."""
    sections = {f"METHODS {number}" for number in HEADING.findall(document)}
    return sections | {
        f"Oracle {n}" for n in re.findall(r"^\* \*\*Oracle (\d+)\.\*\*", document, re.M)
    }


def sections(document: str) -> dict[str, str]:
    """The text of every numbered section by its number, without its subsections."""
    parts = re.split(rf"^#+ ({SECTION})\.? ", document, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def citing() -> Iterator[pathlib.Path]:
    """Files that cite the document."""
    for folder in (*FOLDERS, "tests"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from (path for path in sorted((ROOT / "docs").glob("*.md")))


def test_everything_that_is_cited_is_there() -> None:
    known = there(DOCUMENT.read_text())
    missing = {
        f"{path.relative_to(ROOT)}: {one}"
        for path in citing()
        if path.name != pathlib.Path(__file__).name
        for one in cited(path.read_text()) - known
    }
    assert missing == set()


def test_citations_are_found() -> None:
    text = "(METHODS 3.3, 17b), METHODS\n7 and 29.1; oracles 29 to 31, Oracle 5."
    assert cited(text) == {
        *(f"METHODS {number}" for number in ("3.3", "17b", "7", "29.1")),
        *(f"Oracle {number}" for number in (5, 29, 30, 31)),
    }


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_method_has_a_section_with_its_papers(method: type) -> None:
    name = method.__module__.partition(".")[2].replace(".", "/") + ".py"
    papers = set(ARXIV.findall(importlib.import_module(method.__module__).__doc__ or ""))
    having = [text for text in sections(DOCUMENT.read_text()).values() if f"`{name}`" in text]
    assert any(papers <= set(ARXIV.findall(text)) for text in having), name


@pytest.mark.parametrize("kind", ["Formula", "Paper", "Defaults", "Otherwise", "Tests"])
def test_every_section_with_a_paper_says_all_five_things(kind: str) -> None:
    text = sections(DOCUMENT.read_text())
    lacking = [n for n, each in text.items() if "**Paper.**" in each and f"**{kind}" not in each]
    assert lacking == []


def test_every_file_that_is_named_is_there() -> None:
    named = set(NAMED.findall(DOCUMENT.read_text()))
    assert len(named) > 20
    assert {name for name in named if not (ROOT / name).is_file()} == set()
