"""Inversion and correction methods: one file per method."""

from __future__ import annotations

from ..core.correction import Correction
from ..core.errors import PivotError
from .ddim import Uncorrected
from .direct import Direct
from .negative_prompt import NegativePrompt

CORRECTIONS: dict[str, Correction] = {c.name: c for c in (Direct(), NegativePrompt(), Uncorrected())}


def correction_named(name: str) -> Correction:
    """The correction method of a name; PivotError lists the names there are."""
    if name not in CORRECTIONS:
        raise PivotError(f"correction to be one of {tuple(CORRECTIONS)}", repr(name), "Choose one of them.")
    return CORRECTIONS[name]
