"""A method as plain data: its name and its options, which a file can hold and nothing runs."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from .errors import PivotError

Value = TypeVar("Value")
Method = TypeVar("Method")


class Frozen(Mapping[str, Value]):
    """A mapping that is copied when it is made and cannot be changed afterwards.

    `types.MappingProxyType` would do but for copies: ComfyUI deep-copies what hangs on a model,
    and a proxy can neither be copied nor pickled.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Value]) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> Value:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to make a method again."""

    name: str
    """The method's name in its registry."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The fields of its dataclass. They are texts, finite numbers, truth values and None only, so
    that json holds every one of them exactly."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise PivotError("a method's name as text", repr(self.name), _UPDATE)
        for name, value in self.options.items():
            if not isinstance(name, str) or not (
                value is None or isinstance(value, bool | str) or _is_finite(value)
            ):
                raise PivotError(
                    f"option {name} of {self.name} as text, a finite number or a truth value",
                    f"{value!r:.100}",
                    _UPDATE,
                )
        object.__setattr__(self, "options", Frozen(self.options))


_UPDATE = "Update Pivot Edit, or save the inversion again."


def recipe_of(method: Any) -> Recipe:
    """The recipe of a method, a frozen dataclass with a `name`, whose equal `built` makes."""
    fields = dataclasses.fields(method)
    return Recipe(method.name, {field.name: getattr(method, field.name) for field in fields})


def built(recipe: Recipe, kinds: Mapping[str, type[Method]], what: str) -> Method:
    """The method of a recipe, out of a registry of dataclasses whose family `what` names.

    Raises PivotError that names what does not fit, because recipes may come from files.
    """
    if recipe.name not in kinds:
        raise PivotError(
            f"{what} to be one of {tuple(kinds)}", repr(recipe.name), "Choose one of them."
        )
    kind: Any = kinds[recipe.name]
    _check_options(recipe, kind)
    method: Method = kind(**recipe.options)
    return method


def _check_options(recipe: Recipe, kind: Any) -> None:
    """Compare every option with the type of its field, before anything is made of it."""
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in recipe.options.items():
        if name not in fields:
            names = f"one of {tuple(fields)}" if fields else "none"
            raise PivotError(f"options of {recipe.name} to be {names}", f"{name!r:.100}", _UPDATE)
        if not _fits(value, hints[name]):
            expected = f"option {name} of {recipe.name} to be {_in_words(hints[name])}"
            raise PivotError(expected, f"{value!r:.100}", _UPDATE)
    for name, field in fields.items():
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and name not in recipe.options:
            raise PivotError(f"option {name} of {recipe.name}", "none", _UPDATE)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type. True is not a number here, though Python says so."""
    if typing.get_origin(hint) is Literal:
        return any(type(value) is type(each) and value == each for each in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if hint is float:
        return type(value) in (float, int) and _is_finite(value)
    return type(value) is hint


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, float | int) and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    types.NoneType: "none",
}


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {typing.get_args(hint)}"
    if typing.get_args(hint):
        return " or ".join(map(_in_words, typing.get_args(hint)))
    return _WORDS.get(hint, str(hint))
