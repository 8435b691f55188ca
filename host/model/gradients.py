"""Gradients through the host's networks, UNet and VAE, although nodes run under inference mode.

Weights that ComfyUI loads there are inference tensors, which autograd refuses to save. Resident
ones are replaced, one by one, by ordinary copies of the same values, so that memory does not
double. Weights that the host streams in (`--lowvram`) are copied as they come, through the weight
functions of its layers. The copies stay, frozen, which nothing can tell. All else is put back
whatever happens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

CHECKPOINTING = ("auto", "on", "off")
Kinds = tuple[type[torch.nn.Module], ...]
Bytes = dict[bool, int]
"""How many bytes a way back keeps, with checkpointing and without."""


@contextlib.contextmanager
def differentiable(
    network: torch.nn.Module, device: torch.device, checkpointing: bool, blocks: Kinds
) -> Iterator[None]:
    """Inside, calls of the network can be differentiated with respect to what it is given.

    With checkpointing, `blocks` are run again on the way back instead of kept. That takes about a
    third more time and far less memory.
    """
    with contextlib.ExitStack() as undo, torch.inference_mode(False), torch.enable_grad():
        for module in network.modules():
            _ordinary(module, device, undo)
            _plain_vae_attention(module, undo)
            if checkpointing and isinstance(module, blocks):
                _checkpointed(module, undo)
        yield


def unet_blocks() -> Kinds:
    """The modules of a UNet that are kept or run again as a whole."""
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    return ResBlock, SpatialTransformer


def vae_blocks() -> Kinds:
    """The modules of a VAE's decoder, or of a tiny one, that are kept or run again as a whole."""
    from comfy.ldm.modules.diffusionmodules.model import AttnBlock, ResnetBlock, Upsample
    from comfy.taesd.taesd import Block

    return ResnetBlock, AttnBlock, Upsample, Block


def _ordinary(module: torch.nn.Module, device: torch.device, undo: contextlib.ExitStack) -> None:
    """Make what a module computes with something that autograd can save, and freeze it."""
    # `_v` is the host's mark of a weight that its dynamic loader streams in
    streamed = hasattr(module, "_v") or any(
        p.device != device for p in module.parameters(recurse=False)
    )
    if streamed and hasattr(module, "weight_function"):
        for name in ("weight_function", "bias_function"):
            _replace(module, name, [*getattr(module, name), torch.clone], undo)
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


def _replace(module: torch.nn.Module, name: str, value: Any, undo: contextlib.ExitStack) -> None:
    """Set an attribute of the module for the while."""
    # an attribute that was its class's alone is taken away again, instead of set to the class's
    if name in module.__dict__:
        undo.callback(module.__dict__.__setitem__, name, module.__dict__[name])
    else:
        undo.callback(module.__dict__.pop, name)
    module.__dict__[name] = value


def _checkpointed(module: torch.nn.Module, undo: contextlib.ExitStack) -> None:
    """Run the module's forward under torch's checkpointing."""
    from torch.utils.checkpoint import checkpoint

    plain = module.forward

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        # the host writes the number of the block into its options as it goes: the second run needs
        # them as they were in the first
        args = tuple(dict(arg) if isinstance(arg, dict) else arg for arg in args)
        kwargs = {name: dict(arg) if isinstance(arg, dict) else arg for name, arg in kwargs.items()}
        output: torch.Tensor = checkpoint(
            plain, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )
        return output

    _replace(module, "forward", forward, undo)


def with_plain_attention(model_options: dict[str, Any]) -> dict[str, Any]:
    """Options under which every attention of a UNet is torch's own.

    Kernels of other packs and builds may have no gradient.
    """
    from comfy.ldm.modules.attention import attention_pytorch

    def attention(function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        return attention_pytorch(*args, **kwargs)

    transformer = {
        **model_options.get("transformer_options", {}),
        "optimized_attention_override": attention,
    }
    return {**model_options, "transformer_options": transformer}


def _plain_vae_attention(module: torch.nn.Module, undo: contextlib.ExitStack) -> None:
    """The same for a module of a VAE, whose attentions know no options."""
    from comfy.ldm.modules.diffusionmodules.model import AttnBlock, pytorch_attention

    if isinstance(module, AttnBlock):
        _replace(module, "optimized_attention", pytorch_attention, undo)


class SavedBytes:
    """Counts what autograd keeps for the way back while it is entered, weights left out.

    `total` are all bytes, and `largest` is the part of them that one block keeps.
    """

    def __init__(self, network: torch.nn.Module, blocks: Kinds) -> None:
        self._network, self._blocks = network, blocks
        self._seen = {
            weight.untyped_storage().data_ptr()
            for weight in network.state_dict(keep_vars=True).values()
        }
        self._begun: list[int] = []
        self.total = self.largest = 0

    def __enter__(self) -> SavedBytes:
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(
            torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)
        )
        for block in (each for each in self._network.modules() if isinstance(each, self._blocks)):
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
        # by storages: views of one tensor are kept once
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        # an output that its own node keeps, as it is, would be a cycle that nothing ever frees
        return tensor.detach()


def estimate(
    network: torch.nn.Module,
    device: torch.device,
    blocks: Kinds,
    whole: tuple[int, int],
    run: Callable[[tuple[int, int]], object],
) -> Bytes:
    """How many bytes one picture's way back needs. run(size) calls the network on a part of a
    latent.

    They are counted on two small parts of the `whole` latent, and grow from there on in proportion
    to the area. What the text alone makes does not grow.
    """
    height, width = whole
    bytes_at: dict[int, Bytes] = {}
    for part in (4, 2):
        small = (min(height, max(8, height // part)), min(width, max(8, width // part)))
        bytes_at[small[0] * small[1]] = _counted(
            network, device, blocks, functools.partial(run, small)
        )
    counts, area = sorted(bytes_at.items()), height * width
    (less, fewer), (more, most) = counts[0], counts[-1]
    if more == less:
        return {on: int(most[on] * area / more) for on in most}
    return {
        on: int(most[on] + (most[on] - fewer[on]) * (area - more) / (more - less)) for on in most
    }


def _counted(
    network: torch.nn.Module, device: torch.device, blocks: Kinds, run: Callable[[], object]
) -> Bytes:
    """The bytes of one way back, with checkpointing and without."""
    needed, largest = {}, 0
    for on in (False, True):
        with (
            differentiable(network, device, on, blocks),
            SavedBytes(network, blocks) as saved,
        ):
            run()
        largest = largest or saved.largest
        # a checkpointed way back holds what lies between blocks, and one block run again
        needed[on] = saved.total + (largest if on else 0)
    return needed


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a way back is to be run."""

    checkpointing: bool
    report: str
    """What people are told of it before memory is spent."""
    fits: bool
    """Whether it fits into the memory that is free."""


def plan(needed: Bytes, free: float, checkpointing: str) -> Plan:
    """The plan for what is needed and free, in bytes.

    `auto` checkpoints where more than 0.7 of the free memory would be needed without.
    """
    on = checkpointing == "on" or (checkpointing == "auto" and needed[False] > 0.7 * free)
    report = (
        f"gradients need about {_size(needed[on])} of {_size(free)} free, checkpointing "
        f"{'on' if on else 'off'}"
    )
    other = f"{_size(needed[not on])} with it {'off' if on else 'on'}"
    fits = needed[on] <= free
    short = "" if fits else "; that may not fit: choose a smaller picture or fewer at once"
    return Plan(on, f"{report} ({other}){short}", fits)


def _size(number: float) -> str:
    return f"{number / 2**30:.2f} GB" if number >= 2**28 else f"{number / 2**20:.0f} MB"
