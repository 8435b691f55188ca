"""How good an inversion is: how exactly the picture returns, how Gaussian its noise is, and what to
do about either."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import torch

from .control import Place
from .correction import SOURCE, Correction
from .trajectory import Trajectory

AS_GOOD, CLOSE = 0.5, 3.0
"""dB below the autoencoder's own round trip at which a picture comes back as well as it can, or
nearly."""
LOSSY, ANOTHER = 25.0, 15.0
"""dB of the round trip below which the autoencoder loses detail, or this is another picture."""
MOVED = 1.0
"""dB that an edit without a changed word may lose."""
ENOUGH = 50
"""Steps, of the papers."""
STIFF = {"mean": 0.2, "std": 0.25, "neighbours": 0.2}
"""How far noise may be from Gaussian. 50-step DDIM inversions of the toy model's pictures at cfg 1
stay below (std 0.80 to 0.85, neighbours 0.04 to 0.12); those at cfg 7.5 (1.3, 0.4) and of 4 steps
(0.7, 0.4) do not."""


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

    @property
    def stiff(self) -> bool:
        """Whether too much of the picture is left in the noise.

        An edit then moves little, or not as the words say.
        """
        off = {
            "mean": abs(self.mean),
            "std": abs(self.std - 1.0),
            "neighbours": max(abs(self.across), abs(self.down)),
        }
        return any(off[name] > limit for name, limit in STIFF.items())

    def __str__(self) -> str:
        text = (
            f"mean {self.mean:.2f}, std {self.std:.2f}, neighbours correlate {self.across:.2f} "
            "across"
        )
        return f"{text} and {self.down:.2f} down (Gaussian: 0, 1, 0, 0)"


@dataclasses.dataclass(frozen=True)
class Quality:
    """What was measured, in dB against the source picture."""

    psnr: float
    """Of the reconstruction."""
    ceiling: float
    """Of the autoencoder's own round trip."""
    unchanged: float
    """Of an edit whose target is the source prompt."""
    noise: NoiseFigures
    """Of the inversion's noisiest latent."""

    @property
    def gap(self) -> float:
        """dB that inversion and replay lose beside the autoencoder."""
        return 0.0 if self.psnr >= self.ceiling else self.ceiling - self.psnr


def verdict(
    quality: Quality, trajectory: Trajectory, correction: Correction, cfg: float
) -> list[str]:
    """What the figures mean and what to try, one line for each."""
    return [
        *_on_ceiling(quality.ceiling),
        _on_return(quality, trajectory, correction, cfg),
        *_on_rest(quality, cfg),
        *_on_noise(quality.noise, trajectory),
    ]


def _on_ceiling(ceiling: float) -> list[str]:
    if ceiling < ANOTHER:
        return [
            "This is hardly the picture that was inverted: connect the one that went into VAE "
            "Encode."
        ]
    if ceiling < LOSSY:
        return [
            "The autoencoder itself loses detail, and no edit can be closer. Try a larger picture "
            "or another VAE."
        ]
    return []


def _on_return(quality: Quality, trajectory: Trajectory, correction: Correction, cfg: float) -> str:
    if quality.gap <= AS_GOOD:
        return "The picture comes back as well as the autoencoder allows."
    how = "nearly comes back" if quality.gap <= CLOSE else "does not come back"
    tips = "; ".join(_tips(trajectory, correction, cfg))
    return f"The picture {how}, {quality.gap:.1f} dB below what the autoencoder allows. Try {tips}."


def _tips(trajectory: Trajectory, correction: Correction, cfg: float) -> list[str]:
    """What brings a picture back more exactly, the surest first."""
    guided = (
        correction.uncond("source", Place(0, trajectory.steps, float(trajectory.sigmas[-1])))
        != SOURCE
    )
    return _helpful(
        {
            "correction direct, which is exact at any cfg": not correction.pinned,
            f"a cfg nearer to the inversion's own, {trajectory.guidance:g}": guided
            and cfg != trajectory.guidance,
            "the inversion method fixed_point": trajectory.method != "fixed_point",
            **_better_inversion(trajectory),
        }
    )


def _better_inversion(trajectory: Trajectory) -> dict[str, bool]:
    return {
        f"{ENOUGH} steps": trajectory.steps < ENOUGH,
        "a source prompt that describes the picture better": True,
    }


def _helpful(tips: dict[str, bool]) -> list[str]:
    return [tip for tip, helps in tips.items() if helps]


def _on_rest(quality: Quality, cfg: float) -> list[str]:
    if quality.psnr - quality.unchanged <= MOVED:
        return []
    return [
        f"At cfg {cfg:g} an edit moves the picture even where no word changes "
        f"({quality.unchanged:.1f} dB). Hold the "
        "rest with P2P Attention Controller or Local Blend, or lower cfg."
    ]


def _on_noise(noise: NoiseFigures, trajectory: Trajectory) -> list[str]:
    if not noise.stiff:
        return []
    tips = "; ".join(
        _helpful({"cfg 1": trajectory.guidance != 1.0, **_better_inversion(trajectory)})
    )
    return [
        "The noise is not Gaussian: much of the picture is left in it, and edits will be stiff. "
        f"Invert with {tips}."
    ]
