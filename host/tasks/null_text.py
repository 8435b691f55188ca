"""Null-text optimisation on the host's UNet: loading, hooks, previews and interrupts stay the
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
from ..model.gradients import SavedBytes, differentiable, with_plain_attention
from ..run.replay import Show, denoiser
from ..run.runs import OwnSampler
from ..run.sampling import check_uncontrolled, preview
from ..text.conditioning import rows_in, text_of, with_text
from ..text.prompts import Conditioning

WHERE = "Null-Text Optimize"
CHECKPOINTING = ("auto", "on", "off")
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
    """The guider's UNet as the method sees it; counts nothing, keeps nothing."""

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
            name: [_each_tensor(cond, change) for cond in each]
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
    """What is needed of a guider to predict."""

    conds: dict[str, list[dict[str, Any]]]
    inner_model: Any


class NullTextSampler(OwnSampler):
    """Optimises a trajectory's embeddings into `optimized`; what it samples is the picture as it
    then comes back."""

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
        base = "positive" if self.settings.base == "source" else "negative"
        unet, last = guider.inner_model.diffusion_model, latent_image
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
                with (
                    torch.no_grad()
                ):  # previews may be networks of the host, whose weights know no gradient
                    show(i, denoised, x, self.trajectory.steps)

            with differentiable(unet, latent_image.device, checkpointing):
                self.optimized = optimize(
                    network, self.trajectory, start, guider.cfg, self.settings, on_step
                )
        return last

    def _plan(self, network: HostNetwork, unet: torch.nn.Module, start: torch.Tensor) -> bool:
        """Whether to checkpoint; what gradients will need is told before it is spent."""
        free = comfy.model_management.get_free_memory(start.device)
        single = estimate(network, unet, self.trajectory, start)
        needed = {on: each * self.trajectory.batch for on, each in single.items()}
        on = self.checkpointing == "on" or (
            self.checkpointing == "auto" and needed[False] > 0.7 * free
        )
        told = (
            f"gradients need about {_size(needed[on])} of {_size(free)} free, checkpointing "
            f"{'on' if on else 'off'}"
        )
        other = f"{_size(needed[not on])} with it {'off' if on else 'on'}"
        short = (
            "; that may not fit: choose a smaller picture or fewer at once"
            if needed[on] > free
            else ""
        )
        self.memory = f"{told} ({other}){short}"
        logging.log(logging.WARNING if short else logging.INFO, "%s: %s", WHERE, self.memory)
        self.progress(self.memory)
        return on


def estimate(
    network: HostNetwork, unet: torch.nn.Module, trajectory: Trajectory, start: torch.Tensor
) -> dict[bool, int]:
    """Bytes that one picture's way back needs, with checkpointing and without.

    Counted on two small parts of the latent, and from there on in proportion to the area: what the
    text alone makes does not grow. A checkpointed way back holds what lies between blocks, and one
    block run again.
    """
    height, width = trajectory.latents.shape[-2:]
    found: dict[int, dict[bool, int]] = {}
    for part in (4, 2):
        small = (min(height, max(8, height // part)), min(width, max(8, width // part)))
        found[small[0] * small[1]] = _counted(network, unet, trajectory, start[:1], small)
    counts, whole = sorted(found.items()), height * width
    (less, fewer), (area, most) = counts[0], counts[-1]
    if area == less:
        return {on: int(most[on] * whole / area) for on in most}
    return {
        on: int(most[on] + (most[on] - fewer[on]) * (whole - area) / (area - less)) for on in most
    }


def _counted(
    network: HostNetwork,
    unet: torch.nn.Module,
    trajectory: Trajectory,
    start: torch.Tensor,
    size: tuple[int, int],
) -> dict[bool, int]:
    whole, (height, width) = trajectory.latents.shape[-2:], size
    x = trajectory.latents[-1, :1, :, :height, :width].to(start)
    found, largest = {}, 0
    for on in (False, True):
        with differentiable(unet, start.device, on), SavedBytes(unet) as saved:
            part = network.part(
                lambda held: held[..., :height, :width] if held.shape[-2:] == whole else held
            )
            part.null(
                x,
                float(trajectory.sigmas[-1]),
                start.clone().requires_grad_(True),
                torch.tensor([0]),
            )
        largest = largest or saved.largest
        found[on] = saved.total + (largest if on else 0)
    return found


def _of(cond: dict[str, Any], pictures: torch.Tensor) -> dict[str, Any]:
    """The cond of some of the pictures, where it holds a row for each."""
    return _each_tensor(cond, lambda held: held[pictures] if len(held) > 1 else held)


def _each_tensor(
    cond: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """A processed cond with every tensor that the model reads changed."""
    models = {}
    for name, value in cond["model_conds"].items():
        held = getattr(value, "cond", None)
        models[name] = value._copy_with(change(held)) if isinstance(held, torch.Tensor) else value
    return {**cond, "model_conds": models}


def _size(number: float) -> str:
    return f"{number / 2**30:.2f} GB" if number >= 2**28 else f"{number / 2**20:.0f} MB"


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
    found, memory = run_optimization(
        model, trajectory, source, negative, cfg, settings, checkpointing, progress
    )
    made = with_embeddings(trajectory, found, negative, cfg, settings)
    lines = [_report(found, cfg, preset), memory, *_remarks(model.model_options)]
    return made, _curve(found), found.error.mean(1).tolist(), "; ".join(lines)


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
    """What the optimisation found, and what was said of its memory. source: one prompt, or one for
    each picture."""
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
    trajectory: Trajectory, found: Optimized, negative: Conditioning, cfg: float, settings: Settings
) -> Trajectory:
    """The inversion with its embeddings, to be replayed with them."""
    correction = NullText(
        settings.single_branch, settings.base, cfg, conditioning_fingerprint(negative)
    )
    extras = {**trajectory.extras, NULLS: found.nulls}
    made = dataclasses.replace(trajectory, extras=extras, correction=recipe_of(correction))
    correction.check(made)
    return made


def _remarks(model_options: dict[str, Any]) -> list[str]:
    """What of the model is not in the optimisation, and would make the source less exact in the
    edit."""
    guided = [name for name in _GUIDANCE if model_options.get(name)]
    if not guided:
        return []
    return [
        "the model changes guidance (such as PAG or RescaleCFG), which the embeddings do not "
        "know: the source will "
        "be less exact"
    ]


def _report(found: Optimized, cfg: float, preset: str) -> str:
    forward, backward = (
        float(rows.float().mean()) for rows in (found.forward_rows, found.backward_rows)
    )
    return (
        f"{preset}, cfg {cfg:g}: mean squared distance to the trajectory "
        f"{float(found.error.mean()):.2e}, "
        f"{forward:.0f} forward and {backward:.0f} backward UNet rows a picture"
    )


def _curve(found: Optimized) -> torch.Tensor:
    lines = {
        "first embedding": found.before.mean(1).tolist(),
        "chosen embedding": found.error.mean(1).tolist(),
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
    for name, value, known in (
        ("preset", preset, tuple(PRESETS)),
        ("checkpointing", checkpointing, CHECKPOINTING),
    ):
        if value not in known:
            raise PivotError(
                f"{name} to be one of {known}", repr(value), "Choose one of them.", WHERE
            )
    for name, conditioning in (("source", source), ("negative", negative)):
        found = [key for key in _PARTIAL if any(key in options for _, options in conditioning)]
        if len(conditioning) != 1 or rows_in(conditioning) != 1 or found:
            came = (
                f"one with {', '.join(found)}"
                if found
                else f"{len(conditioning)} of {rows_in(conditioning)} rows"
            )
            raise PivotError(
                f"one plain {name} prompt",
                came,
                "Connect a prompt as it is encoded: without combining, areas, ranges, hooks or "
                "ControlNet.",
                WHERE,
            )
    check_same_source(source, trajectory, WHERE)
