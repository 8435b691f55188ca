"""Fixed-point inversion (Pan et al. 2023, AIDI, arXiv 2309.04907): each step asks the network where
sampling will.

Sampling takes x_t to x_{t-1} with the prediction at x_t. So x_t is the fixed point of the map that
takes x_{t-1} back with the prediction at x itself. DDIM inversion is its first iterate.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..core import options
from ..core.inverter import Inverter, Move, Step
from ..core.path import Denoise


@dataclasses.dataclass(frozen=True)
class FixedPoint(Inverter):
    """Iterates from the DDIM step until the step no longer changes, and is then exact at its cfg.

    The residual says by how much the best iterate misses the step that its own prediction makes.
    The result is that step, which is one iteration closer. A picture whose residual grows falls
    back to its best iterate, so that it is never worse than the DDIM step.
    """

    name: ClassVar[str] = "fixed_point"
    label: ClassVar[str] = "iterated until the step no longer changes, also at cfg > 1"

    iterations: int = options.integer(
        5,
        0,
        50,
        "Of fixed_point, at most: it stops where the step no longer changes, or changes more. "
        "Higher is more exact; 3 to 10.",
        optional=True,
    )
    """At most so many predictions follow the first."""
    tolerance: float = options.number(
        1e-6,
        0.0,
        1.0,
        1e-7,
        "Of fixed_point: the relative change of a step at which a picture is done.",
        advanced=True,
        shown=False,
    )
    """The relative change of a step at which a picture is done."""

    def rows(self, steps: int) -> int:
        """A step has one row for the DDIM step and at most one for each iteration."""
        return steps * (1 + self.iterations)

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        path, upper = move.path, move.upper

        def onward(guess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            eps = path.predict_eps(denoise, guess, upper)
            return path.step(x, eps, move.lower, upper), path.denoised(guess, eps, upper)

        guess, denoised = onward(x)
        best, argument, residual = (
            guess,
            guess,
            torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device),
        )
        searching = torch.ones_like(residual, dtype=torch.bool)
        for _ in range(self.iterations):
            image, denoised = onward(guess)
            change = _relative(image - guess, image)
            better = searching & (change < residual)
            # a picture that grew worse goes back to the latent that its best image came from; one
            # that is done already stays as it is
            best = torch.where(
                _wide(better, x), image, torch.where(_wide(searching, x), argument, best)
            )
            argument, residual = (
                torch.where(_wide(better, x), guess, argument),
                torch.where(better, change, residual),
            )
            searching = better & (change > self.tolerance)
            if not searching.any():
                break
            guess = torch.where(_wide(searching, x), image, guess)
        return Step(best, denoised, residual if self.iterations else None)


def _relative(change: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """The length of a change over the length of what changed, [B]."""
    share: torch.Tensor = change.flatten(1).norm(dim=1) / of.flatten(1).norm(dim=1).clamp_min(1e-12)
    return share


def _wide(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One number a picture, to be combined with latents of x's shape."""
    return rows.view(-1, *[1] * (x.ndim - 1))
