"""How good an inversion is: it is replayed for its own prompt, decoded, and put into words."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ...core.errors import PivotError
from ...core.pictures import corner_of, cut, size_of
from ...core.quality import (
    NoiseFigures,
    Quality,
    drift,
    psnr,
    verdict,
)
from ...core.trajectory import Trajectory
from ...show.plots import line_plot
from ..run.sampling import check_uncontrolled, clean_rows, run_edit
from ..text.prompts import Conditioning
from .editing import edit_guider
from .masks import PIXELS
from .pictures import decode

WHERE = "Inversion Report"


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What is to be said of an inversion."""

    reconstruction: torch.Tensor
    """IMAGE [B, H, W, 3]."""
    plot: torch.Tensor
    """IMAGE [1, h, w, 3] of the distance to the inversion after every step."""
    quality: Quality
    """The figures."""
    text: str
    """Figures and verdict, one to a line."""


def report(
    model: Any,
    vae: Any,
    image: torch.Tensor,
    trajectory: Trajectory,
    source: Conditioning,
    negative: Conditioning,
    cfg: float,
    correction: str,
) -> Report:
    """Replays an inversion with the source prompt as its own target.

    The source row shows what comes back, and the target row what an edit would move where no word
    changes. Raises PivotError for a model behind control nodes and for a picture of another size.
    """
    check_uncontrolled(model, WHERE)
    picture = as_encoded(image, trajectory)
    guider = edit_guider(model, trajectory, source, source, negative, cfg, correction)
    replayed: list[torch.Tensor] = []
    result = run_edit(guider, lambda x: replayed.append(x.float().cpu()))
    # one decode, in the order of Quality's figures
    rows = [result.reconstructed, clean_rows(model, trajectory, 0).to(result.edited), result.edited]
    pictures = decode(vae, {"samples": torch.cat(rows)}).split(trajectory.batch)
    figures = [psnr(each.to(picture), picture) for each in pictures]
    quality = Quality(*figures, NoiseFigures.of(trajectory.noise))
    settings = (
        f"{trajectory.steps} steps, {trajectory.method}, {guider.correction.name}, cfg {cfg:g}"
    )
    text = [_figures(quality, settings), *verdict(quality, trajectory, guider.correction, cfg)]
    return Report(pictures[0], _plot(replayed, trajectory, settings), quality, "\n".join(text))


def as_encoded(image: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
    """The part [B, H, W, 3] of an IMAGE that VAE Encode has encoded.

    It is the middle of the picture, in whole latent positions.
    """
    part = (PIXELS * trajectory.latents.shape[-2], PIXELS * trajectory.latents.shape[-1])
    corner = corner_of(part, size_of(image), PIXELS)
    if len(image) != trajectory.batch or corner is None:
        raise PivotError(
            f"the picture that was inverted, {trajectory.batch} of {part[1]}x{part[0]}",
            f"{len(image)} of {image.shape[2]}x{image.shape[1]}",
            "Connect the image that went into VAE Encode.",
            WHERE,
        )
    return cut(image, corner, part)[..., :3]


def _figures(quality: Quality, settings: str) -> str:
    """The figures in words."""
    return (
        f"reconstruction {quality.psnr:.1f} dB, autoencoder alone {quality.ceiling:.1f} dB, an "
        "edit with the same "
        f"words {quality.unchanged:.1f} dB ({settings})\nnoise: {quality.noise}"
    )


def _plot(replayed: list[torch.Tensor], trajectory: Trajectory, settings: str) -> torch.Tensor:
    """The distance to the inversion after every step, as a picture."""
    back, edited = zip(*(rows.split(trajectory.batch) for rows in replayed), strict=True)
    series = {
        "reconstruction": drift(back, trajectory),
        "an edit with the same words": drift(edited, trajectory),
    }
    # a logarithmic axis cannot show 0, so that an exact line says so in its name
    labelled = {
        name if any(values) else f"{name} (exact)": values for name, values in series.items()
    }
    return line_plot(
        labelled, f"Distance to the inversion: {settings}", "step", "mean squared error", log=True
    )
