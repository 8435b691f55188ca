"""Negative-Prompt Inversion (Miyake et al. 2023, arXiv 2305.16807): the source prompt takes the
empty one's place."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..core.control import Branch, Place
from ..core.correction import (
    NEGATIVE,
    SOURCE,
    Correction,
    Uncond,
)
from ..core.errors import check_fraction


@dataclasses.dataclass(frozen=True)
class NegativePrompt(Correction):
    """Unconditional rows read the source prompt, so guidance cancels on the source row at any cfg.

    interpolation: from 0, the source prompt, to 1, the negative prompt, along the sphere: freer
    edits, a less exact source. keep_source: the source row reads the source prompt all the same
    (ProxMasaCtrl, Han et al. 2023, arXiv 2306.05414). start: before this fraction of the steps all
    rows read the negative prompt (its `npi_step`).
    """

    name: ClassVar[str] = "negative_prompt"
    label: ClassVar[str] = "source prompt as the negative; as exact as its inversion at cfg 1"

    interpolation: float = 0.0
    keep_source: bool = False
    start: float = 0.0

    def __post_init__(self) -> None:
        check_fraction(self.interpolation, "interpolation", "Negative-Prompt Inversion")
        check_fraction(self.start, "start", "Negative-Prompt Inversion")

    def uncond(self, branch: Branch, place: Place) -> Uncond:
        if place.step < int(self.start * place.steps):
            return NEGATIVE
        if self.interpolation == 0.0 or (self.keep_source and branch == "source"):
            return SOURCE
        return NEGATIVE if self.interpolation == 1.0 else Uncond("source", self.interpolation)
