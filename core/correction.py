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
    """What an unconditional row reads.

    base: the negative prompt or the source prompt; mix: from 0, `base` itself, to 1, the negative
    prompt, along the sphere; null: in the text's place the trajectory's optimised embedding of the
    step.
    """

    base: Literal["negative", "source"]
    mix: float = 0.0
    null: bool = False


NEGATIVE, SOURCE, NULL = Uncond("negative"), Uncond("source"), Uncond("negative", null=True)


class Correction(Method, abc.ABC):
    """A correction method, a frozen set of options without state.

    name: its name in the papers; label: one line for people.
    """

    name: ClassVar[str]
    label: ClassVar[str]

    @property
    def pinned(self) -> bool:
        """The source row is set from the trajectory after every step: its own prediction is not
        needed."""
        return False

    def uncond(self, branch: Branch, place: Place) -> Uncond:
        """What unconditional rows of a branch read at a step. Where source rows read SOURCE
        guidance cancels on them, whatever the cfg, and they need no unconditional row."""
        return NEGATIVE

    def source_after(self, x: torch.Tensor, trajectory: Trajectory, index: int) -> torch.Tensor:
        """The source rows after the step that ends at level `index`; x is what DDIM made of
        them."""
        return x

    def remark(self, trajectory: Trajectory, cfg: float, negative: str) -> str:
        """What people should know of a replay of the source at this cfg and negative prompt (its
        fingerprint); empty when all is well."""
        return ""

    def check(self, trajectory: Trajectory) -> None:
        """Raise PivotError where the trajectory lacks what the method needs."""
        return None
