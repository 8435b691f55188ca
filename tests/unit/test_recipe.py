"""Methods as plain data: what a recipe holds, and that it makes the equal of its method."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import pytest

from pivot_edit.core.errors import PivotError
from pivot_edit.core.recipe import Recipe, built, recipe_of


@dataclasses.dataclass(frozen=True)
class Soup:
    name: ClassVar[str] = "soup"

    salt: float
    carrots: int = 3
    hot: bool = True
    note: str | None = None
    kind: Literal["clear", "thick", 1] = "clear"


KINDS = {"soup": Soup}


@pytest.mark.parametrize("soup", [Soup(0.5), Soup(1, 0, False, "good", "thick"), Soup(0.1, kind=1)])
def test_a_method_comes_back_from_its_recipe(soup: Soup) -> None:
    assert built(recipe_of(soup), KINDS, "dish") == soup


def test_recipes_of_equal_methods_are_equal() -> None:
    assert recipe_of(Soup(0.5)) == Recipe("soup", dataclasses.asdict(Soup(0.5)))
    assert recipe_of(Soup(0.5)) != recipe_of(Soup(0.6))


@pytest.mark.parametrize("value", [math.nan, math.inf, 10**400, [1], {"a": 1}, b"x", 1j])
def test_a_recipe_holds_what_json_holds_exactly(value: Any) -> None:
    with pytest.raises(PivotError, match="option salt of soup as text, a finite number or"):
        Recipe("soup", {"salt": value})


def test_names_are_texts() -> None:
    with pytest.raises(PivotError, match="a method's name as text, but got 3"):
        Recipe(3)  # type: ignore[arg-type]
    with pytest.raises(PivotError, match="option 3 of soup"):
        Recipe("soup", {3: 1})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"salt": "much"}, "option salt of soup to be a finite number, but got 'much'"),
        ({"salt": True}, "option salt of soup to be a finite number, but got True"),
        ({"salt": 1.0, "carrots": 1.0}, "option carrots of soup to be a whole number, but got 1.0"),
        ({"salt": 1.0, "carrots": False}, "option carrots of soup to be a whole number"),
        ({"salt": 1.0, "hot": 1}, "option hot of soup to be true or false, but got 1"),
        ({"salt": 1.0, "note": 1}, "option note of soup to be text or none, but got 1"),
        ({"salt": 1.0, "kind": "thin"}, r"to be one of \('clear', 'thick', 1\), but got 'thin'"),
        ({"salt": 1.0, "kind": True}, "option kind of soup to be one of .*, but got True"),
        ({"salt": 1.0, "kind": 1.0}, "option kind of soup to be one of .*, but got 1.0"),
        ({"salt": 1.0, "pepper": 1.0}, r"options of soup to be one of \('salt',.* got 'pepper'"),
        ({}, "option salt of soup, but got none"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PivotError, match=message):
        built(Recipe("soup", options), KINDS, "dish")


def test_an_unknown_method_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(PivotError, match=r"dish to be one of \('soup',\), but got 'stew'"):
        built(Recipe("stew"), KINDS, "dish")
