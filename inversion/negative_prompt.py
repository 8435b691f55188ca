"""Negative-Prompt Inversion (Miyake et al. 2023, arXiv 2305.16807): the source prompt takes the
empty one's place."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..core import options
from ..core.control import Branch, Place
from ..core.correction import NEGATIVE, SOURCE, Correction, Uncond
from ..core.options import NodeText


@dataclasses.dataclass(frozen=True)
class NegativePrompt(Correction):
    """Unconditional rows read the source prompt, so guidance cancels on the source row at any
    cfg."""

    name: ClassVar[str] = "negative_prompt"
    label: ClassVar[str] = "source prompt as the negative; as exact as its inversion at cfg 1"

    node: ClassVar[NodeText] = NodeText(
        "PivotNegativePromptInversion",
        "Negative-Prompt Inversion",
        "Marks an inversion to be replayed with the source prompt as the negative one: as exact as "
        "the inversion at cfg 1, at no cost. Edit nodes set to auto follow it.",
        ("npi", "negative prompt inversion", "proxnpi"),
    )

    interpolation: float = options.fraction(
        0.0,
        "From the source prompt (0) to the negative prompt (1), along the sphere. Higher edits "
        "more freely and comes back less exactly; 0 to 0.5, papers 0.",
        step=0.05,
    )
    """Which text unconditional rows read: 0 is the source prompt, 1 the negative prompt, and what
    lies between lies on the sphere. Edits become freer with it and the source less exact."""
    keep_source: bool = options.flag(
        False,
        "The source row reads the source prompt whatever the interpolation: exact, while targets "
        "are free. ProxMasaCtrl has it on, with interpolation 1.",
    )
    """The source row reads the source prompt all the same (ProxMasaCtrl, Han et al. 2023, arXiv
    2306.05414)."""
    start: float = options.fraction(
        0.0,
        "Before this fraction of the steps the negative prompt is read; papers 0.",
        advanced=True,
    )
    """All rows read the negative prompt before this fraction of the steps (ProxMasaCtrl's
    `npi_step`)."""

    def uncond(self, branch: Branch, place: Place) -> Uncond:
        # whole steps only: the reference counts in them
        if place.step < int(self.start * place.steps):
            return NEGATIVE
        if self.interpolation == 0.0 or (self.keep_source and branch == "source"):
            return SOURCE
        return NEGATIVE if self.interpolation == 1.0 else Uncond("source", self.interpolation)
