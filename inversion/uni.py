"""UniInv (Jiao et al. 2025, UniEdit-Flow, arXiv 2504.13109): one evaluation a step, second order.

Sampling takes x_t back with the prediction at x_t itself, so a step towards noise is implicit. It
is solved by one fixed-point iteration from a warm start: the prediction of the step before leads to
a guess, and the prediction at the guess leads from the lower latent. Nothing in it is about flow.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..core.inverter import Inverter, Move, Step
from ..core.path import Denoise


@dataclasses.dataclass(frozen=True)
class Uni(Inverter):
    """`X^ = X + h e; e = eps(X^, upper); X' = X + h e`, in the host's space, h the levels'
    distance.

    The first step has no prediction before it and asks for one at the lower latent, so that an
    inversion of N steps costs N + 1 rows a picture. It is replayed by plain DDIM.
    """

    name: ClassVar[str] = "uni"
    label: ClassVar[str] = "one evaluation a step, second order: exact in far fewer steps"

    def rows(self, steps: int) -> int:
        """One a step, and one at the lower latent of the first."""
        return steps + 1

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        path, lower, upper = move.path, move.lower, move.upper
        eps = state
        if eps is None:
            here = path.from_host(path.to_host(x, lower), upper)
            eps = path.predict_eps(denoise, here, upper)
        guess = path.step(x, eps, lower, upper)
        eps = path.predict_eps(denoise, guess, upper)
        denoised = path.denoised(guess, eps, upper)
        return Step(path.step(x, eps, lower, upper), denoised, state=eps)
