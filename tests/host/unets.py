"""Small models with random weights in the shapes of SD1.x, SD2.x and SDXL, and pieces of a run on
them."""

from __future__ import annotations

from typing import Any

import torch

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "use_spatial_transformer": True,
    "legacy": False,
    "use_checkpoint": False,
    "use_temporal_attention": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "SD15": {
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
        "context_dim": 64,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
    },
    "SD20": {
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
        "context_dim": 96,
        "use_linear_in_transformer": True,
        "adm_in_channels": None,
    },
    "SDXL": {
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 128,
        "use_linear_in_transformer": True,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
    },
}
HEADS = {"num_heads": -1, "num_head_channels": 16}


def build(
    kind: str, seed: int = 0, dtype: torch.dtype = torch.float32, shallow: bool = False
) -> Any:
    """A ModelPatcher of a kind in SHAPES, its weights a smooth-ish random start from `seed`; SD20
    predicts v.

    shallow: SDXL with attentions of at most two blocks, for tests to which depth is all the same.
    """
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    settings = {**COMMON, **SHAPES[kind]}
    if shallow:
        depths = ("transformer_depth", "transformer_depth_output")
        settings |= {name: [min(depth, 2) for depth in settings[name]] for name in depths}
        settings["transformer_depth_middle"] = min(settings["transformer_depth_middle"], 2)
    config = getattr(comfy.supported_models, kind)(settings)
    config.unet_config.update(HEADS)
    config.set_inference_dtype(dtype, None)
    if kind == "SD20":
        config.model_type = lambda state_dict, prefix="": comfy.model_base.ModelType.V_PREDICTION
    model = config.get_model({}, "", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.diffusion_model.named_parameters():
            if weight.ndim > 1:
                fan = weight[0].numel()
                weight.copy_(torch.randn(weight.shape, generator=generator) / fan**0.5)
            else:
                weight.fill_(1.0 if name.endswith("weight") else 0.0)
    model.eval()
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def conditioning(kind: str, seed: int, tokens: int = 77) -> list[Any]:
    """A random CONDITIONING of the kind's width, with a pooled vector for SDXL."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, SHAPES[kind]["context_dim"], generator=generator)
    extra = {"pooled_output": torch.randn(1, 1280, generator=generator)} if kind == "SDXL" else {}
    return [[text, extra]]


def latent(
    height: int = 16, width: int = 16, batch: int = 1, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A random LATENT."""
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(batch, 4, height, width, generator=generator)}
