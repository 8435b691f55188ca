"""The transformer blocks of the host's UNet: their names, and the keys under which the host looks
up patches."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from ...core.control import Kind
from ...core.layers import Layer, Stage

BlockKey = tuple[str, int, int]
_STAGES: dict[str, Stage] = {"input": "down", "middle": "mid", "output": "up"}
FeatureSite = tuple[Kind, Layer, Any]
"""What is reached, its layer, and the module whose output it is."""
_layers: weakref.WeakKeyDictionary[Any, dict[BlockKey, Layer]] = weakref.WeakKeyDictionary()


def layers_of(model: Any) -> tuple[Layer, ...]:
    """The attention layers of a MODEL, in the order in which they run."""
    return tuple(block_layers(model.model.diffusion_model).values())


def scales_of(model: Any) -> tuple[int, ...]:
    """The scales at which a MODEL has attention, ascending."""
    return tuple(sorted({layer.scale for layer in layers_of(model)}))


def block_layers(unet: Any) -> dict[BlockKey, Layer]:
    """The layer of every transformer block, by the host's (stage, block, index)."""
    # weakly, so that a model which the host drops is not held by its layers
    if unet not in _layers:
        _layers[unet] = _walk(unet)
    return _layers[unet]


def feature_sites(unet: Any) -> list[FeatureSite]:
    """The residual blocks of the network and the blocks that hold them, in their order.

    The site of a residual block is its last layer before the skip is added. `number` counts
    residual blocks by level. Where every block has an attention, both then have one name.
    """
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    sites: list[FeatureSite] = []
    numbers: dict[tuple[Stage, int], int] = {}
    for stage, _, modules, level, scale in _blocks(unet):
        for module in modules:
            if isinstance(module, ResBlock):
                number = numbers.get((stage, level), 0)
                numbers[stage, level] = number + 1
                layer = Layer(stage, level, number, 0, scale)
                sites.append(("resnet", layer, module.out_layers[-1]))
        if any(isinstance(module, ResBlock) for module in modules):
            sites.append(("block", layer, modules[-1]))  # the host calls them one by one
    return sites


def _blocks(unet: Any) -> Iterator[tuple[Stage, int, Any, int, int]]:
    """Every block with its stage, its number in the host, itself, its level and its scale.

    The level counts the resolution changes that the stage has passed before the block.
    """
    from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, Upsample

    scale = 1
    for name, blocks in (
        ("input", unet.input_blocks),
        ("middle", [unet.middle_block]),
        ("output", unet.output_blocks),
    ):
        level = 0
        for number, modules in enumerate(blocks):
            yield _STAGES[name], number, modules or (), level, scale
            for module in modules or ():
                if isinstance(module, (Downsample, Upsample)):
                    scale = scale * 2 if isinstance(module, Downsample) else scale // 2
                    level += 1


def _walk(unet: Any) -> dict[BlockKey, Layer]:
    """The layer of every transformer block, by a walk over the network."""
    names = {stage: name for name, stage in _STAGES.items()}
    layers: dict[BlockKey, Layer] = {}
    numbers: dict[tuple[Stage, int], int] = {}
    for stage, block, modules, level, scale in _blocks(unet):
        for module in modules:
            depth = len(getattr(module, "transformer_blocks", ()))
            number = numbers.get((stage, level), 0)
            for index in range(depth):
                layers[names[stage], block, index] = Layer(stage, level, number, index, scale)
            numbers[stage, level] = number + (depth > 0)
    return layers
