"""The transformer blocks of the host's UNet: their names, and the keys under which the host looks
up patches."""

from __future__ import annotations

import weakref
from typing import Any

from ...core.layers import Layer, Stage

BlockKey = tuple[str, int, int]
_STAGES: dict[str, Stage] = {"input": "down", "middle": "mid", "output": "up"}
_known: weakref.WeakKeyDictionary[Any, dict[BlockKey, Layer]] = weakref.WeakKeyDictionary()


def layers_of(model: Any) -> tuple[Layer, ...]:
    """The attention layers of a MODEL, in the order in which they run."""
    return tuple(block_layers(model.model.diffusion_model).values())


def scales_of(model: Any) -> tuple[int, ...]:
    """The scales at which a MODEL has attention, ascending."""
    return tuple(sorted({layer.scale for layer in layers_of(model)}))


def block_layers(unet: Any) -> dict[BlockKey, Layer]:
    """The layer of every transformer block, by the host's (stage, block, index)."""
    if unet not in _known:
        _known[unet] = _walk(unet)
    return _known[unet]


def _walk(unet: Any) -> dict[BlockKey, Layer]:
    from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample

    found: dict[BlockKey, Layer] = {}
    scale = 1
    for stage, blocks in (
        ("input", unet.input_blocks),
        ("middle", [unet.middle_block]),
        ("output", unet.output_blocks),
    ):
        level = number = 0
        for block, modules in enumerate(blocks):
            for module in modules or ():
                if isinstance(module, (Downsample, Upsample)):
                    scale = scale * 2 if isinstance(module, Downsample) else scale // 2
                    level, number = level + 1, 0
                depth = len(getattr(module, "transformer_blocks", ()))
                for index in range(depth):
                    found[stage, block, index] = Layer(_STAGES[stage], level, number, index, scale)
                number += depth > 0
    return found
