"""Guidance rules: one file per rule."""

from __future__ import annotations

from ..core.guidance import Guidance
from .cfg import ClassifierFree
from .proximal import Proximal

RULES: tuple[type[Guidance], ...] = (ClassifierFree, Proximal)
