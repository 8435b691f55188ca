"""From clean to noise: the loop that every inversion method shares, and what a method is."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch

from .errors import check_finite
from .schedule import Denoise


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step towards noise. x: the latents at the upper level [B, C, H, W]; denoised: the
    network's last x0 of them, for previews; residual: by how much x misses the step it stands for,
    relative, [B]; None where nothing measures it.
    """

    x: torch.Tensor
    denoised: torch.Tensor
    residual: torch.Tensor | None = None


class Inverter(abc.ABC):
    """An inversion method, a frozen set of options without state.

    name: its name in the papers; label: one line for people.
    """

    name: ClassVar[str]
    label: ClassVar[str]

    @abc.abstractmethod
    def step(self, denoise: Denoise, x: torch.Tensor, lower: float, upper: float) -> Step:
        """The latents x [B, C, H, W] of level `lower` taken to level `upper`, sigmas, both
        variance-preserving."""


def invert(
    inverter: Inverter,
    denoise: Denoise,
    x0: torch.Tensor,
    sigmas: torch.Tensor,
    on_step: Callable[[int, Step], None] | None = None,
) -> torch.Tensor:
    """All latents from clean to noise, [N + 1, *x0.shape]; the first is `x0` itself.

    sigmas: ascending levels [N + 1]. on_step(i, step) after each step. Raises PivotError naming the
    step when NaN appears.
    """
    levels = [float(sigma) for sigma in sigmas]
    latents = [x0]
    for i, (lower, upper) in enumerate(zip(levels, levels[1:], strict=False)):
        step = inverter.step(denoise, latents[-1], lower, upper)
        latents.append(
            check_finite(step.x, "the inverted latent", f"{inverter.name} inversion, step {i + 1}")
        )
        if on_step is not None:
            on_step(i, step)
    return torch.stack(latents)
