"""The table of verdicts: which are right, and how it reads."""

from __future__ import annotations

from bench import verdicts
from pivot_edit.core.verdict import LADDERS


def line(way: verdicts.Way, scene: int, first: str) -> verdicts.Line:
    return {
        "way": way.name,
        "scene": scene,
        "findings": [first],
        "right": first in way.expected,
        "text": f"{first} {scene}",
    }


def test_every_expected_finding_is_one_of_the_ladder() -> None:
    names = {rung.name for ladder in LADDERS.values() for rung in ladder}
    assert all(way.expected and set(way.expected) <= names for way in verdicts.WAYS)


def test_the_table_counts_what_was_said_first_and_shows_an_example() -> None:
    good, wrong = verdicts.WAYS[:2]
    made = [
        line(good, i, name) for i, name in enumerate(["comes back", "loud noise", "comes back"])
    ]
    text = verdicts.section([*made, line(wrong, 0, "wrong prompt")])
    assert "\n| right prompt | 3 | comes back 2, loud noise 1 | 2 |\n" in text
    assert "\n| wrong prompt | 1 | wrong prompt 1 | 1 |\n" in text
    assert "right prompt:\n\n```\ncomes back 0\n```" in text and "1 step" not in text
