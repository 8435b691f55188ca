"""How good an inversion is, in figures: how exactly the picture returns, how Gaussian its noise is,
and how well its prompt describes it. `verdict.py` puts them into words."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable

import torch

from .path import PATHS
from .trajectory import Trajectory


def psnr(a: torch.Tensor, b: torch.Tensor, peak: float = 1.0) -> float:
    """PSNR in dB of `a` against reference `b` of the same shape, infinite if they are equal."""
    mse = (a.double() - b.double()).square().mean().item()
    # a flat latent has no range
    return math.inf if mse == 0.0 else 10.0 * math.log10(max(peak, 1e-12) ** 2 / mse)


def latent_psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of latent `a` against reference `b`, whose own range is the peak."""
    return psnr(a, b, (b.max() - b.min()).double().item())


def drift(replayed: Iterable[torch.Tensor], trajectory: Trajectory) -> list[float]:
    """The mean squared distance to the trajectory after every step of a replay, noise first.

    The latents are [B, C, H, W].
    """
    pivots = trajectory.latents[:-1].flip(0)
    return [
        (x - pivot.to(x)).double().square().mean().item()
        for x, pivot in zip(replayed, pivots, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class NoiseFigures:
    """How near noise is to Gaussian noise, whose four figures are 0, 1, 0, 0."""

    mean: float
    std: float
    across: float
    """How horizontal neighbours correlate."""
    down: float
    """How vertical neighbours correlate."""

    @classmethod
    def of(cls, noise: torch.Tensor) -> NoiseFigures:
        """The figures of variance-preserving noise [B, C, H, W].

        Correlations are means over pictures and channels.
        """
        x = noise.double()
        centred = x - x.mean((-2, -1), keepdim=True)
        variance = centred.square().mean((-2, -1)).clamp_min(1e-12)

        def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
            return float(((a * b).mean((-2, -1)) / variance).mean()) if a.numel() else 0.0

        across = correlation(centred[..., 1:], centred[..., :-1])
        down = correlation(centred[..., 1:, :], centred[..., :-1, :])
        return cls(float(x.mean()), float(x.std(correction=0)), across, down)

    def __str__(self) -> str:
        text = (
            f"mean {self.mean:.2f}, std {self.std:.2f}, neighbours correlate {self.across:.2f} "
            "across"
        )
        return f"{text} and {self.down:.2f} down (Gaussian: 0, 1, 0, 0)"


@dataclasses.dataclass(frozen=True)
class PromptFigures:
    """How the source prompt helps the model to restore the picture from fresh noise.

    The same noise is restored under the source prompt and under the negative one, so that the model
    is its own measure. A prompt that fits lowers the error, and one that does not raises it.
    """

    ratios: tuple[float, ...]
    """The error under the source prompt over that under the negative one, a level each."""

    @classmethod
    def of(cls, source: torch.Tensor, negative: torch.Tensor) -> PromptFigures:
        """The figures of squared errors [levels, B] under either text."""
        logs = (source.double().clamp_min(1e-30) / negative.double().clamp_min(1e-30)).log()
        return cls(tuple(logs.mean(1).exp().tolist()))

    @property
    def ratio(self) -> float:
        """The geometric mean over the levels."""
        return math.exp(statistics.fmean(self._logs))

    @property
    def sure(self) -> bool:
        """Whether the levels agree: the mean is two standard errors away from no difference."""
        logs = self._logs
        if len(logs) < 2:
            return False
        return abs(statistics.fmean(logs)) > 2.0 * statistics.stdev(logs) / math.sqrt(len(logs))

    @property
    def _logs(self) -> list[float]:
        return [math.log(ratio) for ratio in self.ratios]

    def __str__(self) -> str:
        return f"restored from fresh noise with {self.ratio:.2f} of the negative prompt's error"


def picture_share(noise: torch.Tensor, clean: torch.Tensor) -> float:
    """The share of the noise's energy that is a copy of the picture [B, C, H, W], from 0 to 1.

    It is what a line fitted to the picture, channel by channel, explains of the noise.
    """
    x, y = (each.double() - each.double().mean((-2, -1), keepdim=True) for each in (noise, clean))
    along = (x * y).sum((-2, -1)).square() / y.square().sum((-2, -1)).clamp_min(1e-12)
    return float(along.sum() / x.square().sum().clamp_min(1e-12))


def head_start(trajectory: Trajectory) -> float:
    """The picture's amplitude over the noise's at the level where an edit begins."""
    path, sigma = PATHS[trajectory.path], float(trajectory.sigmas[-1])
    picture = float(trajectory.latents[0].double().std(correction=0))
    return path.signal(sigma) * picture / max(path.noise(sigma), 1e-12)


@dataclasses.dataclass(frozen=True)
class Quality:
    """What was measured, in dB against the source picture."""

    psnr: float
    """Of the reconstruction."""
    ceiling: float
    """Of the inverted picture, decoded as it was encoded."""
    unchanged: float
    """Of an edit whose target is the source prompt."""
    round_trip: float
    """Of the autoencoder's own round trip of the picture."""
    noise: NoiseFigures
    """Of the inversion's noisiest latent."""
    share: float
    """How much of that noise's energy is a copy of the picture."""
    head_start: float
    """The picture's amplitude over the noise's where an edit begins."""
    prompt: PromptFigures | None = None
    """How the source prompt helps; None where it is the negative prompt itself."""

    @property
    def gap(self) -> float:
        """dB that inversion and replay lose beside the autoencoder."""
        return 0.0 if self.psnr >= self.ceiling else self.ceiling - self.psnr

    @property
    def foreign(self) -> float:
        """dB by which the inverted picture is further from this one than the autoencoder takes
        it."""
        return 0.0 if self.ceiling >= self.round_trip else self.round_trip - self.ceiling
