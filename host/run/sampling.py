"""Inversion and replay as ComfyUI samplers, so that loading, hooks, previews and clean-up stay the
host's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...core.control import Place
from ...core.correction import Correction
from ...core.errors import PivotError, check_finite
from ...core.inverter import Inverter, Step, invert
from ...core.schedule import (
    Denoise,
    ddim_step,
    level_table,
    predict_eps,
    to_exploding,
)
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
from .runs import controllers_of, run_of

Show = Callable[[int, torch.Tensor, torch.Tensor, int], object]
"""show(i, denoised, x, steps): a preview after step i."""


def denoiser(predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Denoise:
    """The one model contract, denoise(X, sigma) -> x0, over a prediction that takes a sigma for
    every row; interruptible."""

    def denoise(exploding: torch.Tensor, sigma: float) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return predict(exploding, exploding.new_full((len(exploding),), sigma))

    return denoise


def _guided(guider: Any, extra_args: dict[str, Any]) -> Denoise:
    return denoiser(lambda exploding, sigmas: guider(exploding, sigmas, **extra_args))


class OwnSampler(comfy.samplers.Sampler):
    """A loop of ours in the host's place for samplers: what it hands over, without what such a loop
    has no use for."""

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        show = callback or (lambda i, denoised, x, steps: None)
        return self.run(model_wrap, sigmas, extra_args, show, latent_image)

    def run(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        show: Show,
        latent_image: torch.Tensor,
    ) -> torch.Tensor:
        """The samples."""
        raise NotImplementedError


class InversionSampler(OwnSampler):
    """Runs an inversion and keeps every latent in `latents` [N + 1, B, C, H, W] and every residual
    in `residuals`; the result is the noise."""

    def __init__(self, sigmas: torch.Tensor, inverter: Inverter) -> None:
        self.sigmas = sigmas
        self.inverter = inverter
        self.latents: torch.Tensor | None = None
        self.residuals: list[torch.Tensor] = []

    def run(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        show: Show,
        latent_image: torch.Tensor,
    ) -> torch.Tensor:
        steps = len(self.sigmas) - 1

        def on_step(i: int, step: Step) -> None:
            if step.residual is not None:
                self.residuals.append(step.residual.float().cpu())
            show(i, step.denoised, step.x, steps)

        latents = invert(
            self.inverter, _guided(guider, extra_args), latent_image, self.sigmas, on_step
        )
        self.latents = latents.float().cpu()
        return latents[-1]


class ReplaySampler(OwnSampler):
    """DDIM from the trajectory's noise to the picture on [source; targets] rows.

    Where rows are after a step the Edit Guider says (`land`); under a plain guider the correction
    does.
    """

    lands = True
    """Calls the guider's `land` after every step."""

    def __init__(self, trajectory: Trajectory, correction: Correction) -> None:
        self.trajectory = trajectory
        self.correction = correction

    def run(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        show: Show,
        latent_image: torch.Tensor,
    ) -> torch.Tensor:
        pivot, batch = self.trajectory, self.trajectory.batch
        _check_levels(sigmas, pivot)
        land = getattr(guider, "land", self._land)
        denoise = _guided(guider, extra_args)
        run = run_of(extra_args["model_options"])
        if run is not None:
            run.stepped = True
        levels = [float(sigma) for sigma in pivot.sigmas.flip(0)]
        x = torch.cat([pivot.noise] * (len(latent_image) // batch)).to(latent_image)
        for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:], strict=False)):
            eps = predict_eps(denoise, x, sigma)
            denoised = to_exploding(x, sigma) - sigma * eps
            x = ddim_step(x, eps, sigma, sigma_next)
            x = land(x, pivot.steps - i - 1)
            x = x if run is None else run.after_step(x, Place(i, pivot.steps, sigma))
            check_finite(
                x, "the edited latent", f"replay, step {i + 1} of {pivot.steps}, sigma {sigma:.4g}"
            )
            show(i, denoised, x, pivot.steps)
        return x

    def _land(self, x: torch.Tensor, index: int) -> torch.Tensor:
        batch = self.trajectory.batch
        return torch.cat(
            [self.correction.source_after(x[:batch], self.trajectory, index), x[batch:]]
        )


def _check_levels(sigmas: torch.Tensor, trajectory: Trajectory) -> None:
    mine = trajectory.descending.to(sigmas)
    if len(sigmas) != len(mine) or not torch.allclose(sigmas, mine, rtol=1e-4):
        raise PivotError(
            f"the inversion's own {trajectory.steps} steps",
            f"{len(sigmas) - 1} steps of other sigmas",
            "Connect the sigmas output of Inversion Parts.",
            "Inversion Parts sampler",
        )


def preview(model: Any, steps: int) -> Any:
    """The host's progress bar with latent previews, as every stock sampler node shows it."""
    import latent_preview

    return latent_preview.prepare_callback(model, steps)


def check_latent(latent: dict[str, Any], model: Any, where: str) -> torch.Tensor:
    """The samples [B, C, H, W] of a LATENT; PivotError for NaN, nested latents or a wrong channel
    count."""
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
    """Inversion of a LATENT under its source conditioning, and every step's residual where the
    method has one."""
    where = "DDIM Inversion"
    check_unet(model, where)
    check_uncontrolled(model, where)
    check_inversion_model(model, where)
    _check_guided(negative, cfg, where)
    samples = check_latent(latent, model, where)
    sigmas = check_levels(level_table(trained_sigmas(model), steps, end), where)
    sampler = InversionSampler(sigmas, inverter)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(source, source if negative is None else negative)
    guider.set_cfg(cfg)
    guider.sample(
        torch.zeros_like(samples),
        samples,
        sampler,
        sigmas.float(),
        callback=preview(model, steps),
        seed=0,
    )
    if sampler.latents is None:
        raise PivotError(
            "an inversion that ran",
            "none",
            "Remove patches that replace the sampling function.",
            where,
        )
    made = Trajectory(
        sigmas,
        sampler.latents,
        inverter.name,
        fingerprint(model),
        conditioning_fingerprint(source),
        prompt_of(source),
        cfg,
    )
    return made, sampler.residuals


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
    """What an edit gives: LATENT samples on the host's scale, edited [targets * B, C, H, W] and
    reconstructed [B, C, H, W], and UNet rows run per step and picture."""

    edited: torch.Tensor
    reconstructed: torch.Tensor
    rows_per_step: float


def run_edit(
    guider: Any,
    trajectory: Trajectory,
    correction: Correction,
    watch: Callable[[torch.Tensor], object] = lambda x: None,
) -> Edit:
    """Replay an inversion under an EditGuider. watch(x) sees the rows after every step,
    variance-preserving."""
    model = guider.model_patcher
    latent = clean_rows(model, trajectory, guider.targets)
    rows = guider.sample(
        torch.zeros_like(latent),
        latent,
        ReplaySampler(trajectory, correction),
        trajectory.descending,
        callback=_targets_first(preview(model, trajectory.steps), trajectory.batch, watch),
        seed=0,
    )
    rows = rows.to(comfy.model_management.intermediate_device())
    batch = trajectory.batch
    rows_per_step = guider.rows_run / (trajectory.steps * batch)
    return Edit(rows[batch:], rows[:batch], rows_per_step)


def _targets_first(callback: Any, batch: int, watch: Callable[[torch.Tensor], object]) -> Any:
    """A callback whose preview shows the last target instead of the source; `watch` sees the rows
    in their order."""

    def after_step(i: int, denoised: torch.Tensor, x: torch.Tensor, steps: int) -> None:
        watch(x)
        callback(i, denoised.roll(batch, 0), x.roll(batch, 0), steps)

    return after_step


def clean_rows(model: Any, trajectory: Trajectory, targets: int = 1) -> torch.Tensor:
    """The inverted picture on the host's latent scale, once for the source and once for each
    target's rows."""
    return model.model.process_latent_out(torch.cat([trajectory.latents[0]] * (1 + targets)))
