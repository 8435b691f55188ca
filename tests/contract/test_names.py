"""Names are nouns of the field: no participle and no pronoun stands alone as a name."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).absolute().parents[2]
ROOMS = (
    "inversion",
    "core",
    "guidance",
    "attention",
    "features",
    "host/text",
    "host/model",
    "host/run",
    "host/tasks",
    "show",
    "nodes",
)
"""The rooms whose names are so; a room that comes to meet it is added here."""
BARRED = frozenset(
    "made found told kept given taken wanted known noted own mine ours yours theirs others "
    "everyone here there".split()
)


def bound(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of all that a file binds: variables, parameters, functions, classes,
    attributes and imports under another name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield 0, node.asname


def barred(text: str) -> list[tuple[int, str]]:
    """Line and name of every barred name that a file's text binds, underscores aside."""
    return sorted(
        (line, name) for line, name in bound(ast.parse(text)) if name.strip("_") in BARRED
    )


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_names_are_nouns_of_the_field(room: str) -> None:
    paths = sorted((ROOT / room).rglob("*.py"))
    assert len(paths) > 1
    breaches = {
        str(path.relative_to(ROOT)): names for path in paths if (names := barred(path.read_text()))
    }
    assert breaches == {}


@pytest.mark.parametrize(
    "line",
    [
        "made = 1",
        "made: int = 1",
        "made += 1",
        "(x, made) = 1, 2",
        "for made in ():\n    pass",
        "[made for made in ()]",
        "if (made := 1):\n    pass",
        "with open('x') as made:\n    pass",
        "def made() -> None: ...",
        "def f(made: int) -> None: ...",
        "def f(*, made: int = 1) -> None: ...",
        "lambda made: 1",
        "class made: ...",
        "self.made = 1",
        "self._made, x = 1, 2",
        "import os as made",
        "try:\n    pass\nexcept ValueError as made:\n    pass",
    ],
)
def test_every_way_to_bind_a_name_is_seen(line: str) -> None:
    assert {name.strip("_") for _, name in barred(line)} == {"made"}


@pytest.mark.parametrize("line", ["made_by = 1", "print(made)", "x.made()", "f(made=1)", "'made'"])
def test_a_part_of_a_name_and_a_mere_use_are_no_breach(line: str) -> None:
    assert barred(line) == []
