"""Nodes made from methods: the inputs of a method's node are the fields of its dataclass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from comfy_api.latest import io, ui

from .. import attention, features
from ..core.control import ControlOptions
from ..core.correction import Correction
from ..core.errors import PivotError
from ..core.guidance import Guidance as GuidanceRule
from ..core.options import NodeText, Option, from_inputs, options_of
from ..core.stepper import StepRule
from ..guidance import RULES
from ..host.tasks.controls import controlled
from ..host.tasks.inversion import with_correction
from ..inversion import CORRECTIONS, STEPPERS, with_stepper
from .sockets import Guidance, Inversion, Words, inversion_input, model_input


def input_of(option: Option) -> io.Input:
    """An option as an input of a node."""
    about: dict[str, Any] = {
        "tooltip": option.tooltip,
        "optional": option.optional,
        "advanced": option.advanced or None,
    }
    sockets = {"words": Words, "mask": io.Mask, "inversion": Inversion}
    if option.kind in sockets:
        return sockets[option.kind].Input(option.name, **about)
    about["default"] = option.default
    if option.kind in ("number", "integer"):
        return _number_input(option, about)
    if option.kind == "flag":
        return io.Boolean.Input(option.name, **about)
    if option.kind == "choice":
        return io.Combo.Input(option.name, options=list(option.names), **about)
    return io.String.Input(option.name, multiline=option.multiline, **about)


def _number_input(option: Option, about: dict[str, Any]) -> io.Input:
    """A number as an input, which is 0 on the node where its default is None."""
    if option.kind == "integer":
        return io.Int.Input(option.name, min=int(option.low), max=int(option.high), **about)
    about["default"] = option.default or 0.0
    return io.Float.Input(option.name, min=option.low, max=option.high, step=option.step, **about)


def inputs_of(kind: type) -> list[io.Input]:
    """The inputs of a method's node that stand for its fields."""
    return [input_of(option) for option in options_of(kind) if option.shown]


class MethodNode(io.ComfyNode):
    """A node of the method `kind`."""

    kind: ClassVar[Any]

    @classmethod
    def schema(cls, first: list[io.Input], outputs: list[io.Output]) -> io.Schema:
        """The node's declaration, with `first` in front of the method's own inputs."""
        text: NodeText = cls.kind.node
        return io.Schema(
            node_id=text.id,
            display_name=text.display_name,
            category=text.category,
            description=text.description,
            search_aliases=list(text.search_aliases),
            inputs=[*first, *inputs_of(cls.kind)],
            outputs=outputs,
        )

    @classmethod
    def method(cls, inputs: dict[str, Any]) -> Any:
        """The method with the values of its inputs."""
        # a widget cannot be empty: 0 stands for None there, and is None again here
        nothing = {o.name for o in options_of(cls.kind) if o.default is None and o.kind == "number"}
        values = {
            name: value or None if name in nothing else value for name, value in inputs.items()
        }
        return from_inputs(cls.kind, values)


class ControlNode(MethodNode):
    """Model in, model out, under a controller. Some say in words what they do, too."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        text = cls.kind.node
        notes = [io.String.Output(display_name=text.note)] if text.note else []
        return cls.schema(
            [model_input(text.model)], [io.Model.Output(display_name="MODEL"), *notes]
        )

    @classmethod
    def execute(cls, model: Any, **inputs: Any) -> io.NodeOutput:
        patched, note = controlled(model, cls.method(inputs))
        if not cls.kind.node.note:
            return io.NodeOutput(patched)
        return io.NodeOutput(patched, note, ui=ui.PreviewText(note))


class CorrectionNode(MethodNode):
    """Inversion in, inversion out, which edit nodes set to `auto` follow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema([inversion_input()], [Inversion.Output(display_name="inversion")])

    @classmethod
    def execute(cls, inversion: Any, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(with_correction(inversion, cls.method(inputs)))


class StepperNode(MethodNode):
    """Inversion in, inversion out, whose replays follow a step rule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema([inversion_input()], [Inversion.Output(display_name="inversion")])

    @classmethod
    def execute(cls, inversion: Any, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(with_stepper(inversion, cls.method(inputs)))


class GuidanceNode(MethodNode):
    """A guidance rule, for the edit nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema([], [Guidance.Output(display_name="guidance")])

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return io.NodeOutput(cls.method(inputs))


FAMILIES: tuple[tuple[type, type[MethodNode]], ...] = (
    (ControlOptions, ControlNode),
    (Correction, CorrectionNode),
    (StepRule, StepperNode),
    (GuidanceRule, GuidanceNode),
)


def method_nodes() -> dict[str, type[io.ComfyNode]]:
    """The node of every method that says what it is called, by its id.

    Raises PivotError where two methods say the same id.
    """
    nodes: dict[str, type[io.ComfyNode]] = {}
    for kind in _methods():
        text, (node,) = kind.node, [node for base, node in FAMILIES if issubclass(kind, base)]
        if text.id in nodes:
            raise PivotError(
                "a node id of its own for every method",
                f"{text.id} twice",
                "Rename one of them.",
                kind.__module__,
            )
        nodes[text.id] = type(text.id, (node,), {"kind": kind, "__doc__": kind.__doc__})
    return nodes


def _methods() -> Iterable[Any]:
    """The methods that say of themselves what their node is called."""
    kinds = (
        *attention.OPTIONS,
        *features.OPTIONS,
        *CORRECTIONS.values(),
        *STEPPERS.values(),
        *RULES,
    )
    # vars, because a subclass must not be given its base class's node once more
    return (kind for kind in kinds if vars(kind).get("node"))
