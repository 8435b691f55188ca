"""What people may set about a method, written once: at the field of its dataclass.

A field made here knows its default, its range and its tooltip. Nodes are made from these fields,
benches read their defaults from them, and values are compared with them when a method is built.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from .errors import PivotError, check_fraction, check_window, short

Kind = Literal["number", "integer", "flag", "choice", "text", "words", "mask", "inversion"]
"""What a value is. The last three come from other nodes: a tuple of PromptPair, one for each
target; MASK [pictures, H, W], 1 inside; a Trajectory."""
SOCKETS = ("words", "mask", "inversion")
_KEY = "pivot_options"


@dataclasses.dataclass(frozen=True)
class NodeText:
    """What a method's node says beside its inputs."""

    id: str
    """ComfyUI's id of the node, which workflows hold: it never changes."""
    display_name: str
    description: str
    search_aliases: tuple[str, ...]
    category: str = "Pivot Edit"
    note: str = ""
    """Of a controller's options: what their text output is called, where they have one."""
    model: str = "The model to patch; the model itself is left as it is."
    """Of a controller's options: the tooltip of the model input."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One input of a node."""

    kind: Kind
    tooltip: str
    default: Any = dataclasses.MISSING
    name: str = ""
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    names: tuple[str, ...] = ()
    """Of a choice: what there is to choose from."""
    multiline: bool = False
    optional: bool = False
    """Whether a graph may leave it out."""
    advanced: bool = False
    """Whether it is a switch for research, which pages may fold away."""
    shown: bool = True
    """Whether nodes have it; else it is for code alone."""


def number(
    default: float | None,
    low: float,
    high: float,
    step: float,
    tooltip: str,
    *,
    optional: bool = False,
    advanced: bool = False,
    shown: bool = True,
) -> Any:
    """A field that holds a number between `low` and `high`.

    Where its default is None, None is allowed too, and is 0 on the node.
    """
    flags: dict[str, Any] = {"optional": optional, "advanced": advanced, "shown": shown}
    return _field(Option("number", tooltip, default, low=low, high=high, step=step, **flags))


def fraction(default: float, tooltip: str, step: float = 0.01, **flags: bool) -> Any:
    """A field that holds a number between 0 and 1, with the flags of `number`."""
    return number(default, 0.0, 1.0, step, tooltip, **flags)


def integer(
    default: int,
    low: int,
    high: int,
    tooltip: str,
    *,
    optional: bool = False,
    advanced: bool = False,
) -> Any:
    """A field that holds a whole number between `low` and `high`."""
    flags: dict[str, Any] = {"optional": optional, "advanced": advanced}
    return _field(Option("integer", tooltip, default, low=low, high=high, step=1, **flags))


def flag(default: bool, tooltip: str, *, optional: bool = False, advanced: bool = False) -> Any:
    """A field that is on or off."""
    return _field(Option("flag", tooltip, default, optional=optional, advanced=advanced))


def choice(
    default: str,
    names: Sequence[str],
    tooltip: str,
    *,
    optional: bool = False,
    advanced: bool = False,
) -> Any:
    """A field that holds one of some names."""
    flags: dict[str, Any] = {"optional": optional, "advanced": advanced}
    return _field(Option("choice", tooltip, default, names=tuple(names), **flags))


def text(
    default: str,
    tooltip: str,
    *,
    multiline: bool = False,
    optional: bool = False,
    advanced: bool = False,
) -> Any:
    """A field that holds a text."""
    flags: dict[str, Any] = {"multiline": multiline, "optional": optional, "advanced": advanced}
    return _field(Option("text", tooltip, default, **flags))


def window(
    default: tuple[float, float], start: str, end: str, prefix: str = "", advanced: bool = False
) -> Any:
    """A field that holds (start, end), two fractions of the steps in this order.

    `start` and `end` are their tooltips. On the node it is two numbers, called `prefix` + start and
    `prefix` + end.
    """
    bounds = zip(("start", "end"), (start, end), default, strict=True)
    both = [
        Option("number", tooltip, value, f"{prefix}{name}", advanced=advanced)
        for name, tooltip, value in bounds
    ]
    return dataclasses.field(default=default, metadata={_KEY: tuple(both)})


def words(tooltip: str, optional: bool = False) -> Any:
    """A field that holds what Prompt Pair says of the words: a tuple of PromptPair."""
    return _socket("words", tooltip, optional)


def mask(tooltip: str, optional: bool = True) -> Any:
    """A field that holds a MASK."""
    return _socket("mask", tooltip, optional)


def inversion(tooltip: str, optional: bool = True) -> Any:
    """A field that holds an inversion, a Trajectory."""
    return _socket("inversion", tooltip, optional)


def _socket(kind: Kind, tooltip: str, optional: bool) -> Any:
    default = None if optional else dataclasses.MISSING
    return _field(Option(kind, tooltip, default, optional=optional))


def _field(option: Option) -> Any:
    return dataclasses.field(default=option.default, metadata={_KEY: (option,)})


# -- what is made of the fields --------------------------------------------------------------------


def _inputs(field: dataclasses.Field[Any]) -> tuple[Option, ...]:
    """The inputs that stand for a field: none, one, or the two of a window."""
    stored: tuple[Option, ...] = field.metadata.get(_KEY, ())
    return tuple(dataclasses.replace(each, name=each.name or field.name) for each in stored)


def options_of(kind: Any) -> tuple[Option, ...]:
    """The inputs that stand for a dataclass's fields, in their order."""
    return tuple(option for field in dataclasses.fields(kind) for option in _inputs(field))


def defaults(kind: Any) -> dict[str, Any]:
    """The defaults of those inputs that have one, by name."""
    values = {option.name: option.default for option in options_of(kind)}
    return {name: value for name, value in values.items() if value is not dataclasses.MISSING}


Built = TypeVar("Built")


def from_inputs(kind: type[Built], values: Mapping[str, Any]) -> Built:
    """A dataclass of the values of its inputs. What is left out has its default."""
    left, arguments = dict(values), {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        inputs = _inputs(field)
        if any(option.name in left for option in inputs):
            each = [left.pop(option.name, option.default) for option in inputs]
            arguments[field.name] = tuple(each) if len(each) > 1 else each[0]
    return kind(**arguments, **left)  # a name that is no input is Python's own error here


def in_words(instance: Any, changed: bool = False) -> str:
    """The values of a dataclass's inputs as a node shows them, or of those that are not the
    defaults: `quantile 0.7, population legacy`."""
    said = []
    for field in dataclasses.fields(instance):
        inputs, value = _inputs(field), getattr(instance, field.name)
        for option, each in zip(inputs, value if len(inputs) > 1 else (value,), strict=False):
            # what comes from other nodes has no value in words; what nodes hide is not set there
            if option.shown and option.kind not in SOCKETS:
                if not changed or each != option.default:
                    said.append(f"{option.name} {_in_words(each)}")
    return ", ".join(said)


def _in_words(value: Any) -> str:
    """A value as a node shows it, where 0 stands for None."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or isinstance(value, float):
        return f"{value or 0.0:g}"
    return str(value) or "nothing"


def check_options(instance: Any, where: str) -> None:
    """Raise PivotError that names the first value which its field does not allow.

    NaN is never allowed.
    """
    for field in dataclasses.fields(instance):
        inputs, value = _inputs(field), getattr(instance, field.name)
        if len(inputs) > 1:
            for option, bound in zip(inputs, value, strict=True):
                _check_kind(option, bound, where)
            check_window(value, inputs[0].name.removesuffix("start"), where)
        elif inputs and not (value is None and inputs[0].default is None):
            check_value(inputs[0], value, where)


def check_value(option: Option, value: Any, where: str) -> None:
    """Raise PivotError unless a value is of the option's kind and in its range.

    NaN is never in a range, and text with half of a character is none.
    """
    _check_kind(option, value, where)
    if option.kind in ("number", "integer"):
        _check_range(option, value, where)
    if option.kind == "text":
        check_text(value, option.name, where)


def check_text(value: str, name: str, where: str = "") -> None:
    """Raise PivotError for a text that no file and no page can hold.

    JSON may bring half of a character, a surrogate without its partner.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        lone = f"half of one, {value[error.start : error.end]!r:.20}"
        do = "Type the text again; copying has cut a character in two."
        raise PivotError(f"{name} of whole characters", lone, do, where) from error


_KINDS: dict[Kind, tuple[Any, str]] = {
    "number": (numbers.Real, "a number"),
    "integer": (numbers.Integral, "a whole number"),
    "text": (str, "text"),
}


def _check_kind(option: Option, value: Any, where: str) -> None:
    """Raise PivotError for a value of another kind than the option's. True and False are numbers to
    Python, but not here."""
    if option.kind == "flag":
        # a table of numbers is neither, and comparing it is an error
        right = getattr(value, "shape", ()) == () and value in (True, False)
        expected = "on or off"
    elif option.kind == "choice":
        right = isinstance(value, str) and value in option.names
        expected = f"one of {option.names}"
    elif option.kind in _KINDS:
        kind, expected = _KINDS[option.kind]
        right = isinstance(value, kind) and not isinstance(value, bool)
    else:
        right, expected = value is not None, f"{option.kind} from another node"
    if not right:
        do = "Choose one of them." if option.kind == "choice" else "Set it on the node."
        got = short(value) if isinstance(value, int) else f"{value!r:.100}"
        raise PivotError(f"{option.name} to be {expected}", got, do, where)


def _check_range(option: Option, value: Any, where: str) -> None:
    if (option.low, option.high) == (0.0, 1.0):
        check_fraction(value, option.name, where)
    elif not option.low <= value <= option.high:
        raise PivotError(
            f"{option.name} between {option.low:g} and {option.high:g}",
            short(value),
            f"Set {option.name} to a value in this range.",
            where,
        )


class Method:
    """What every method is: a frozen dataclass of options, compared with their fields when it is
    built."""

    node: ClassVar[NodeText | None] = None
    """What its node says. It is None where the method is an entry of another node: inverters of
    DDIM Inversion's `method`, corrections of the edit nodes' `correction`."""

    @classmethod
    def where(cls) -> str:
        """What people call the method, for messages."""
        names = (getattr(cls, name, "") for name in ("title", "name"))
        return cls.node.display_name if cls.node else next(filter(None, names), cls.__name__)

    def __post_init__(self) -> None:
        check_options(self, self.where())
