"""Inverting a LATENT, checking the way back, and the inversion as parts for
SamplerCustomAdvanced."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ...core.correction import Correction
from ...core.errors import PivotError
from ...core.inverter import Inverter
from ...core.quality import latent_psnr
from ...core.recipe import recipe_of
from ...core.trajectory import Trajectory
from ...inversion import correction_for, rule_for
from ..run.replay import ReplaySampler
from ..run.sampling import TrajectoryNoise, clean_rows, run_inversion
from ..text.prompts import Conditioning
from .editing import replay

MOST_TARGETS = 64
UNCHECKED = "reconstruction not checked: direct is exact, and Inversion Report measures the rest"


def invert_latent(
    model: Any,
    latent: dict[str, Any],
    source: Conditioning,
    steps: int,
    end: str,
    inverter: Inverter,
    check: bool,
    negative: Conditioning | None = None,
    cfg: float = 1.0,
) -> tuple[Trajectory, float, str]:
    """The trajectory of a LATENT, the PSNR of its reconstruction, and a report.

    The PSNR is in dB in latent space, at the inversion's cfg, and 0 where it was not checked.
    """
    trajectory, residuals = run_inversion(
        model, latent, source, steps, end, inverter, negative, cfg
    )
    shape = "x".join(map(str, trajectory.latents.shape[1:]))
    report = f"{steps} steps, {inverter.name}, latent {shape}{_residual(residuals)}"
    if not check:
        return trajectory, 0.0, f"{report}, {UNCHECKED}"
    back = replay(model, trajectory, source, negative)
    psnr = latent_psnr(model.model.process_latent_in(back), trajectory.latents[0])
    return trajectory, psnr, f"{report}, comes back at {psnr:.1f} dB in latent space"


def _residual(residuals: list[torch.Tensor]) -> str:
    """The residuals of the steps in words, for methods that measure them."""
    if not residuals:
        return ""
    worst = torch.stack(residuals).amax(1)
    return (
        f", residual {float(worst.mean()):.1e} (largest {float(worst.max()):.1e}, step "
        f"{int(worst.argmax()) + 1})"
    )


def with_correction(trajectory: Trajectory, correction: Correction) -> Trajectory:
    """The inversion with a correction's recipe, which edit nodes set to `auto` follow."""
    correction.check(trajectory)
    return dataclasses.replace(trajectory, correction=recipe_of(correction))


@dataclasses.dataclass(frozen=True)
class InversionParts:
    """An inversion as SAMPLER, SIGMAS, NOISE and LATENT."""

    sampler: ReplaySampler
    sigmas: torch.Tensor
    noise: TrajectoryNoise
    latent: dict[str, torch.Tensor]

    @classmethod
    def of(
        cls, model: Any, trajectory: Trajectory, correction: str, targets: int = 1
    ) -> InversionParts:
        """The parts under a correction method's name, for a number of target prompts."""
        if not 1 <= targets <= MOST_TARGETS:
            raise PivotError(
                f"targets between 1 and {MOST_TARGETS}",
                str(targets),
                "Set it to the number of target prompts.",
                "Inversion Parts",
            )
        correction_for(trajectory, correction)  # refuses here what would fail in the sampler
        return cls(
            ReplaySampler(trajectory, correction),
            rule_for(trajectory).descending(trajectory),
            TrajectoryNoise(model, trajectory),
            {"samples": clean_rows(model, trajectory, targets)},
        )
