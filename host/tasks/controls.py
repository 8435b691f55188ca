"""A model under a controller: what the control nodes call."""

from __future__ import annotations

from typing import Any

from ...core.control import ControlOptions, ModelFacts
from ..model.checks import check_unet
from ..model.layers import layers_of, scales_of
from ..run.patching import add_controller


def controlled(model: Any, options: ControlOptions) -> tuple[Any, str]:
    """The model under the controller that the options describe, and what it does, in words."""
    check_unet(model, options.where())
    controller, note = options.build(ModelFacts(layers_of(model), scales_of(model)))
    return add_controller(model, controller), note
