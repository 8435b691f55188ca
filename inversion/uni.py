"""UniInv (Jiao et al. 2025, UniEdit-Flow, arXiv 2504.13109): one evaluation a step, second order.

Sampling takes x_t back with the prediction at x_t itself, so a step towards noise is implicit. It
is solved by one fixed-point iteration from a warm start. The prediction of the step before leads
to a guess, and the prediction at the guess leads on from the lower latent. Nothing in it is about
flow.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ..core.inverter import Inverter, Move, Step
from ..core.path import Denoise


@dataclasses.dataclass(frozen=True)
class Uni(Inverter):
    """`X^ = X + h e; e = eps(X^, upper); X' = X + h e`, in the host's space.

    h is the distance of the levels, and e at first the prediction of the step before. The first
    step has none before it and asks for one at the lower latent. So an inversion of N steps costs
    N + 1 rows a picture. It is replayed by plain DDIM.
    """

    name: ClassVar[str] = "uni"
    label: ClassVar[str] = "one evaluation a step, second order: exact in far fewer steps"

    def rows(self, steps: int) -> int:
        """There is one row a step, and one more at the lower latent of the first."""
        return steps + 1

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        path, lower, upper = move.path, move.lower, move.upper
        eps = state
        if eps is None:
            # the same latent in the host's space, described at the level where the network is asked
            start = path.from_host(path.to_host(x, lower), upper)
            eps = path.predict_eps(denoise, start, upper)
        # the prediction goes on to the next step: asking anew would double the cost
        guess = path.step(x, eps, lower, upper)
        eps = path.predict_eps(denoise, guess, upper)
        denoised = path.denoised(guess, eps, upper)
        return Step(path.step(x, eps, lower, upper), denoised, state=eps)
