"""What makes the source row of an edit come back to the picture."""

from __future__ import annotations

from typing import Literal, Protocol

import torch

from .trajectory import Trajectory


class Correction(Protocol):
    """A correction method, stateless.

    name: its name in the papers; label: one line for people.
    uncond: the text that unconditional rows read, the negative prompt or the source prompt.
    pinned: the source row is set from the trajectory after every step, so its own prediction is not needed.
    """

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def uncond(self) -> Literal["negative", "source"]: ...
    @property
    def pinned(self) -> bool: ...

    def source_after(self, x: torch.Tensor, trajectory: Trajectory, index: int) -> torch.Tensor:
        """The source row after the step that ends at level `index`; x is what DDIM made of it."""
        ...
