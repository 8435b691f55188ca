"""What the host's model is: checks, level table, and a fingerprint that tells one model from
another."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from ...core.errors import PivotError
from ...core.trajectory import Trajectory

_SAMPLED = 64
_ILL_POSED = 1000.0
_SIZES = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")
"""What SDXL is told of sizes, as the stock nodes name it in a conditioning's options."""


def check_unet(model: Any, where: str) -> None:
    """Raise PivotError unless `model` is a UNet with attention that predicts eps or v (SD1.x,
    SD2.x, SDXL)."""
    from comfy.ldm.modules.attention import BasicTransformerBlock
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    network = model.model.diffusion_model
    name = type(model.model.model_config).__name__
    if not isinstance(network, UNetModel):
        raise PivotError(
            "a UNet model (SD1.x, SD2.x, SDXL)",
            f"{name} ({type(network).__name__}), a model without UNet attention",
            "Load a UNet checkpoint; transformer models need other mathematics and are not "
            "supported yet.",
            where,
        )
    if not any(isinstance(module, BasicTransformerBlock) for module in network.modules()):
        raise PivotError("a UNet with attention", name, "Load a text-to-image checkpoint.", where)
    if not hasattr(model.get_model_object("model_sampling"), "sigmas"):
        raise PivotError(
            "a model with a table of noise levels",
            name,
            "Load an SD1.x, SD2.x or SDXL model.",
            where,
        )


def check_levels(sigmas: torch.Tensor, where: str) -> torch.Tensor:
    """Return ascending sigmas, or raise PivotError when the last level holds nothing of the
    picture.

    The last trained level of a zero-terminal-SNR model holds nothing. No inversion can lead to it
    and back.
    """
    if float(sigmas[-1]) > _ILL_POSED:
        raise PivotError(
            f"noise levels that keep something of the picture (sigma below {_ILL_POSED:g})",
            f"{float(sigmas[-1]):.4g}, the zero-SNR end of this model",
            "Use fewer steps, 20 to 100: their last level lies before the end.",
            where,
        )
    return sigmas


def trained_sigmas(model: Any) -> torch.Tensor:
    """The model's own noise levels, ascending, [1000] for SD. A ModelSampling patch counts."""
    return model.get_model_object("model_sampling").sigmas.detach().cpu()


def fingerprint(model: Any) -> str:
    """A short hash of a model's architecture, prediction type, sampled weights and weight patches.

    A LoRA counts both where it is patched into the weights and where it runs beside them. The hash
    is the same for the same checkpoint in every session. It is another for another checkpoint, LoRA
    or strength.
    """
    digest = hashlib.sha256()
    digest.update(type(model.model).__name__.encode())
    sampling = model.get_model_object("model_sampling")
    digest.update("|".join(kind.__name__ for kind in type(sampling).__mro__[:-1]).encode())
    digest.update(trained_sigmas(model)[::100].half().numpy().tobytes())
    weights = model.model.diffusion_model.state_dict()
    names = sorted(weights)
    # a sample, because hashing gigabytes at every node would be felt
    parts: list[tuple[str, torch.Tensor | None]] = [
        (f"{name}{list(weights[name].shape)}", _original(model, name, weights[name]))
        for name in names[:: max(1, len(names) // 24)]
    ]
    for name in sorted(model.patches, key=str):
        for strength, patch, *_ in model.patches[name]:
            parts.append((f"{name}{strength}", _first_tensor(patch)))
    _add_sampled(digest, parts)
    _add_bypasses(digest, model)
    return digest.hexdigest()[:16]


def _add_bypasses(digest: Any, model: Any) -> None:
    """Adds what works beside the weights: injections, such as a bypass LoRA, and replaced parts of
    the UNet.

    A model without them adds nothing, so that inversions saved by older versions still fit.
    """
    for key in sorted(getattr(model, "injections", {})):
        for injection in model.injections[key]:
            digest.update(f"{key}{_called(injection.inject)}".encode())
            for name, adapter, strength in _adapters(injection.inject):
                digest.update(f"{name}{type(adapter).__name__}{strength}".encode())
                _add_signs(digest, adapter.weights)
    for name in sorted(model.object_patches):
        part = model.object_patches[name]
        if name.startswith("diffusion_model.") and _called(part) != "OptimizedModule":
            digest.update(f"{name}{_called(part)}".encode())


def _called(part: Any) -> str:
    """The name of a function or of an object's class, OptimizedModule for a compiled module."""
    return str(getattr(part, "__qualname__", type(part).__name__))


def _adapters(inject: Any) -> list[tuple[str, Any, float]]:
    """(weight, adapter, strength) of a bypass LoRA; none of other packs' injections."""
    # the host's injection holds their manager in its closure and nowhere else
    cells = [cell.cell_contents for cell in getattr(inject, "__closure__", None) or ()]
    tables = [cell.adapters for cell in cells if isinstance(getattr(cell, "adapters", None), dict)]
    return [(name, *by_name[name]) for by_name in tables for name in sorted(by_name)]


def _add_signs(digest: Any, weights: Any) -> None:
    """Adds shapes, numbers and the signs of sampled values of an adapter's weights."""
    # the host casts them in place to the model's precision when they first run, which changes all
    # but the signs
    for part in weights if isinstance(weights, (tuple, list)) else ():
        if isinstance(part, torch.Tensor):
            flat = part.detach().reshape(-1)
            sampled = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED]
            digest.update(str(list(part.shape)).encode())
            digest.update(torch.signbit(sampled.float()).cpu().numpy().tobytes())
        elif isinstance(part, (int, float)):
            digest.update(str(float(part)).encode())


def conditioning_fingerprint(conditioning: Any) -> str:
    """A short hash of a CONDITIONING: text embeddings, pooled vectors, size conditioning and hooks
    (LoRA of this prompt alone)."""
    digest = hashlib.sha256()
    for text, options in conditioning:
        for tensor in (text, options.get("pooled_output")):
            if tensor is not None:
                digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        digest.update(str([options[name] for name in _SIZES if name in options]).encode())
        for hook in getattr(options.get("hooks"), "hooks", ()):
            _add_hook(digest, hook)
    return digest.hexdigest()[:16]


def _add_hook(digest: Any, hook: Any) -> None:
    """Adds the kind of a hook, and the strength and weights of a LoRA's."""
    digest.update(f"{type(hook).__name__}{getattr(hook, '_strength_model', '')}".encode())
    weights = getattr(hook, "weights", None) or {}
    _add_sampled(
        digest, [(str(name), _first_tensor(weights[name])) for name in sorted(weights, key=str)]
    )


def check_same_model(model: Any, trajectory: Trajectory, where: str) -> None:
    """Raise PivotError when the inversion was made with another model."""
    name = fingerprint(model)
    if name != trajectory.model:
        raise PivotError(
            f"the model the inversion was made with ({trajectory.model})",
            f"another one ({name})",
            "Connect the same checkpoint and LoRA to the inversion and to the edit.",
            where,
        )


def check_same_source(source: Any, trajectory: Trajectory, where: str, text: str = "") -> None:
    """Raise PivotError when the source conditioning is not the one that was inverted with.

    `text` is the prompt it was encoded from, where that is known.
    """
    if conditioning_fingerprint(source) == trajectory.conditioning:
        return
    got, advice = "another one", "Use one source prompt for the inversion and for the edit."
    if text and text == trajectory.prompt:
        got = f"the same text {text!r} encoded otherwise"
        advice = (
            "Connect one CLIP to both: clip skip or a LoRA on one side only encodes the text "
            "otherwise, and so do other Conditioning nodes."
        )
    elif text and trajectory.prompt:
        got = f"that of {text!r}; the inversion's is {trajectory.prompt!r}"
    raise PivotError("the source conditioning that the inversion was made with", got, advice, where)


def _original(model: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
    """The weight before patches.

    ComfyUI bakes LoRA into weights while a model is loaded, and keeps a backup.
    """
    backup = model.backup.get(f"diffusion_model.{name}")
    return weight if backup is None else backup.weight


def _add_sampled(digest: Any, parts: list[tuple[str, torch.Tensor | None]]) -> None:
    """Names, and sampled values of their tensors in half precision. All values of a device come
    over in one transfer, because each would wait for the device."""
    sampled: dict[torch.device, list[torch.Tensor]] = {}
    for _, tensor in parts:
        if tensor is not None:
            flat = tensor.detach().reshape(-1)
            values = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].to(torch.float16)
            sampled.setdefault(tensor.device, []).append(values)
    values_of = {
        device: iter(torch.cat(each).cpu().split([len(one) for one in each]))
        for device, each in sampled.items()
    }
    for name, tensor in parts:
        digest.update(name.encode())
        if tensor is not None:
            digest.update(next(values_of[tensor.device]).numpy().tobytes())


def _first_tensor(patch: Any) -> torch.Tensor | None:
    """The first tensor of a weight patch, whatever its kind nests it in."""
    if isinstance(patch, torch.Tensor):
        return patch
    parts = getattr(patch, "weights", patch)
    if isinstance(parts, (tuple, list)):
        return next((tensor for tensor in map(_first_tensor, parts) if tensor is not None), None)
    return None
