"""The inversion of a picture: every latent from clean to noise, and what made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from .errors import PivotError, check_finite
from .path import PATHS
from .recipe import Frozen, Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """The pivot x*_0 ... x*_N of a batch of pictures (Mokady et al. 2022, arXiv 2211.09794, sec.
    3.2).

    It is plain data through and through, and a file holds all of it.
    """

    sigmas: torch.Tensor
    """Ascending levels [N + 1], float64, index 0 the clean end."""
    latents: torch.Tensor
    """[N + 1, B, C, H, W] or, of video, [N + 1, B, C, F, H, W], scaled as the model sees them, in
    the coordinates of `path`, fp32 on the CPU; `latents[0]` is the encoder's output unchanged."""
    method: str
    """The inversion's name."""
    model: str
    """The fingerprint of the model that it was made with."""
    conditioning: str
    """The fingerprint of the conditioning that it was made with."""
    prompt: str = ""
    """The source prompt where it is known."""
    guidance: float = 1.0
    """The cfg it was made at."""
    extras: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """What methods have learnt of single steps, by name: [N, ...], the noisiest step first, fp32
    on the CPU."""
    correction: Recipe | None = None
    """How the source row is to be brought back at replay, where that was said."""
    stepper: Recipe | None = None
    """The step rule of the replay; None is ddim."""
    path: str = "vp"
    """The coordinates of the latents, one of PATHS."""

    def __post_init__(self) -> None:
        if self.latents.ndim not in (5, 6) or len(self.latents) != len(self.sigmas):
            raise PivotError(
                f"latents [{len(self.sigmas)}, B, C, H, W] or [{len(self.sigmas)}, B, C, F, H, W]",
                str(list(self.latents.shape)),
                "Pass one latent for every level.",
            )
        check_finite(self.latents, "the latents of a trajectory", self.method)
        if self.path not in PATHS:
            raise PivotError(
                f"path to be one of {tuple(PATHS)}",
                repr(self.path),
                "Update Pivot Edit, or invert the picture again.",
            )
        # a dict would leave a frozen dataclass open to changes
        object.__setattr__(self, "extras", Frozen(self.extras))
        for name, extra in self.extras.items():
            self._check_extra(name, extra)

    def _check_extra(self, name: str, extra: torch.Tensor) -> None:
        if not name.isidentifier():  # files hold it as a part of a tensor's name
            raise PivotError("the name of an extra as one plain word", repr(name), "Rename it.")
        if extra.ndim < 1 or len(extra) != self.steps:
            raise PivotError(
                f"extra {name} as [{self.steps}, ...]",
                str(list(extra.shape)),
                "Pass one part for every step.",
            )
        if extra.dtype != torch.float32 or extra.device.type != "cpu":
            raise PivotError(
                f"extra {name} in torch.float32 on the cpu",
                f"{extra.dtype} on the {extra.device.type}",
                "Convert it with .float().cpu().",
            )
        check_finite(extra, f"extra {name} of a trajectory", self.method)

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
