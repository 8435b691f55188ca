"""Options: what a field knows, what becomes of inputs, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pivot_edit.core import options
from pivot_edit.core.errors import PivotError
from pivot_edit.core.options import (
    Method,
    NodeText,
    Option,
    check_value,
    defaults,
    from_inputs,
    in_words,
    options_of,
)


@dataclasses.dataclass(frozen=True)
class Example(Method):
    """One option of every kind, and a field that is none."""

    node: ClassVar[NodeText] = NodeText("PivotExample", "Example", "Does nothing.", ("nothing",))

    words: Any = options.words("The words.")
    strength: float = options.fraction(0.5, "How much.")
    shift: float | None = options.number(None, -2.0, 3.0, 0.5, "How far.", optional=True)
    count: int = options.integer(3, 1, 9, "How often.")
    hidden: float = options.number(0.1, 0.0, 0.2, 0.1, "Not on nodes.", shown=False)
    hard: bool = options.flag(True, "Or soft.", advanced=True)
    mode: str = options.choice("near", ["near", "far"], "Where.")
    note: str = options.text("", "Which words.", multiline=True)
    when: tuple[float, float] = options.window((0.2, 0.8), "From.", "To.", prefix="edit_")
    mask: Any = options.mask("Where.")
    reference: Any = options.inversion("Of what.")
    scales: tuple[int, ...] = (4,)


def test_inputs_stand_in_the_order_of_the_fields() -> None:
    assert [option.name for option in options_of(Example)] == [
        *("words", "strength", "shift", "count", "hidden", "hard", "mode", "note"),
        *("edit_start", "edit_end", "mask", "reference"),
    ]
    kinds = {option.name: option.kind for option in options_of(Example)}
    assert kinds["edit_start"] == kinds["edit_end"] == "number"
    assert [option.name for option in options_of(Example) if option.advanced] == ["hard"]
    assert [option.name for option in options_of(Example) if not option.shown] == ["hidden"]


def test_defaults_are_those_of_the_fields() -> None:
    assert defaults(Example) == {
        **{"strength": 0.5, "shift": None, "count": 3, "hidden": 0.1, "hard": True},
        **{"mode": "near", "note": "", "edit_start": 0.2, "edit_end": 0.8},
        **{"mask": None, "reference": None},
    }
    assert from_inputs(Example, {"words": (), **defaults(Example)}) == Example(())


def test_inputs_make_fields() -> None:
    example = from_inputs(Example, {"words": (1,), "edit_end": 0.5, "count": 9})
    assert example == Example((1,), count=9, when=(0.2, 0.5))
    with pytest.raises(TypeError, match="weight"):
        from_inputs(Example, {"words": (), "weight": 1.0})


def test_numbers_of_other_packs_are_numbers() -> None:
    Example((), strength=np.float32(0.25), count=np.int64(2), shift=1)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"strength": 1.01}, "Expected strength between 0 and 1, but got 1.01 in Example"),
        ({"strength": math.nan}, "Expected strength between 0 and 1, but got nan in Example"),
        ({"strength": "0.5"}, "Expected strength to be a number, but got '0.5' in Example"),
        ({"strength": None}, "Expected strength to be a number, but got None in Example"),
        ({"strength": True}, "Expected strength to be a number, but got True in Example"),
        ({"shift": -2.5}, "Expected shift between -2 and 3, but got -2.5 in Example"),
        ({"shift": math.nan}, "Expected shift between -2 and 3, but got nan in Example"),
        ({"count": 10}, "Expected count between 1 and 9, but got 10 in Example"),
        ({"count": 2.0}, "Expected count to be a whole number, but got 2.0 in Example"),
        ({"hidden": 0.3}, "Expected hidden between 0 and 0.2, but got 0.3 in Example"),
        ({"hard": "yes"}, "Expected hard to be on or off, but got 'yes' in Example"),
        ({"hard": torch.ones(2)}, "Expected hard to be on or off, but got tensor.* in Example"),
        ({"mode": np.ones(2)}, r"Expected mode to be one of .*, but got array.* in Example"),
        ({"mode": "up"}, r"Expected mode to be one of \('near', 'far'\), but got 'up' in Example"),
        ({"note": 3}, "Expected note to be text, but got 3 in Example"),
        ({"edit_start": 0.9}, "edit_start and edit_end between 0 and 1, in this order, .* in Exam"),
        ({"edit_end": math.nan}, "edit_start and edit_end between 0 and 1, .* 0.2 and nan in Exam"),
        ({"edit_end": "1"}, "Expected edit_end to be a number, but got '1' in Example"),
        ({"words": None}, "Expected words to be words from another node, but got None in Example"),
    ],
)
def test_what_a_field_does_not_allow_is_refused_by_name(
    inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(PivotError, match=message):
        from_inputs(Example, {"words": (), **inputs})


def test_a_method_is_called_by_its_title_its_name_or_its_class() -> None:
    @dataclasses.dataclass(frozen=True)
    class Named(Method):
        name: ClassVar[str] = "by_name"

    @dataclasses.dataclass(frozen=True)
    class Titled(Named):
        title: ClassVar[str] = "By Title"

    class Plain(Method):
        pass

    kinds = (Example, Titled, Named, Plain)
    assert [kind.where() for kind in kinds] == ["Example", "By Title", "by_name", "Plain"]


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("number", 10**400, "it between 0 and 2, but got a larger number in Place"),
        ("number", -(10**400), "it between 0 and 2, but got a smaller number"),
        ("integer", 10**309, "it between 0 and 2, but got a larger number"),
        ("text", 10**309, "it to be text, but got a larger number"),
        ("text", "a \ud800", r"it of whole characters, but got half of one, '\\ud800' in Place"),
    ],
)
def test_values_that_cannot_be_written_are_refused_by_name(kind, value, message) -> None:
    with pytest.raises(PivotError, match=message):
        check_value(Option(kind, "", None, "it", high=2.0), value, "Place")


def test_the_values_of_a_method_in_words_are_those_of_its_node() -> None:
    method = Example(words=object(), strength=0.25, hard=False)
    assert in_words(method) == (
        "strength 0.25, shift 0, count 3, hard off, mode near, note nothing, "
        "edit_start 0.2, edit_end 0.8"
    )
    assert in_words(method, changed=True) == "strength 0.25, hard off"
