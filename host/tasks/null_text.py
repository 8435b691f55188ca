"""Null-text optimisation on the host's UNet. Loading, hooks, previews and interrupts stay the
host's."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...core.errors import PivotError
from ...core.path import VP, Denoise
from ...core.recipe import recipe_of
from ...core.trajectory import Trajectory
from ...inversion.null_text import (
    NULLS,
    PRESETS,
    NullText,
    Optimized,
    Settings,
    optimize,
)
from ...show.plots import line_plot
from ..model.checks import (
    check_same_model,
    check_same_source,
    check_unet,
    conditioning_fingerprint,
)
from ..model.gradients import (
    CHECKPOINTING,
    Bytes,
    differentiable,
    estimate,
    plan,
    unet_blocks,
    with_plain_attention,
)
from ..run.gradients import each_tensor
from ..run.replay import Show, denoiser
from ..run.runs import OwnSampler
from ..run.sampling import check_uncontrolled, preview
from ..text.conditioning import rows_in, text_of, with_text
from ..text.prompts import Conditioning, prompt_of

WHERE = "Null-Text Optimize"
_GUIDANCE = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")
_PARTIAL = (
    "control",
    "start_percent",
    "end_percent",
    "timestep_start",
    "area",
    "mask",
    "strength",
    "hooks",
)
"""What makes a prompt hold for a part of the picture or of the steps, or run other networks."""
Progress = Callable[[str], None]


@dataclasses.dataclass
class HostNetwork:
    """The guider's UNet as the method sees it. It counts nothing and remembers nothing."""

    guider: Any
    options: dict[str, Any]
    base: str

    def cond(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        with torch.no_grad():
            return VP.predict_eps(self._denoise(self.guider.conds["positive"]), x, sigma)

    def null(
        self, x: torch.Tensor, sigma: float, embedding: torch.Tensor, pictures: torch.Tensor
    ) -> torch.Tensor:
        conds = [_of(cond, pictures) for cond in self.guider.conds[self.base]]
        return VP.predict_eps(self._denoise(with_text(conds, embedding)), x, sigma)

    def part(self, change: Callable[[torch.Tensor], torch.Tensor]) -> HostNetwork:
        """The network with another form of what it reads beside the latents."""
        conds = {
            name: [each_tensor(cond, change) for cond in each]
            for name, each in self.guider.conds.items()
        }
        return HostNetwork(_Guider(conds, self.guider.inner_model), self.options, self.base)

    def _denoise(self, conds: list[dict[str, Any]]) -> Denoise:
        run, model = comfy.samplers.calc_cond_batch, self.guider.inner_model
        return denoiser(
            lambda exploding, sigmas: run(model, [conds], exploding, sigmas, self.options)[0]
        )


@dataclasses.dataclass(frozen=True)
class _Guider:
    """The part of a guider that predictions need."""

    conds: dict[str, list[dict[str, Any]]]
    inner_model: Any


class NullTextSampler(OwnSampler):
    """Optimises a trajectory's embeddings into `optimized`.

    What it samples is the picture as it then comes back.
    """

    def __init__(
        self, trajectory: Trajectory, settings: Settings, checkpointing: str, progress: Progress
    ) -> None:
        self.trajectory, self.settings = trajectory, settings
        self.checkpointing, self.progress = checkpointing, progress
        self.optimized: Optimized | None = None
        self.memory = ""

    def run(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        show: Show,
        latent_image: torch.Tensor,
    ) -> torch.Tensor:
        # the guider calls the source prompt positive
        base = "positive" if self.settings.base == "source" else "negative"
        unet, last = guider.inner_model.diffusion_model, latent_image
        # tensors of inference mode can never be saved for a gradient, so that all are made outside
        with torch.inference_mode(False):
            options = with_plain_attention(extra_args["model_options"])
            network = HostNetwork(guider, options, base)
            start = text_of(network.guider.conds[base]).float().clone()
            start = start.to(latent_image.device).expand(self.trajectory.batch, -1, -1).clone()
            checkpointing = self._plan(network, unet, start)

            def on_step(
                i: int, x: torch.Tensor, denoised: torch.Tensor, error: torch.Tensor
            ) -> None:
                nonlocal last
                last = x
                self.progress(
                    f"step {i + 1} of {self.trajectory.steps}, loss {float(error.mean()):.2e}"
                )
                # previews may be networks of the host, whose weights know no gradient
                with torch.no_grad():
                    show(i, denoised, x, self.trajectory.steps)

            with differentiable(unet, latent_image.device, checkpointing, unet_blocks()):
                self.optimized = optimize(
                    network, self.trajectory, start, guider.cfg, self.settings, on_step
                )
        return last

    def _plan(self, network: HostNetwork, unet: torch.nn.Module, start: torch.Tensor) -> bool:
        """Whether to checkpoint. What gradients will need is said before it is spent."""
        free = comfy.model_management.get_free_memory(start.device)
        single = _single(network, unet, self.trajectory, start)
        needed = {on: each * self.trajectory.batch for on, each in single.items()}
        chosen = plan(needed, free, self.checkpointing)
        self.memory = chosen.report
        level = logging.INFO if chosen.fits else logging.WARNING
        logging.log(level, "%s: %s", WHERE, self.memory)
        self.progress(self.memory)
        return chosen.checkpointing


def _single(
    network: HostNetwork, unet: torch.nn.Module, trajectory: Trajectory, start: torch.Tensor
) -> Bytes:
    """How many bytes one picture's way back needs."""
    height, width = trajectory.latents.shape[-2:]

    def run(size: tuple[int, int]) -> None:
        def corner(held: torch.Tensor) -> torch.Tensor:
            # what has the latent's size is cut with it, such as the mask of an inpainting model
            same = held.shape[-2:] == (height, width)
            return held[..., : size[0], : size[1]] if same else held

        x = corner(trajectory.latents[-1, :1]).to(start)
        text = start[:1].clone().requires_grad_(True)
        network.part(corner).null(x, float(trajectory.sigmas[-1]), text, torch.tensor([0]))

    return estimate(unet, start.device, unet_blocks(), (height, width), run)


def _of(cond: dict[str, Any], pictures: torch.Tensor) -> dict[str, Any]:
    """The cond of some of the pictures, where it holds a row for each."""
    return each_tensor(cond, lambda held: held[pictures] if len(held) > 1 else held)


def null_text(
    model: Any,
    trajectory: Trajectory,
    source: Conditioning,
    negative: Conditioning,
    cfg: float,
    preset: str,
    checkpointing: str,
    progress: Progress = lambda text: None,
) -> tuple[Trajectory, torch.Tensor, list[float], str]:
    """The inversion with its embeddings, the loss curve as a picture, the error of every step, and
    a report."""
    _check(model, trajectory, source, negative, preset, checkpointing)
    settings = PRESETS[preset]
    optimized, memory = run_optimization(
        model, trajectory, source, negative, cfg, settings, checkpointing, progress
    )
    trajectory = with_embeddings(trajectory, optimized, negative, cfg, settings)
    lines = [_report(optimized, cfg, preset), memory, *_remarks(model.model_options)]
    return trajectory, _curve(optimized), optimized.error.mean(1).tolist(), "; ".join(lines)


def run_optimization(
    model: Any,
    trajectory: Trajectory,
    source: Conditioning,
    negative: Conditioning,
    cfg: float,
    settings: Settings,
    checkpointing: str,
    progress: Progress = lambda text: None,
) -> tuple[Optimized, str]:
    """The outcome of an optimisation, and what was said of its memory.

    source holds one prompt, or one for each picture.
    """
    sampler = NullTextSampler(trajectory, settings, checkpointing, progress)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(source, negative)
    guider.set_cfg(cfg)
    latent = model.model.process_latent_out(trajectory.latents[0])
    shown = preview(model, trajectory.steps)
    guider.sample(
        torch.zeros_like(latent), latent, sampler, trajectory.descending, callback=shown, seed=0
    )
    if sampler.optimized is None:
        raise PivotError(
            "an optimisation that ran", "none", "Remove patches that replace the sampling.", WHERE
        )
    return sampler.optimized, sampler.memory


def with_embeddings(
    trajectory: Trajectory,
    optimized: Optimized,
    negative: Conditioning,
    cfg: float,
    settings: Settings,
) -> Trajectory:
    """The inversion with its embeddings, to be replayed with them."""
    correction = NullText(
        settings.single_branch, settings.base, cfg, conditioning_fingerprint(negative)
    )
    extras = {**trajectory.extras, NULLS: optimized.nulls}
    result = dataclasses.replace(trajectory, extras=extras, correction=recipe_of(correction))
    correction.check(result)
    return result


def _remarks(model_options: dict[str, Any]) -> list[str]:
    """What an edit does with the model and the optimisation does not, which makes the source less
    exact."""
    guided = [name for name in _GUIDANCE if model_options.get(name)]
    if not guided:
        return []
    return [
        "the model changes guidance (such as PAG or RescaleCFG), which the embeddings do not "
        "know: the source will "
        "be less exact"
    ]


def _report(optimized: Optimized, cfg: float, preset: str) -> str:
    """What an optimisation came to and cost, in words."""
    forward, backward = (
        float(rows.float().mean()) for rows in (optimized.forward_rows, optimized.backward_rows)
    )
    return (
        f"{preset}, cfg {cfg:g}: mean squared distance to the trajectory "
        f"{float(optimized.error.mean()):.2e}, "
        f"{forward:.0f} forward and {backward:.0f} backward UNet rows a picture"
    )


def _curve(optimized: Optimized) -> torch.Tensor:
    """The loss of every step as a picture, before and after."""
    lines = {
        "first embedding": optimized.before.mean(1).tolist(),
        "chosen embedding": optimized.error.mean(1).tolist(),
    }
    return line_plot(
        lines,
        "Null-text optimisation",
        "step, from noise",
        "squared distance to the trajectory",
        log=True,
    )


def _check(
    model: Any,
    trajectory: Trajectory,
    source: Conditioning,
    negative: Conditioning,
    preset: str,
    checkpointing: str,
) -> None:
    check_unet(model, WHERE)
    check_uncontrolled(model, WHERE)
    check_same_model(model, trajectory, WHERE)
    for name, value, names in (
        ("preset", preset, tuple(PRESETS)),
        ("checkpointing", checkpointing, CHECKPOINTING),
    ):
        if value not in names:
            raise PivotError(
                f"{name} to be one of {names}", repr(value), "Choose one of them.", WHERE
            )
    for name, conditioning in (("source", source), ("negative", negative)):
        partial = [key for key in _PARTIAL if any(key in options for _, options in conditioning)]
        if len(conditioning) != 1 or rows_in(conditioning) != 1 or partial:
            got = (
                f"one with {', '.join(partial)}"
                if partial
                else f"{len(conditioning)} of {rows_in(conditioning)} rows"
            )
            raise PivotError(
                f"one plain {name} prompt",
                got,
                "Connect a prompt as it is encoded: without combining, areas, ranges, hooks or "
                "ControlNet.",
                WHERE,
            )
    check_same_source(source, trajectory, WHERE, prompt_of(source))
