"""Coordinates of a latent and the step between two of its noise levels.

A latent is `x = alpha x0 + s n`. x0 is the clean picture and n the noise, and the level `sigma`
gives (alpha, s). The host samples in its own space X, in which every deterministic step is Euler's:
`X' = X + (sigma' - sigma) (X - denoised) / sigma`. The paths differ in (alpha, s) and in the scale
between X and x, and in nothing else. No other file writes these formulas.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import ClassVar

import torch

from .errors import PivotError
from .schedule import LEVELS, ddim_timesteps

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""The one model contract, `denoise(X, sigma) -> x0`. X is in the host's space, and x0 has its
shape."""


TIMES = 1000.0
"""The model's time at pure noise, in which the papers count."""


class Path(abc.ABC):
    """A family of noise levels.

    Latents are [B, C, ...]. Levels are sigmas as the host counts them.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def scale(self, sigma: float) -> float:
        """X / x at a level."""

    @abc.abstractmethod
    def signal(self, sigma: float) -> float:
        """alpha, the share of the clean picture in x."""

    @abc.abstractmethod
    def noise(self, sigma: float) -> float:
        """s, the share of the noise in x."""

    @abc.abstractmethod
    def levels(self, table: torch.Tensor, steps: int, end: str = "reference") -> torch.Tensor:
        """Ascending levels [steps + 1], float64, from the model's own table of levels
        (ascending)."""

    @abc.abstractmethod
    def time(self, table: torch.Tensor, sigma: float) -> float:
        """The time that a model with this table of levels (ascending) is told at a level, from 0
        (picture) to TIMES (noise)."""

    def to_host(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """X of the host for x of the papers."""
        return x * self.scale(sigma)

    def from_host(self, host: torch.Tensor, sigma: float) -> torch.Tensor:
        """x of the papers for X of the host."""
        return host / self.scale(sigma)

    @abc.abstractmethod
    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """X of a clean latent with noise added, as the host's samplers begin."""

    def predict_eps(self, denoise: Denoise, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """The slope (X - denoised) / sigma at the latent `x` and the time of `sigma > 0`.

        It is the noise prediction on the variance-preserving path and the velocity on the flow
        path. `x` may belong to another level than `sigma`: DDIM inversion evaluates the lower
        latent at the higher time (`reference`), and the network then sees `x` itself.
        """
        return self.eps(x, denoise(self.to_host(x, sigma), sigma), sigma)

    def eps(self, x: torch.Tensor, denoised: torch.Tensor, sigma: float) -> torch.Tensor:
        """The slope that belongs to a clean picture `denoised` predicted at x and sigma > 0."""
        return (self.to_host(x, sigma) - denoised) / sigma

    def denoised(self, x: torch.Tensor, eps: torch.Tensor, sigma: float) -> torch.Tensor:
        """The clean picture x0 that a slope `eps` at x stands for."""
        return self.to_host(x, sigma) - sigma * eps

    def step(
        self, x: torch.Tensor, eps: torch.Tensor, sigma: float, sigma_next: float
    ) -> torch.Tensor:
        """One deterministic step from `sigma` to `sigma_next`, in either direction."""
        return self.from_host(self.to_host(x, sigma) + (sigma_next - sigma) * eps, sigma_next)


class VariancePreserving(Path):
    """`alpha^2 + s^2 = 1`, sigma = s / alpha, for every UNet (Song et al. 2021, arXiv 2010.02502).

    A step is DDIM's (eq. 12 with eta = 0), and in X, the variance-exploding variable, it is
    Euler's.
    """

    name = "vp"

    def scale(self, sigma: float) -> float:
        return math.sqrt(1.0 + sigma * sigma)

    def signal(self, sigma: float) -> float:
        return 1.0 / math.sqrt(1.0 + sigma * sigma)

    def noise(self, sigma: float) -> float:
        return sigma / math.sqrt(1.0 + sigma * sigma)

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        return latent + sigma * noise

    def levels(self, table: torch.Tensor, steps: int, end: str = "reference") -> torch.Tensor:
        """The references' leading grid (docs/METHODS.md 0.3) on the model's table.

        With `end = "reference"` the clean end is the model's first level. That is sigma_0 = 0.0292
        for SD, as in every SD 1.x reference (`set_alpha_to_one=False`). With `end = "host"` it is
        0, as in ComfyUI's `ddim_uniform`.
        """
        _check_end(end)
        ascending = table.double().cpu()
        chosen = ascending[torch.tensor(ddim_timesteps(steps, len(ascending)))]
        clean = ascending[:1] if end == "reference" else torch.zeros(1, dtype=torch.float64)
        return torch.cat([clean, chosen])

    def time(self, table: torch.Tensor, sigma: float) -> float:
        """The place of the nearest level of the table, as the host looks times up."""
        nearest = (table.double().log() - math.log(sigma)).abs().argmin()
        return TIMES * float(nearest) / len(table)


class Flow(Path):
    """`alpha = 1 - s`, sigma = s, for flow matching, whose host space is x itself (docs/METHODS.md
    21)."""

    name = "flow"

    def scale(self, sigma: float) -> float:
        return 1.0

    def signal(self, sigma: float) -> float:
        return 1.0 - sigma

    def noise(self, sigma: float) -> float:
        return sigma

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        return (1.0 - sigma) * latent + sigma * noise

    def levels(self, table: torch.Tensor, steps: int, end: str = "reference") -> torch.Tensor:
        """The host's `simple` schedule: every (len / steps)-th level from the noisiest on, then
        0."""
        _check_end(end)
        ascending = table.double().cpu()
        if not 1 <= steps <= len(ascending):
            raise PivotError(
                f"steps between 1 and {len(ascending)}", str(steps), "Use 8 to 50 steps."
            )
        stride = len(ascending) / steps
        # rounded down as the host does it, so that a replay's levels are a stock sampler's
        chosen = [float(ascending[-(1 + int(i * stride))]) for i in range(steps)]
        return torch.tensor([0.0, *reversed(chosen)], dtype=torch.float64)

    def time(self, table: torch.Tensor, sigma: float) -> float:
        """The level itself, which is the time of a flow model."""
        return TIMES * sigma


def _check_end(end: str) -> None:
    if end not in LEVELS:
        raise PivotError(f"levels to be one of {LEVELS}", repr(end), "Choose one of them.")


VP, FLOW = VariancePreserving(), Flow()
PATHS: dict[str, Path] = {path.name: path for path in (VP, FLOW)}
