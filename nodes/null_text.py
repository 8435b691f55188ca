"""The node of null-text optimisation."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.tasks.null_text import CHECKPOINTING, null_text
from ..host.tasks.progress import progress_text
from ..inversion.null_text import PRESETS
from .sockets import (
    CATEGORY,
    Inversion,
    cfg_input,
    inversion_input,
    model_input,
)


class PivotNullTextOptimize(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotNullTextOptimize",
            display_name="Null-Text Optimize",
            category=CATEGORY,
            description="Finds, for every step, an empty prompt under which the picture comes "
            "back at a high cfg. Done "
            "once for an inversion; edit nodes set to auto use it. Needs gradients, so more "
            "memory and time.",
            search_aliases=["null text inversion", "nti", "optimize uncond", "null-text"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                model_input("The model of the inversion, from before any control nodes."),
                inversion_input(),
                io.Conditioning.Input("source", tooltip="The prompt the inversion was made with."),
                io.Conditioning.Input(
                    "negative", tooltip="The prompt to be optimised, usually the empty one."
                ),
                cfg_input(
                    "Guidance of the edit to come, set alike there: the embeddings are exact at "
                    "this one."
                ),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="fast",
                    tooltip="fast: closer to the picture at a fraction of the cost, and targets "
                    "read the negative "
                    "prompt, so that edits stay free. reference: the paper's algorithm and "
                    "settings, targets read the "
                    "embeddings, too; its keep_best never lets a step get worse.",
                ),
                io.Combo.Input(
                    "checkpointing",
                    options=list(CHECKPOINTING),
                    default="auto",
                    tooltip="on: blocks are run again on the way back instead of kept, a third "
                    "more time for a "
                    "fraction of the memory. auto: on where memory would be short.",
                    advanced=True,
                ),
            ],
            outputs=[
                Inversion.Output(display_name="inversion"),
                io.Image.Output(display_name="loss_curve"),
                io.Float.Output(
                    display_name="errors",
                    is_output_list=True,
                    tooltip="Squared distance to the trajectory after every step, from noise.",
                ),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Any, **options: Any) -> io.NodeOutput:
        progress = progress_text(cls.hidden.unique_id)
        optimized, curve, errors, report = null_text(model, inversion, **options, progress=progress)
        return io.NodeOutput(optimized, curve, errors, report, ui=ui.PreviewText(report))
