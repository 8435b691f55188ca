"""The second model: its shapes, its seed, and where its weights lie.

Two levels deep and narrower than the toy's, with heads of another width and one layer of text
encoder: nothing in the pack was tuned for it. Its weights are not part of the repository; train
them by `python -m bench.second` (logs/README.md), or name their file by `PIVOT_SECOND`.
"""

from __future__ import annotations

import os
import pathlib

from bench.second.scenes import SecondScene
from toy.architecture import CLIP_CONFIG, UNET_CONFIG, VAE_CONFIG, Shapes
from toy.train import World

HERE = pathlib.Path(__file__).parent
RUNS = HERE.parents[1] / "out" / "second"
CONTEXT = 64
SHAPES = Shapes(
    vae={**VAE_CONFIG, "ch_mult": [1, 1, 2, 2]},
    unet={
        **UNET_CONFIG,
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "num_head_channels": 16,
        "context_dim": CONTEXT,
    },
    clip={
        **CLIP_CONFIG,
        "hidden_size": CONTEXT,
        "intermediate_size": 4 * CONTEXT,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "projection_dim": CONTEXT,
    },
)
SECOND = World(
    SecondScene.sample,
    SHAPES,
    RUNS,
    HERE / "logs",
    pathlib.Path(os.environ.get("PIVOT_SECOND", RUNS / "second.safetensors")),
    seed=100,
)
