"""What makes the source row of an edit come back to the picture."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from .control import Branch, Place
from .options import Method

if TYPE_CHECKING:
    from .trajectory import Trajectory


@dataclasses.dataclass(frozen=True)
class Uncond:
    """What an unconditional row reads."""

    base: Literal["negative", "source"]
    """The negative prompt or the source prompt."""
    mix: float = 0.0
    """How far the text lies along the sphere from `base` (0) to the negative prompt (1)."""
    null: bool = False
    """The trajectory's optimised embedding of the step takes the text's place."""


NEGATIVE, SOURCE, NULL = Uncond("negative"), Uncond("source"), Uncond("negative", null=True)


class Correction(Method, abc.ABC):
    """A correction method, a frozen set of options without state."""

    name: ClassVar[str]
    """Its name in the papers."""
    label: ClassVar[str]
    """One line for people."""

    @property
    def pinned(self) -> bool:
        """Whether source rows are set from the trajectory after every step, so that their own
        predictions are not needed."""
        return False

    def uncond(self, branch: Branch, place: Place) -> Uncond:
        """What unconditional rows of a branch read at a step.

        Where source rows read SOURCE, guidance cancels on them at any cfg, and they need no
        unconditional row.
        """
        return NEGATIVE

    def source_after(self, x: torch.Tensor, trajectory: Trajectory, index: int) -> torch.Tensor:
        """The source rows after the step that ends at level `index`, where the step rule left them
        at x."""
        return x

    def targets_after(
        self, x: torch.Tensor, before: torch.Tensor, source: torch.Tensor
    ) -> torch.Tensor:
        """The target rows after a step that left them at x.

        The step left the source rows at `before`, and `source_after` has set them to `source`.
        """
        return x

    def remark(self, trajectory: Trajectory, cfg: float, negative: str) -> str:
        """What people should know of a replay of the source at this cfg; empty when all is well.

        negative is the fingerprint of the negative prompt.
        """
        return ""

    def check(self, trajectory: Trajectory) -> None:
        """Raise PivotError where the trajectory lacks what the method needs."""
        return None
