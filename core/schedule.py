"""Noise levels and the DDIM step (Song et al. 2021, arXiv 2010.02502, eq. 12 with eta = 0).

`x` is the variance-preserving latent of the papers, `sigma = sqrt((1 - abar) / abar)`. In the
variance-exploding variable `X = x * sqrt(1 + sigma^2)` a DDIM step is exactly Euler: `X' = X +
(sigma' - sigma) * eps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .errors import PivotError

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""The one model contract: `denoise(X, sigma) -> x0`, X variance-exploding; eps, v and flow models
all fit."""

LEVELS = ("reference", "host")


def ddim_timesteps(steps: int, trained: int = 1000) -> list[int]:
    """The references' leading grid with offset 1, ascending: for 50 steps 1, 21, ..., 981.

    Raises PivotError unless 1 <= steps < trained.
    """
    if not 1 <= steps < trained:
        raise PivotError(f"steps between 1 and {trained - 1}", str(steps), "Use 20 to 50 steps.")
    stride = trained // steps
    return [1 + stride * i for i in range(steps)]


def level_table(trained_sigmas: torch.Tensor, steps: int, end: str = "reference") -> torch.Tensor:
    """Ascending sigmas [steps + 1], float64, from the model's own table of trained sigmas
    (ascending).

    `end = "reference"`: the clean end is the model's first level, sigma_0 = 0.0292 for SD, as in
    every SD 1.x reference (`set_alpha_to_one=False`). `end = "host"`: it is 0, as in ComfyUI's
    `ddim_uniform`.
    """
    if end not in LEVELS:
        raise PivotError(f"levels to be one of {LEVELS}", repr(end), "Choose one of them.")
    table = trained_sigmas.double().cpu()
    chosen = table[torch.tensor(ddim_timesteps(steps, len(table)))]
    clean = table[:1] if end == "reference" else torch.zeros(1, dtype=torch.float64)
    return torch.cat([clean, chosen])


def to_exploding(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """x (variance-preserving) -> X (variance-exploding), the scale in which ComfyUI samples."""
    return x * math.sqrt(1.0 + sigma * sigma)


def to_preserving(exploding: torch.Tensor, sigma: float) -> torch.Tensor:
    """X (variance-exploding) -> x (variance-preserving)."""
    return exploding / math.sqrt(1.0 + sigma * sigma)


def predict_eps(denoise: Denoise, x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The noise prediction of the network at the latent `x` and the time of `sigma > 0`; the shape
    of x.

    `x` may belong to another level than `sigma`: DDIM inversion evaluates the lower latent at the
    higher time (`reference` evaluation point), and the network then sees `x` itself.
    """
    exploding = to_exploding(x, sigma)
    return (exploding - denoise(exploding, sigma)) / sigma


def ddim_step(x: torch.Tensor, eps: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """One DDIM step from `sigma` to `sigma_next`, in either direction; x and the result
    variance-preserving."""
    return to_preserving(to_exploding(x, sigma) + (sigma_next - sigma) * eps, sigma_next)


def slerp(mix: float, start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Between two tensors of one shape along the sphere, each item of the first dimension flattened
    (METHODS 5).

    0 gives `start` and 1 `end`, bit for bit; where the two point in one direction it is a straight
    line.
    """
    if mix in (0.0, 1.0):
        return end if mix else start
    a, b = start.flatten(1).double(), end.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)
    angle = cosine.clamp(-1.0, 1.0).acos()[:, None]
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, torch.ones_like(angle), angle.sin())
    parts = [
        torch.where(straight, torch.full_like(angle, weight), (weight * angle).sin() / sine)
        for weight in (1.0 - mix, mix)
    ]
    return (parts[0] * a + parts[1] * b).view_as(start).to(start)
