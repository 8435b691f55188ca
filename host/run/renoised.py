"""How well the network restores a picture from fresh noise under a text, at a few levels.

The same noise for every text makes their errors comparable, as a diffusion classifier does (Li et
al. 2023, arXiv 2303.16203).
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch

from ...core.path import PATHS
from ...core.trajectory import Trajectory
from ..text.prompts import Conditioning
from .replay import Show, denoiser
from .runs import OwnSampler

MOST_LEVELS = 6


def levels_of(trajectory: Trajectory) -> list[float]:
    """The levels of a trajectory where the network is asked, few and evenly spread, noisiest
    first."""
    count = min(MOST_LEVELS, trajectory.steps)
    places = torch.linspace(trajectory.steps, 1, count).round().long().tolist()
    return [float(trajectory.sigmas[place]) for place in places]


class RenoisedSampler(OwnSampler):
    """Asks the network about the picture under fresh noise, and keeps its squared errors."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.errors: list[torch.Tensor] = []

    def run(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        show: Show,
        latent_image: torch.Tensor,
    ) -> torch.Tensor:
        denoise = denoiser(lambda host, levels: guider(host, levels, **extra_args))
        path, clean = PATHS[self.trajectory.path], self.trajectory.latents[0]
        for index, sigma in enumerate(levels_of(self.trajectory)):
            # on the CPU, so that every device draws the same
            drawn = torch.randn(clean.shape, generator=torch.Generator().manual_seed(index))
            noisy = path.noised(clean, drawn, sigma).to(latent_image)
            missed = denoise(noisy, sigma) - clean.to(latent_image)
            self.errors.append(missed.float().square().flatten(1).mean(1).cpu())
        return latent_image


def restoring_errors(model: Any, trajectory: Trajectory, text: Conditioning) -> torch.Tensor:
    """The mean squared error [levels, B] of the picture that the network restores."""
    sampler = RenoisedSampler(trajectory)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text, text)
    guider.set_cfg(1.0)
    latent = model.model.process_latent_out(trajectory.latents[0])
    nothing = torch.zeros_like(latent)
    guider.sample(nothing, latent, sampler, trajectory.descending, seed=0)
    return torch.stack(sampler.errors)
