"""Gradients through the host's UNet with respect to its text, although nodes run under inference
mode.

Weights that ComfyUI loads there are inference tensors, which autograd refuses to save. Resident
ones are replaced, one by one, by ordinary copies of the same values, so that memory does not
double; weights that the host streams in (`--lowvram`) are copied as they come, through the weight
functions of its layers. The copies stay, frozen, which nothing can tell; all else is put back
whatever happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch


@contextlib.contextmanager
def differentiable(
    unet: torch.nn.Module, device: torch.device, checkpointing: bool
) -> Iterator[None]:
    """Inside, calls of the network can be differentiated with respect to their text.

    checkpointing: blocks are run again on the way back instead of kept: about a third more time,
    far less memory.
    """
    with contextlib.ExitStack() as undo, torch.inference_mode(False), torch.enable_grad():
        for module in unet.modules():
            _ordinary(module, device, undo)
            if checkpointing and isinstance(module, blocks()):
                _checkpointed(module, undo)
        yield


def blocks() -> tuple[type[torch.nn.Module], ...]:
    """What is kept or run again as a whole."""
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    return ResBlock, SpatialTransformer


def _ordinary(module: torch.nn.Module, device: torch.device, undo: contextlib.ExitStack) -> None:
    """Make what the module computes with saveable and frozen."""
    streamed = hasattr(module, "_v") or any(
        p.device != device for p in module.parameters(recurse=False)
    )
    if streamed and hasattr(module, "weight_function"):
        for name in ("weight_function", "bias_function"):
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, [*getattr(module, name), torch.clone])
        return
    for name, parameter in list(module.named_parameters(recurse=False)):
        if parameter.is_inference():
            module._parameters[name] = torch.nn.Parameter(
                parameter.detach().clone(), requires_grad=False
            )
        elif parameter.requires_grad:
            parameter.requires_grad_(False)
            undo.callback(parameter.requires_grad_, True)
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.is_inference():
            module._buffers[name] = buffer.clone()


def _checkpointed(module: torch.nn.Module, undo: contextlib.ExitStack) -> None:
    """Run the module's forward under torch's checkpointing.

    The host writes the number of the block into its options as it goes: each call gets a copy, to
    be run again with.
    """
    from torch.utils.checkpoint import checkpoint

    plain, own = module.forward, module.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        args = tuple(dict(arg) if isinstance(arg, dict) else arg for arg in args)
        kwargs = {name: dict(arg) if isinstance(arg, dict) else arg for name, arg in kwargs.items()}
        made: torch.Tensor = checkpoint(
            plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )
        return made

    module.__dict__["forward"] = forward
    undo.callback(_restore_forward, module, own)


def _restore_forward(module: torch.nn.Module, own: Any) -> None:
    if own is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = own


def with_plain_attention(model_options: dict[str, Any]) -> dict[str, Any]:
    """Options under which every attention is torch's own: kernels of other packs and builds may
    have no gradient."""
    from comfy.ldm.modules.attention import attention_pytorch

    def attention(function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        return attention_pytorch(*args, **kwargs)

    transformer = {
        **model_options.get("transformer_options", {}),
        "optimized_attention_override": attention,
    }
    return {**model_options, "transformer_options": transformer}


class SavedBytes:
    """Counts what autograd keeps for the way back while it is entered, weights left out: `total`
    bytes, and the `largest` part of them that one block keeps."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self._unet = unet
        self._seen = {
            weight.untyped_storage().data_ptr()
            for weight in unet.state_dict(keep_vars=True).values()
        }
        self._begun: list[int] = []
        self.total = self.largest = 0

    def __enter__(self) -> SavedBytes:
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(
            torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)
        )
        for block in (module for module in self._unet.modules() if isinstance(module, blocks())):
            self._undo.callback(block.register_forward_pre_hook(self._begin).remove)
            self._undo.callback(block.register_forward_hook(self._end).remove)
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()

    def _begin(self, *call: Any) -> None:
        self._begun.append(self.total)

    def _end(self, *call: Any) -> None:
        self.largest = max(self.largest, self.total - self._begun.pop())

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
