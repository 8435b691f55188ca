"""The references' time grid, and texts between two texts along the sphere."""

from __future__ import annotations

import torch

from .errors import PivotError

LEVELS = ("reference", "host")
"""What the clean end of a level table is: the model's own first level, or 0."""


def ddim_timesteps(steps: int, trained: int = 1000) -> list[int]:
    """The references' leading grid with offset 1, ascending: for 50 steps 1, 21, ..., 981.

    Raises PivotError unless 1 <= steps < trained.
    """
    if not 1 <= steps < trained:
        raise PivotError(f"steps between 1 and {trained - 1}", str(steps), "Use 20 to 50 steps.")
    stride = trained // steps
    return [1 + stride * i for i in range(steps)]


def slerp(mix: float, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """A tensor between two of one shape along the sphere, each item of the first dimension
    flattened (METHODS 5).

    0 gives `start` and 1 `end`, bit for bit. Where the two point in one direction, the sphere is
    left for a straight line.
    """
    if mix in (0.0, 1.0):
        return end if mix else start
    a, b = start.flatten(1).double(), end.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)
    # rounding may leave a cosine just above 1, whose angle would be NaN
    angle = cosine.clamp(-1.0, 1.0).acos()[:, None]
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, torch.ones_like(angle), angle.sin())
    parts = [
        torch.where(straight, torch.full_like(angle, weight), (weight * angle).sin() / sine)
        for weight in (1.0 - mix, mix)
    ]
    return (parts[0] * a + parts[1] * b).view_as(start).to(start)
