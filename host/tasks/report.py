"""How good an inversion is: it is replayed for its own prompt, decoded, and put into words."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ...core.errors import PivotError
from ...core.pictures import corner_of, cut, size_of
from ...core.quality import (
    NoiseFigures,
    PromptFigures,
    Quality,
    drift,
    head_start,
    picture_share,
    psnr,
)
from ...core.trajectory import Trajectory
from ...core.verdict import Finding, verdict
from ...show.plots import line_plot
from ..model.checks import conditioning_fingerprint
from ..run.renoised import restoring_errors
from ..run.sampling import Edit, check_uncontrolled, clean_rows, run_edit
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
    findings: tuple[Finding, ...]
    """What they mean, the worst first."""
    text: str
    """Verdict and figures, one to a line, the worst finding first."""


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
    pictures = _decoded(model, vae, picture, trajectory, result)
    quality = Quality(
        *(psnr(each.to(picture), picture) for each in pictures),
        NoiseFigures.of(trajectory.noise),
        picture_share(trajectory.noise, trajectory.latents[0]),
        head_start(trajectory),
        _prompt_figures(model, trajectory, source, negative),
    )
    steps = f"{trajectory.steps} step{'' if trajectory.steps == 1 else 's'}"
    settings = f"{steps}, {trajectory.method}, {guider.correction.name}, cfg {cfg:g}"
    findings = tuple(verdict(quality, trajectory, guider.correction, cfg))
    text = [*(each.text for each in findings), _figures(quality, settings)]
    plot = _plot(replayed, trajectory, settings)
    return Report(pictures[0], plot, quality, findings, "\n".join(text))


def _decoded(
    model: Any, vae: Any, picture: torch.Tensor, trajectory: Trajectory, result: Edit
) -> list[torch.Tensor]:
    """The pictures whose distances `Quality` begins with, in one decode.

    The last is the round trip of the picture. Where the picture is the inverted one, this is that
    one's own, and not decoded twice.
    """
    clean = clean_rows(model, trajectory, 0).to(result.edited)
    encoded = vae.encode(picture).to(clean)
    same = encoded.shape == clean.shape and torch.allclose(encoded, clean, rtol=1e-3, atol=1e-3)
    rows = [result.reconstructed, clean, result.edited, *([] if same else [encoded])]
    pictures = list(decode(vae, {"samples": torch.cat(rows)}).split(trajectory.batch))
    return [*pictures, pictures[1]] if same else pictures


def _prompt_figures(
    model: Any, trajectory: Trajectory, source: Conditioning, negative: Conditioning
) -> PromptFigures | None:
    """How the source prompt helps to restore the picture, beside the negative prompt.

    It costs two rows at a few levels, whatever the steps. None where both texts are one.
    """
    if conditioning_fingerprint(source) == conditioning_fingerprint(negative):
        return None
    errors = [restoring_errors(model, trajectory, text) for text in (source, negative)]
    return PromptFigures.of(*errors)


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
    prompt = f"\nprompt: {quality.prompt}" if quality.prompt else ""
    inverted = "" if quality.foreign < 0.1 else f", the inverted picture {quality.ceiling:.1f} dB"
    return (
        f"reconstruction {quality.psnr:.1f} dB, autoencoder alone {quality.round_trip:.1f} dB"
        f"{inverted}, an edit with the same words {quality.unchanged:.1f} dB ({settings})\n"
        f"noise: {quality.noise}; {100 * quality.share:.0f} % of it is the picture{prompt}"
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
