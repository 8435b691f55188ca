"""DDIM inversion (Song et al. 2021, arXiv 2010.02502; as used by Mokady et al. 2022, arXiv 2211.09794, sec. 3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch

from ..core.errors import PivotError, check_finite
from ..core.schedule import Denoise, ddim_step, predict_eps
from ..core.trajectory import Trajectory

EVALUATIONS = ("reference", "naive")


def invert(
    denoise: Denoise,
    x0: torch.Tensor,
    sigmas: torch.Tensor,
    evaluation: str = "reference",
    on_step: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """All latents from clean to noise, [N + 1, *x0.shape]; the first is `x0` itself.

    sigmas: ascending levels [N + 1]. evaluation: the network sees the lower latent at the time of the upper
    level (`reference`, as every public implementation does) or of its own level (`naive`, the formula as
    printed). on_step(i, x, denoised) after each step. Raises PivotError naming the step when NaN appears.
    """
    if evaluation not in EVALUATIONS:
        raise PivotError(f"evaluation to be one of {EVALUATIONS}", repr(evaluation), "Choose one of them.")
    levels = [float(sigma) for sigma in sigmas]
    latents = [x0]
    for i, (lower, upper) in enumerate(zip(levels, levels[1:], strict=False)):
        x = latents[-1]
        at = upper if evaluation == "reference" or lower == 0.0 else lower
        eps = predict_eps(denoise, x, at)
        stepped = ddim_step(x, eps, lower, upper)
        latents.append(check_finite(stepped, "the inverted latent", f"DDIM inversion, step {i + 1}"))
        if on_step is not None:
            on_step(i, stepped, x * (1.0 + at * at) ** 0.5 - at * eps)
    return torch.stack(latents)


@dataclasses.dataclass(frozen=True)
class Uncorrected:
    """Plain DDIM: the source row is guided like the target and drifts when cfg is not 1."""

    name: str = "none"
    label: str = "plain DDIM, drifts at cfg > 1"
    uncond: Literal["negative", "source"] = "negative"
    pinned: bool = False

    def source_after(self, x: torch.Tensor, trajectory: Trajectory, index: int) -> torch.Tensor:
        return x
