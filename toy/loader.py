"""The toy model as ComfyUI's MODEL, CLIP and VAE, from the weights in this folder.

Other small models of the same build (bench/second) load by their own weights and shapes.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import torch

from .architecture import TOY, Shapes

WEIGHTS = pathlib.Path(__file__).parent / "weights" / "toy.safetensors"
UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
WORDS = "text_model.embeddings.token_embedding"


def load(path: pathlib.Path = WEIGHTS, shapes: Shapes = TOY) -> tuple[Any, Any, Any]:
    """MODEL, CLIP, VAE. Raises FileNotFoundError naming the file if the weights are missing."""
    if not path.exists():
        raise FileNotFoundError(
            f"the toy model's weights are missing: {path}. Reinstall the pack, or train them "
            "with "
            "`python -m toy.train`."
        )
    import comfy.utils

    weights = {
        name: value.float() for name, value in comfy.utils.load_torch_file(str(path)).items()
    }
    return (
        _model(_part(weights, UNET), shapes),
        _clip(_part(weights, CLIP), shapes),
        _vae(_part(weights, VAE), shapes),
    )


def _part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def _model(weights: dict[str, torch.Tensor], shapes: Shapes) -> Any:
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD15(dict(shapes.unet))
    config.unet_config.update(shapes.unet)  # SD1.5's own head counts are put in by the constructor
    config.set_inference_dtype(torch.float32, None)
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    model = config.get_model({}, "", device=offload)
    model.diffusion_model.load_state_dict(weights, strict=True)
    model.eval()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _clip(weights: dict[str, torch.Tensor], shapes: Shapes) -> Any:
    import comfy.sd
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel
    from comfy.supported_models_base import ClipTarget

    class ToyTextEncoder(SDClipModel):
        def __init__(
            self, device: Any = "cpu", dtype: Any = None, model_options: Any = None
        ) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(shapes.clip),
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    model = functools.partial(SD1ClipModel, clip_model=ToyTextEncoder)
    tokenizer = functools.partial(SD1Tokenizer)
    clip = comfy.sd.CLIP(ClipTarget(tokenizer, model))
    clip.cond_stage_model.clip_l.transformer.load_state_dict(
        _all_words(weights, shapes), strict=True
    )
    return clip


def _all_words(weights: dict[str, torch.Tensor], shapes: Shapes) -> dict[str, torch.Tensor]:
    """The full vocabulary from the rows that were trained; words the model never saw are zero
    vectors."""
    weights = dict(weights)
    rows, ids = weights.pop(f"{WORDS}.rows"), weights.pop(f"{WORDS}.ids").long()
    table = torch.zeros(shapes.clip["vocab_size"], rows.shape[1])
    table[ids] = rows
    width = rows.shape[1]
    return {**weights, f"{WORDS}.weight": table, "text_projection.weight": torch.eye(width)}


def _vae(weights: dict[str, torch.Tensor], shapes: Shapes) -> Any:
    import comfy.sd

    return comfy.sd.VAE(
        sd=weights, config={"params": {"ddconfig": dict(shapes.vae), "embed_dim": 4}}
    )
