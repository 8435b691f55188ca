"""Other packs' mechanisms, built again in small: what each leaves in a model or a conditioning."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import comfy.controlnet
import comfy.hooks
import comfy.ldm.modules.attention
import torch


def noted(conditioning: Any, **notes: Any) -> Any:
    """An encoder that leaves notes in every entry, in the manner of comfyui-prompt-control."""
    return [[text, {**options, **notes}] for text, options in conditioning]


# a reference control, in the manner of Advanced-ControlNet's


class Hint:
    """A latent that must not pass for a picture: a wrapper around one tensor."""

    def __init__(self, condhint: torch.Tensor) -> None:
        self.condhint = condhint


class Keyframe:
    """A strength from a fraction of the steps on; its sigma is known once a run begins."""

    def __init__(self, start_percent: float, strength: float) -> None:
        self.start_percent, self.strength = start_percent, strength
        self.start_t = 999.0


class ReferencePatch:
    """What carries a control to the attention of the model; the control of this run is in it."""

    def __init__(self) -> None:
        self.control: Reference | None = None

    def __call__(self, out: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        if self.control is None or self.control.hint_now is None:
            return out
        return out * (1.0 + 0.1 * self.control.strength * float(self.control.hint_now.mean()))


class Reference(comfy.controlnet.ControlBase):  # type: ignore[misc]
    """A control without a network: its run unwraps the hint, and remembers where it is."""

    def __init__(self, patch: ReferencePatch, keyframes: list[Keyframe], style: float) -> None:
        super().__init__()
        self.base = super()
        self.patch, self.keyframes, self.style = patch, keyframes, style
        self.patch.control = self
        self.hint_now: torch.Tensor | None = None
        self.sigma: Any = None
        self.get_control = self.get_control_advanced

    def pre_run(self, model: Any, percent_to_timestep_function: Callable[[float], float]) -> None:
        """Runs before the first step."""
        super().pre_run(model, percent_to_timestep_function)
        for keyframe in self.keyframes:
            keyframe.start_t = percent_to_timestep_function(keyframe.start_percent)
        if isinstance(self.cond_hint_original, Hint):
            self.cond_hint_original = self.cond_hint_original.condhint
        self.hint_now = self.cond_hint_original
        self.patch.control = self

    def get_control_advanced(self, x: Any, t: Any, cond: Any, batched: int, *args: Any) -> Any:
        """Remembers the step; adds nothing of its own."""
        self.sigma = t
        previous = self.previous_controlnet
        return None if previous is None else previous.get_control(x, t, cond, batched, *args)

    def cleanup(self) -> None:
        """Runs after the last step."""
        super().cleanup()
        self.hint_now = None

    def copy(self) -> Reference:
        """The same settings for another conditioning."""
        other = Reference(self.patch, self.keyframes, self.style)
        self.copy_to(other)
        return other


def referenced(conditioning: Any, control: Reference, hint: Hint, strength: float = 1.0) -> Any:
    """Apply ControlNet: a copy of the control in every entry."""
    return [
        [text, {**options, "control": control.copy().set_cond_hint(hint, strength, (0.0, 1.0))}]
        for text, options in conditioning
    ]


# tiles and regions


class AbstractDiffusion:
    """The UNet on tiles of the picture, in the manner of Tiled Diffusion."""

    def __call__(self, model_function: Callable[..., Any], args: dict[str, Any]) -> torch.Tensor:
        tiles = args["input"].chunk(2, -1)
        made = [model_function(tile, args["timestep"], **args["c"]) for tile in tiles]
        return torch.cat(made, -1)


class Mixture(AbstractDiffusion):
    """A method of it under another name."""


def tiled(model: Any) -> Any:
    """A model whose calls run on tiles."""
    clone = model.clone()
    clone.set_model_unet_function_wrapper(Mixture())
    return clone


class AttentionCouple:
    """Regions with texts of their own in cross-attention, three ways as packs have them."""

    def __init__(self, text: torch.Tensor) -> None:
        self.text = text

    def replaced(self, model: Any) -> Any:
        """In the place of attention: keys and values of its own, whatever it is given."""
        clone = model.clone()
        unet = clone.model.diffusion_model
        module = unet.middle_block[1].transformer_blocks[0].attn2
        clone.set_model_attn2_replace(self.make_patch(module), "middle", 0)
        return clone

    def make_patch(self, module: Any) -> Callable[..., torch.Tensor]:
        """The patch of one block."""
        from comfy.ldm.modules.attention import optimized_attention

        def patch(q: Any, k: Any, v: Any, extra: dict[str, Any]) -> torch.Tensor:
            text = self.text.expand(len(q), -1, -1)
            return optimized_attention(q, module.to_k(text), module.to_v(text), extra["n_heads"])

        return patch

    def repeated(self, model: Any) -> Any:
        """Around attention: rows for every region, summed afterwards."""

        def attn2_patch(n: Any, context: Any, value: Any, extra: dict[str, Any]) -> Any:
            text = torch.cat([context, self.text.expand(len(context), -1, -1)])
            return n.repeat(2, 1, 1), text, text

        def attn2_output_patch(out: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            return sum(out.chunk(2)) / 2  # type: ignore[return-value]

        clone = model.clone()
        clone.set_model_attn2_patch(attn2_patch)
        clone.set_model_attn2_output_patch(attn2_output_patch)
        return clone

    def hooked(self, conditioning: Any) -> Any:
        """As a hook of the conditioning, its patch wrapped in an object."""
        patches = {"patches": {"attn2_output_patch": [Movable(AttentionCoupleHook().scaled)]}}
        hook = comfy.hooks.TransformerOptionsHook(
            patches, hook_scope=comfy.hooks.EnumHookScope.HookedOnly
        )
        group = comfy.hooks.HookGroup()
        group.add(hook)
        return comfy.hooks.set_hooks_for_conditioning(conditioning, hooks=group)


class AttentionCoupleHook:
    """What a hook's patch belongs to."""

    def scaled(self, out: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        """The patch."""
        return out * 1.1


class Movable:
    """A patch that the host can move to a device."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self.function = function

    def to(self, *args: Any, **kwargs: Any) -> Movable:
        """Itself."""
        return self

    def __call__(self, *args: Any) -> torch.Tensor:
        return self.function(*args)


def with_attention_guidance(network: Any, negative: torch.Tensor, put: Callable[..., None]) -> None:
    """The network with its negative text as further rows of the context, in the manner of
    ChenDarYen's NAG; put(object, name, value) sets an attribute for the length of a test."""
    plain = type(network).forward

    def forward(self: Any, x: Any, timesteps: Any, context: Any, *args: Any, **kw: Any) -> Any:
        return plain(self, x, timesteps, torch.cat([context, negative]), *args, **kw)

    put(network, "forward", types.MethodType(forward, network))
