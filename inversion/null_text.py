"""Null-Text Inversion (Mokady et al. 2022, arXiv 2211.09794, sec. 3.3): an optimised empty prompt for every step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..core.attention import Branch, Place
from ..core.correction import NEGATIVE, NULL, Correction, Uncond
from ..core.errors import PivotError
from ..core.trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class NullText(Correction):
    """Unconditional rows read the step's optimised embedding, under which guidance follows the trajectory.

    single_branch: only the source row reads it, and targets the negative prompt: freer edits (Ju et al. 2023, arXiv
    2310.01506, ablations).
    """

    name: ClassVar[str] = "null_text"
    label: ClassVar[str] = "an optimised empty prompt for every step, from Null-Text Optimize"

    single_branch: bool = False

    def uncond(self, branch: Branch, place: Place) -> Uncond:
        return NEGATIVE if self.single_branch and branch == "target" else NULL

    def check(self, trajectory: Trajectory) -> None:
        if trajectory.nulls is None:
            raise PivotError(
                "an inversion with optimised embeddings",
                "one without",
                "Connect it through Null-Text Optimize, or choose another correction.",
                "null_text",
            )
