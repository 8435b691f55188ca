"""The options of a conditioning entry: which of them the host reads, and when two are alike.

Other packs put what they like into an entry's options: the prompt's text, marks of their own,
ControlNet objects of their own classes. Source and target become rows of one entry, so that an
option must be alike on both, unless nobody reads it.
"""

from __future__ import annotations

import ast
import enum
import functools
import inspect
from typing import Any

import torch

_PLAIN = (bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device, type)


def read_by_host(key: str) -> bool:
    """Whether the host's code names an option anywhere between a conditioning and the UNet.

    A list of the keys that matter would go out of date with the next host. But what the host reads
    it must name: as a string (`cond.get("area")`) or as a parameter of a model's function
    (`extra_conds(width=...)`). A name that is there for another reason counts too, which refuses a
    note without need, but drops nothing that matters.
    """
    return key in _names()


@functools.cache
def _names() -> frozenset[str]:
    """What is named in the modules that options pass through on their way to the UNet."""
    import comfy.context_windows
    import comfy.hooks
    import comfy.model_base
    import comfy.sampler_helpers
    import comfy.samplers

    models = comfy.model_base
    named: set[str] = set()
    for module in (
        models,
        comfy.samplers,
        comfy.sampler_helpers,
        comfy.hooks,
        comfy.context_windows,
    ):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named.add(node.value)
            elif isinstance(node, ast.arg) and module is models:
                named.add(node.arg)
    return frozenset(named)


def alike(a: Any, b: Any) -> bool:
    """Whether two options do the same: equal values, or objects of one class with equal settings.

    The runtime state of a ControlNet is not compared. A run leaves some in the source's, which was
    there at the inversion, and none yet in the target's.
    """
    return _alike(a, b, {})


_Compared = dict[tuple[int, int], tuple[Any, Any]]
"""Pairs that are being compared, by their ids, because settings may lead back to where they came
from."""


def _alike(a: Any, b: Any, compared: _Compared) -> bool:
    """As `alike`, for pairs that other pairs hold."""
    pair = (id(a), id(b))
    if a is b or pair in compared:
        return True
    compared[pair] = (a, b)  # the objects, too: the id of one that is gone may be given again
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return _same_tensor(_unwrapped(a), _unwrapped(b))
    if a is None or b is None or isinstance(a, _PLAIN) or isinstance(b, _PLAIN):
        return bool(a == b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(
            _alike(one, other, compared) for one, other in zip(a, b, strict=True)
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], compared) for key in a)
    return type(a) is type(b) and _same_object(a, b, compared)


def _same_tensor(a: Any, b: Any) -> bool:
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    return tensors and a.dtype == b.dtype and torch.equal(a, b.to(a.device))


def _unwrapped(value: Any) -> Any:
    """The tensor in an object that holds nothing else, as some packs mark their hints.

    The first run takes it out of the source's.
    """
    held = list(getattr(value, "__dict__", {}).values())
    wrapped = not isinstance(value, torch.Tensor) and len(held) == 1
    return held[0] if wrapped and isinstance(held[0], torch.Tensor) else value


def _same_object(a: Any, b: Any, compared: _Compared) -> bool:
    """Whether two objects of one class are one function, are equal by their class's own rule, or
    have equal settings.

    Networks and loaded models are only the same where they are one object. The host's cache gives
    one object to two loader nodes of the same file.
    """
    if isinstance(a, super):  # an object's way to its base class, which says nothing of its own
        return True
    if hasattr(a, "__qualname__"):
        return bool(a.__qualname__ == b.__qualname__ and a.__module__ == b.__module__)
    if isinstance(a, torch.nn.Module) or hasattr(a, "model_options"):
        return False
    if type(a).__eq__ is not object.__eq__:
        return bool(a == b)
    settings = _settings(a)
    return bool(settings) and _alike(settings, _settings(b), compared)


def _settings(value: Any) -> dict[str, Any]:
    """An object's settings, without what a run leaves in it.

    They are the fields that its copy has or, where it cannot be copied, those that its class is
    called with. The host's Apply ControlNet copies the control for every conditioning, so that
    every class of controls knows how. A copy starts without runtime state, and without what comes
    before it.
    """
    copy = getattr(value, "copy", None) or getattr(value, "clone", None)
    if copy is None:
        fields = dict(getattr(value, "__dict__", {}))
        parameters = inspect.signature(type(value)).parameters if fields else {}
        return {name: fields[name] for name in fields if name in parameters} or fields
    fields = dict(getattr(copy(), "__dict__", {}))
    if hasattr(value, "previous_controlnet"):
        fields["previous_controlnet"] = value.previous_controlnet
    return fields
