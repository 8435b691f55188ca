"""Whole runs: an inversion, and its replay as an edit. Loading, hooks, previews and clean-up stay
the host's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...core.errors import PivotError, check_finite
from ...core.inverter import Inverted, Inverter, Step
from ...core.path import PATHS, VP
from ...core.trajectory import Trajectory
from ..model.checks import (
    check_levels,
    check_unet,
    conditioning_fingerprint,
    fingerprint,
    trained_sigmas,
)
from ..text.prompts import Conditioning, prompt_of
from .neighbours import check_inversion_model
from .replay import ReplaySampler, Show, denoiser
from .runs import OwnSampler, controllers_of


class InversionSampler(OwnSampler):
    """Runs an inversion, whose result is the noise.

    What else comes of it is handed to `finished`: the inverted latents, and the residual of every
    step where the method measures one.
    """

    def __init__(
        self,
        sigmas: torch.Tensor,
        inverter: Inverter,
        finished: Callable[[Inverted, list[torch.Tensor]], object],
    ) -> None:
        self.sigmas, self.inverter, self.finished = sigmas, inverter, finished

    def run(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        show: Show,
        latent_image: torch.Tensor,
    ) -> torch.Tensor:
        steps = len(self.sigmas) - 1
        residuals: list[torch.Tensor] = []

        def on_step(i: int, step: Step) -> None:
            if step.residual is not None:
                residuals.append(step.residual.float().cpu())
            show(i, step.denoised, step.x, steps)

        denoise = denoiser(lambda host, levels: guider(host, levels, **extra_args))
        inverted = self.inverter.invert(denoise, latent_image, self.sigmas, VP, on_step)
        self.finished(inverted, residuals)
        return inverted.latents[-1]


def preview(model: Any, steps: int) -> Any:
    """The host's progress bar with latent previews, as every stock sampler node shows it."""
    import latent_preview

    return latent_preview.prepare_callback(model, steps)


def check_latent(latent: dict[str, Any], model: Any, where: str) -> torch.Tensor:
    """The samples [B, C, H, W] of a LATENT.

    Raises PivotError for NaN, for nested latents, for a wrong number of channels, and for a noise
    mask.
    """
    check_unmasked(latent, where)
    samples = latent["samples"]
    if getattr(samples, "is_nested", False) or samples.ndim != 4:
        raise PivotError(
            "a latent picture [B, C, H, W]", "another kind of latent", "Use VAE Encode.", where
        )
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise PivotError(
            f"a latent of {channels} channels",
            f"{samples.shape[1]}",
            "Encode with the model's own VAE.",
            where,
        )
    return check_finite(samples, "the latent", where)


def check_unmasked(latent: dict[str, Any], where: str) -> None:
    """Raise PivotError for a LATENT with a noise mask, whose picture may have a grey hole."""
    if latent.get("noise_mask") is not None:
        raise PivotError(
            "a latent of the whole picture",
            "one with a noise mask (Set Latent Noise Mask, VAE Encode (for Inpainting))",
            "Use VAE Encode alone, and connect the mask to Local Blend's mask: it keeps the "
            "source outside of it.",
            where,
        )


def run_inversion(
    model: Any,
    latent: dict[str, Any],
    source: Conditioning,
    steps: int,
    end: str,
    inverter: Inverter,
    negative: Conditioning | None = None,
    cfg: float = 1.0,
) -> tuple[Trajectory, list[torch.Tensor]]:
    """The inversion of a LATENT under its source conditioning, and every step's residual where the
    method has one."""
    where = "DDIM Inversion"
    check_unet(model, where)
    check_uncontrolled(model, where)
    check_inversion_model(model, where)
    _check_guided(negative, cfg, where)
    samples = check_latent(latent, model, where)
    sigmas = check_levels(VP.levels(trained_sigmas(model), steps, end), where)
    answers: list[tuple[Inverted, list[torch.Tensor]]] = []
    sampler = InversionSampler(sigmas, inverter, lambda *answer: answers.append(answer))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(source, source if negative is None else negative)
    guider.set_cfg(cfg)
    nothing = torch.zeros_like(samples)
    shown = preview(model, steps)
    guider.sample(nothing, samples, sampler, sigmas.float(), callback=shown, seed=0)
    if not answers:
        raise PivotError(
            "an inversion that ran",
            "none",
            "Remove patches that replace the sampling function.",
            where,
        )
    inverted, residuals = answers[-1]
    trajectory = Trajectory(
        sigmas,
        inverted.latents.float().cpu(),
        inverter.name,
        fingerprint(model),
        conditioning_fingerprint(source),
        prompt_of(source),
        cfg,
        {name: extra.float().cpu() for name, extra in inverted.extras.items()},
    )
    return trajectory, residuals


def check_uncontrolled(model: Any, where: str) -> None:
    """Raise PivotError for a model behind control nodes that need a source beside them."""
    if any(controller.needs_source for controller in controllers_of(model.model_options)):
        raise PivotError(
            "a model without attention control",
            "one behind control nodes",
            "Connect the model from before the control nodes; they are for the Edit Sampler.",
            where,
        )


def _check_guided(negative: Conditioning | None, cfg: float, where: str) -> None:
    if cfg != 1.0 and negative is None:
        raise PivotError(
            "a negative prompt, for an inversion at a cfg of its own",
            "none",
            "Connect negative, usually the empty prompt, or set cfg to 1.",
            where,
        )


@dataclasses.dataclass(frozen=True)
class Edit:
    """What an edit gives, with LATENT samples on the host's scale."""

    edited: torch.Tensor
    """[targets * B, C, H, W]"""
    reconstructed: torch.Tensor
    """[B, C, H, W]"""
    rows_per_step: float
    """The rows of the UNet that were run per step and picture."""


def run_edit(guider: Any, watch: Callable[[torch.Tensor], object] = lambda x: None) -> Edit:
    """Replay an inversion under an EditGuider.

    watch(x) sees the rows after every step, in the papers' coordinates.
    """
    model, trajectory = guider.model_patcher, guider.trajectory
    batch, sigmas = trajectory.batch, guider.step.descending
    latent = clean_rows(model, trajectory, guider.targets)
    rows = guider.sample(
        torch.zeros_like(latent),
        latent,
        ReplaySampler(trajectory),
        sigmas,
        callback=_targets_first(preview(model, len(sigmas) - 1), batch, watch),
        seed=0,
    )
    # where stock samplers leave theirs
    rows = rows.to(comfy.model_management.intermediate_device())
    rows_per_step = guider.rows_run / ((len(sigmas) - 1) * batch)
    return Edit(rows[batch:], rows[:batch], rows_per_step)


def _targets_first(callback: Any, batch: int, watch: Callable[[torch.Tensor], object]) -> Any:
    """A callback whose preview shows the last target instead of the source.

    `watch` sees the rows in their order.
    """

    def after_step(i: int, denoised: torch.Tensor, x: torch.Tensor, steps: int) -> None:
        watch(x)
        callback(i, denoised.roll(batch, 0), x.roll(batch, 0), steps)

    return after_step


def clean_rows(model: Any, trajectory: Trajectory, targets: int = 1) -> torch.Tensor:
    """The inverted picture on the host's latent scale, for the source and for each target."""
    return model.model.process_latent_out(torch.cat([trajectory.latents[0]] * (1 + targets)))


class TrajectoryNoise:
    """ComfyUI's NOISE, under which a stock sampler starts from the inversion's noise."""

    seed = 0

    def __init__(self, model: Any, trajectory: Trajectory) -> None:
        self.model = model
        self.trajectory = trajectory

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        """The noise for a LATENT of as many pictures, or of a multiple."""
        samples, batch = latent["samples"], self.trajectory.batch
        self.trajectory.check_matches(samples[:batch], "Inversion Parts noise")
        sigma, path = float(self.trajectory.sigmas[-1]), PATHS[self.trajectory.path]
        end = path.to_host(torch.cat([self.trajectory.noise] * (len(samples) // batch)), sigma)
        # the host leaves an empty latent unshifted, and so do we
        start = self.model.model.process_latent_in(samples) if samples.count_nonzero() else samples
        return (end - start.to(end)) / sigma
