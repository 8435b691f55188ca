"""Values of inputs that come through links, which ComfyUI does not compare with a node's ranges."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from comfy_api.latest import io

from ..core.errors import PivotError
from ..core.options import Kind, Option, check_value

_KINDS: tuple[tuple[type, Kind], ...] = (
    (io.Float.Input, "number"),
    (io.Int.Input, "integer"),
    (io.Boolean.Input, "flag"),
    (io.String.Input, "text"),
    (io.Combo.Input, "choice"),
)


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, which from now on refuses values that its own schema does not allow, by name.

    What it refuses itself is said to be refused by it, too.
    ComfyUI compares with the schema only what is typed in, and lets NaN through even there.
    """
    execute = node.execute.__func__  # type: ignore[attr-defined]
    names = [*inspect.signature(execute).parameters][1:]
    schema = functools.cache(lambda: _options(node))

    @functools.wraps(execute)
    def run(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> io.NodeOutput:
        values = {**dict(zip(names, args, strict=False)), **inputs}
        where, options = schema()
        for option in options:
            if option.name in values:
                check_value(option, values[option.name], where)
        try:
            return execute(cls, *args, **inputs)
        except PivotError as error:
            if error.where:
                raise
            raise error.at(where) from error

    node.execute = classmethod(run)  # type: ignore[method-assign, assignment]
    return node


def _options(node: type[io.ComfyNode]) -> tuple[str, list[Option]]:
    """The node's name on the page, and its inputs that hold a value of their own."""
    schema = node.define_schema()
    # a node that validates a list of files itself has another list by the time it runs
    validated = set(inspect.signature(node.validate_inputs).parameters)
    options = [_option(entry) for entry in schema.inputs if entry.id not in validated]
    return schema.display_name, [option for option in options if option is not None]


def _option(entry: Any) -> Option | None:
    """An input as an option, if it has a widget."""
    kind = next((kind for base, kind in _KINDS if isinstance(entry, base)), None)
    if kind is None:
        return None
    if kind in ("number", "integer"):
        return Option(kind, "", None, entry.id, low=entry.min, high=entry.max)
    return Option(kind, "", None, entry.id, names=tuple(getattr(entry, "options", None) or ()))
