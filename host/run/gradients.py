"""The gradient service over the host: its UNet, its prompts and its VAE, within a sampling run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.model_management
import comfy.samplers
import torch

from ...core.errors import PivotError
from ...core.gradients import Energy, Slope, Variable, slope
from ...core.path import VP
from ..model.gradients import (
    CHECKPOINTING,
    Bytes,
    differentiable,
    estimate,
    plan,
    unet_blocks,
    vae_blocks,
    with_plain_attention,
)
from ..text.conditioning import text_of, with_text
from .replay import denoiser

Conds = list[dict[str, Any]]
Change = Callable[[torch.Tensor], torch.Tensor]
_NETWORKS = ("control", "hooks", "gligen")
"""The options of a prompt that run or change networks whose gradients nobody follows here."""


@dataclasses.dataclass
class HostGradients:
    """Implements `core.gradients.Gradients` for the prompt of a guider that is sampling.

    Functions of the model that change guidance are not called. Patches of the UNet are, and with
    checkpointing they are called again on the way back.
    """

    guider: Any
    options: dict[str, Any]
    """The model options of the run."""
    vae: Any = None
    """The host's VAE, for energies of pictures."""
    prompt: str = "positive"
    """Which of the guider's conds is read, and differentiated."""
    cfg: float = 1.0
    """Other than 1, x0 and eps are those of guidance over the negative prompt, at twice the
    memory."""
    decode_scale: float = 1.0
    """Pictures are decoded from latents of so much of the size."""
    checkpointing: str = "auto"
    """`auto`, `on` or `off`."""
    where: str = "gradients"
    """Who asks, for messages."""
    memory: str = dataclasses.field(default="", init=False)
    """What was last planned."""

    def __post_init__(self) -> None:
        self.options = with_plain_attention(self.options)
        self._plans: dict[Any, bool] = {}
        if self.checkpointing not in CHECKPOINTING:
            raise PivotError(
                f"checkpointing to be one of {CHECKPOINTING}",
                repr(self.checkpointing),
                "Choose one of them.",
                self.where,
            )
        for name in (self.prompt, *(["negative"] if self.cfg != 1.0 else [])):
            _check_conds(self.guider.conds.get(name), name, self.where)
        if not 0.0 < self.decode_scale <= 1.0:
            raise PivotError(
                "decode_scale above 0 and up to 1", f"{self.decode_scale:g}", "Use 1.", self.where
            )
        if self.vae is not None:
            _check_vae(self.vae, self.guider.inner_model, self.where)

    def slope(
        self,
        energy: Energy,
        x: torch.Tensor,
        sigma: float,
        wrt: Sequence[Variable] = ("latent",),
        text: torch.Tensor | None = None,
    ) -> Slope:
        """The slope of an energy, as `core.gradients.Gradients` has it."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._load(x)
        read = text_of(self.guider.conds[self.prompt]) if text is None else text
        read = read.to(x.device).float()
        read = read.expand(len(x), -1, -1) if len(read) == 1 else read
        with self._differentiable(x.device, self._planned(x, sigma, read, wrt)):
            return slope(
                energy,
                functools.partial(self._denoise, sigma),
                x.float(),
                sigma,
                read,
                wrt,
                None if self.vae is None else self._decode,
                self.where,
            )

    # -- the networks

    def _denoise(
        self, sigma: float, x: torch.Tensor, text: torch.Tensor, form: Change = torch.clone
    ) -> torch.Tensor:
        """The network's x0 [B, C, H, W], guided where cfg is not 1.

        `form` makes what is read of every tensor beside x and the text: the conds' own are
        inference tensors.
        """
        conds = [with_text(_formed(self.guider.conds[self.prompt], form), text)]
        if self.cfg != 1.0:
            conds.append(_formed(self.guider.conds["negative"], form))
        run, model = comfy.samplers.calc_cond_batch, self.guider.inner_model

        def predict(exploding: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
            answers = run(model, conds, exploding, sigmas, self.options)
            if self.cfg == 1.0:
                return answers[0]
            return answers[1] + self.cfg * (answers[0] - answers[1])

        return denoiser(predict)(VP.to_host(x, sigma), sigma)

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        """IMAGE [B, H, W, 3] of a latent, decoded in `decode_scale` of its size."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        size = self._decoded_size(latent)
        if size != tuple(latent.shape[-2:]):
            latent = torch.nn.functional.interpolate(latent, size=size, mode="area")
        scaled = self.guider.inner_model.process_latent_out(latent)
        pixels = self.vae.first_stage_model.decode(scaled.to(self.vae.device, self.vae.vae_dtype))
        return self.vae.process_output(pixels.float()).to(latent.device).movedim(1, -1)

    def _decoded_size(self, latent: torch.Tensor) -> tuple[int, int]:
        height, width = (max(1, round(side * self.decode_scale)) for side in latent.shape[-2:])
        return height, width

    # -- loading and memory

    def _load(self, x: torch.Tensor) -> None:
        """Have the host load the VAE beside the UNet, so that neither drives the other out."""
        if self.vae is None or self.vae.patcher in comfy.model_management.loaded_models():
            return
        shape = (len(x), x.shape[1], *self._decoded_size(x))
        comfy.model_management.load_models_gpu(
            [self.guider.model_patcher, self.vae.patcher],
            memory_required=self.vae.memory_used_decode(shape, self.vae.vae_dtype),
        )

    @contextlib.contextmanager
    def _differentiable(self, device: torch.device, checkpointing: bool) -> Iterator[None]:
        with contextlib.ExitStack() as both:
            unet = self.guider.inner_model.diffusion_model
            both.enter_context(differentiable(unet, device, checkpointing, unet_blocks()))
            if self.vae is not None:
                network = self.vae.first_stage_model
                both.enter_context(
                    differentiable(network, self.vae.device, checkpointing, vae_blocks())
                )
            yield

    def _planned(
        self, x: torch.Tensor, sigma: float, text: torch.Tensor, wrt: Sequence[Variable]
    ) -> bool:
        """Whether to checkpoint, which is counted and said once for each shape."""
        key = (x.shape, text.shape, tuple(wrt))
        if key not in self._plans:
            parts = [self._unet_bytes(x, sigma, text, wrt)]
            if self.vae is not None:
                parts.append(self._vae_bytes(x))
            needed = {on: len(x) * sum(part[on] for part in parts) for on in (False, True)}
            free = comfy.model_management.get_free_memory(x.device)
            chosen = plan(needed, free, self.checkpointing)
            self.memory = chosen.report
            level = logging.INFO if chosen.fits else logging.WARNING
            logging.log(level, "%s: %s", self.where, self.memory)
            self._plans[key] = chosen.checkpointing
        return self._plans[key]

    def _unet_bytes(
        self, x: torch.Tensor, sigma: float, text: torch.Tensor, wrt: Sequence[Variable]
    ) -> Bytes:
        whole = (x.shape[-2], x.shape[-1])

        def run(size: tuple[int, int]) -> None:
            part = _corner(x[:1], whole, size).float().clone().requires_grad_("latent" in wrt)
            read = text[:1].clone().requires_grad_("text" in wrt)
            self._denoise(sigma, part, read, lambda held: _corner(held, whole, size).clone())

        unet = self.guider.inner_model.diffusion_model
        return estimate(unet, x.device, unet_blocks(), whole, run)

    def _vae_bytes(self, x: torch.Tensor) -> Bytes:
        def run(size: tuple[int, int]) -> None:
            part = tuple(max(1, round(side / self.decode_scale)) for side in size)
            self._decode(x.new_zeros(1, x.shape[1], *part).requires_grad_(True))

        network = self.vae.first_stage_model
        return estimate(network, self.vae.device, vae_blocks(), self._decoded_size(x), run)


def each_tensor(cond: dict[str, Any], change: Change) -> dict[str, Any]:
    """A processed cond with every tensor that the model reads changed."""
    models = {}
    for name, value in cond["model_conds"].items():
        held = getattr(value, "cond", None)
        models[name] = value._copy_with(change(held)) if isinstance(held, torch.Tensor) else value
    return {**cond, "model_conds": models}


def _formed(conds: Conds, form: Change) -> Conds:
    """The conds with every tensor changed, masks too."""
    return [
        {**each_tensor(cond, form), **{k: form(cond[k]) for k in ("mask",) if k in cond}}
        for cond in conds
    ]


def _corner(held: torch.Tensor, whole: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """A corner of what is as large as the whole latent, and all of anything else."""
    return held[..., : size[0], : size[1]] if tuple(held.shape[-2:]) == whole else held


def _check_conds(conds: Conds | None, name: str, where: str) -> None:
    if conds is None or len(conds) != 1:
        raise PivotError(
            f"one plain {name} prompt",
            "none" if conds is None else f"{len(conds)} of them",
            "Connect a prompt as it is encoded, without combining.",
            where,
        )
    parts = [part for part in (*_NETWORKS, "area") if conds[0].get(part) is not None]
    if parts:
        raise PivotError(
            f"one plain {name} prompt",
            f"one with {', '.join(parts)}",
            "Leave ControlNet, hooks, GLIGEN and areas off where gradients are taken.",
            where,
        )


def _check_vae(vae: Any, model: Any, where: str) -> None:
    channels = model.latent_format.latent_channels
    if vae.latent_dim != 2 or vae.latent_channels != channels:
        raise PivotError(
            f"a VAE of pictures with {channels} latent channels, as the model has",
            f"one with {vae.latent_channels} in {vae.latent_dim} dimensions",
            "Connect the VAE of the model's own checkpoint.",
            where,
        )
