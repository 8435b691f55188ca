"""The inversion of a picture: every latent from clean to noise, and what made it."""

from __future__ import annotations

import dataclasses

import torch

from .correction import Correction
from .errors import PivotError, check_finite
from .recipe import Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """The pivot x*_0 ... x*_N of a batch of pictures (Mokady et al. 2022, arXiv 2211.09794, sec.
    3.2).

    sigmas: ascending levels [N + 1], float64, index 0 the clean end.
    latents: variance-preserving, scaled as the model sees them, [N + 1, B, C, H, W], fp32 on the
        CPU; `latents[0]` is the encoder's output unchanged.
    method: the inversion's name; model, conditioning: fingerprints of what it was made with;
        prompt: the source prompt where it is known; guidance: the cfg it was made at.
    nulls: optimised embeddings [N, B, T, D], the noisiest step first, fp32 on the CPU, or None.
    correction: how it is to be replayed, where that was said.
    """

    sigmas: torch.Tensor
    latents: torch.Tensor
    method: str
    model: str
    conditioning: str
    prompt: str = ""
    guidance: float = 1.0
    nulls: torch.Tensor | None = None
    correction: Correction | None = None
    stepper: Recipe | None = None
    path: str = "vp"

    def __post_init__(self) -> None:
        if self.latents.ndim != 5 or len(self.latents) != len(self.sigmas):
            raise PivotError(
                f"latents [{len(self.sigmas)}, B, C, H, W]",
                str(list(self.latents.shape)),
                "Pass one latent for every level.",
            )
        check_finite(self.latents, "the latents of a trajectory", self.method)
        if self.nulls is not None and (
            self.nulls.ndim != 4 or self.nulls.shape[:2] != (self.steps, self.batch)
        ):
            raise PivotError(
                f"embeddings [{self.steps}, {self.batch}, T, D]",
                str(list(self.nulls.shape)),
                "Pass one for every step and picture.",
            )

    @property
    def steps(self) -> int:
        """N, the number of steps."""
        return len(self.sigmas) - 1

    @property
    def batch(self) -> int:
        """B, the number of pictures."""
        return self.latents.shape[1]

    @property
    def descending(self) -> torch.Tensor:
        """The levels in sampling order, noise first, fp32: ComfyUI's SIGMAS."""
        return self.sigmas.flip(0).float()

    @property
    def noise(self) -> torch.Tensor:
        """x*_N, the noisiest latent [B, C, H, W]."""
        return self.latents[-1]

    def index_of(self, sigma: float) -> int:
        """The index of the level nearest to `sigma`."""
        return int((self.sigmas - sigma).abs().argmin())

    def check_matches(self, samples: torch.Tensor, where: str) -> None:
        """Raise PivotError unless `samples` [B, C, H, W] has this inversion's size and batch."""
        if samples.shape != self.latents.shape[1:]:
            raise PivotError(
                f"a latent of the inversion's size {list(self.latents.shape[1:])}",
                str(list(samples.shape)),
                "Invert the latent that you want to edit.",
                where,
            )
