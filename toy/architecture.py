"""The toy model's shapes, built from ComfyUI's own UNet, autoencoder and CLIP classes.

SD1.x in small: the same topology (self- and cross-attention in down, middle and up blocks at every
resolution), the same schedule, eps-prediction, latent scale and tokenizer; only the widths differ.
Stock nodes therefore treat it like any SD1.x checkpoint. Needs ComfyUI on the import path.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

CONTEXT = 96
HEAD = 32
VAE_CONFIG: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 128,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2, 4],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
UNET_CONFIG: dict[str, Any] = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_head_channels": HEAD,
    "num_heads": -1,
    "context_dim": CONTEXT,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_checkpoint": False,
    "legacy": False,
    "use_temporal_attention": False,
}
CLIP_CONFIG: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 49407,
    "hidden_act": "quick_gelu",
    "hidden_size": CONTEXT,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 4 * CONTEXT,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "pad_token_id": 1,
    "projection_dim": CONTEXT,
    "torch_dtype": "float32",
    "vocab_size": 49408,
}


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The widths of a small model, as ComfyUI's own classes read them."""

    vae: dict[str, Any]
    unet: dict[str, Any]
    clip: dict[str, Any]


TOY = Shapes(VAE_CONFIG, UNET_CONFIG, CLIP_CONFIG)


def initialise(module: torch.nn.Module) -> torch.nn.Module:
    """Give every layer its usual random start: ComfyUI's layers begin as uninitialised memory."""
    kinds = (
        torch.nn.Linear,
        torch.nn.Conv2d,
        torch.nn.GroupNorm,
        torch.nn.LayerNorm,
        torch.nn.Embedding,
    )
    for layer in module.modules():
        for kind in kinds:
            if isinstance(layer, kind):
                kind.reset_parameters(layer)  # theirs is overridden to do nothing
    return module


def build_autoencoder(shapes: Shapes = TOY) -> torch.nn.Module:
    """ComfyUI's AutoencoderKL in the toy's size, randomly initialised, fp32."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    return initialise(AutoencoderKL(ddconfig=dict(shapes.vae), embed_dim=4))


def build_unet(shapes: Shapes = TOY) -> torch.nn.Module:
    """ComfyUI's UNetModel in the toy's size, randomly initialised, fp32."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**shapes.unet, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(unet)
    torch.nn.init.zeros_(unet.out[2].weight)  # as SD's zero_module: start from predicting nothing
    torch.nn.init.zeros_(unet.out[2].bias)
    return unet


def build_text_model(shapes: Shapes = TOY) -> torch.nn.Module:
    """ComfyUI's CLIPTextModel in the toy's size, randomly initialised, fp32."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    text = initialise(CLIPTextModel(shapes.clip, torch.float32, "cpu", comfy.ops.manual_cast))
    embeddings = text.text_model.embeddings
    torch.nn.init.normal_(embeddings.token_embedding.weight, std=0.3)
    torch.nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
    return text
