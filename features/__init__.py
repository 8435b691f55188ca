"""Controllers of features, what the UNet's blocks give: one file per method, which is here because
its file is."""

from __future__ import annotations

from ..core.control import Controller, ControlOptions
from ..core.registry import discover

CONTROLLERS = discover(__name__, Controller)
OPTIONS = discover(__name__, ControlOptions)
"""What nodes are made from: controllers, and the options of those that need some of their own."""
globals().update({kind.__name__: kind for kind in OPTIONS})  # each by its name, as if listed
