"""Guidance rules: one file per rule, which is here because its file is."""

from __future__ import annotations

from ..core.guidance import Guidance
from ..core.registry import discover

RULES = discover(__name__, Guidance)
globals().update({kind.__name__: kind for kind in RULES})  # each by its name, as if listed
