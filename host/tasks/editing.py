"""The edit as one call, from trajectory and prompts to the edited and the reconstructed LATENT."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch

from ...core.guidance import Guidance
from ...core.trajectory import Trajectory
from ...inversion.ddim import Uncorrected
from ..model.checks import conditioning_fingerprint
from ..run.guider import EditGuider
from ..run.replay import ReplaySampler
from ..run.sampling import preview, run_edit
from ..text.prompts import Conditioning
from .guidance import described
from .masks import blend_mask


def edit_guider(
    model: Any,
    trajectory: Trajectory,
    source: Conditioning,
    target: Conditioning,
    negative: Conditioning,
    cfg: float,
    correction: str,
    guidance: Guidance | None = None,
) -> EditGuider:
    """The GUIDER of an edit under a correction method's name and a guidance rule, plain by
    default."""
    return EditGuider(model, trajectory, source, target, negative, cfg, correction, guidance)


def edit(
    model: Any,
    trajectory: Trajectory,
    source: Conditioning,
    target: Conditioning,
    negative: Conditioning,
    cfg: float,
    correction: str,
    guidance: Guidance | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], str, torch.Tensor]:
    """The edited LATENT, the reconstructed LATENT, a report of the run, and the mask of a local
    blend."""
    guider = edit_guider(model, trajectory, source, target, negative, cfg, correction, guidance)
    result = run_edit(guider)
    rule = f", {guidance.title}" if guidance else ""
    settings = f"{trajectory.steps} steps, cfg {cfg:g}, {guider.correction.name}{rule}"
    remark = guider.correction.remark(
        trajectory, guider.source_cfg, conditioning_fingerprint(negative)
    )
    cost = f"{result.rows_per_step:.2f} UNet rows a step"
    uses = [described(guidance)] if guidance else []
    report = [f"{settings}, {cost}{f'; {remark}' if remark else ''}", *uses, *guider.remarks]
    mask = blend_mask(model, result.edited)
    return {"samples": result.edited}, {"samples": result.reconstructed}, "\n".join(report), mask


def replay(
    model: Any, trajectory: Trajectory, source: Conditioning, negative: Conditioning | None = None
) -> torch.Tensor:
    """The picture again at the inversion's own guidance, without edit or correction.

    Returns samples [B, C, H, W] on the host's scale.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(source, source if negative is None else negative)
    guider.set_cfg(trajectory.guidance)
    latent = model.model.process_latent_out(trajectory.latents[0])
    # no noise, because the sampler starts from the trajectory's own
    sampler = ReplaySampler(trajectory, Uncorrected.name)
    callback = preview(model, trajectory.steps)
    samples: torch.Tensor = guider.sample(
        torch.zeros_like(latent), latent, sampler, trajectory.descending, callback=callback, seed=0
    )
    return samples.cpu()
