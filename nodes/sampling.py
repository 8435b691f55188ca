"""The nodes that make an edit."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.tasks.editing import edit, edit_guider
from .sockets import CATEGORY, edit_inputs, guidance_input


class PivotEditSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotEditSampler",
            display_name="Edit Sampler",
            category=CATEGORY,
            description="Makes the edit: replays the inversion once for the source and once for "
            "the target prompt, "
            "side by side, and gives both. The reconstruction shows what the inversion itself has "
            "lost.",
            search_aliases=[
                "edit image",
                "replay",
                "direct inversion",
                "negative prompt inversion",
                "pnp inversion",
            ],
            inputs=[*edit_inputs(), guidance_input()],
            outputs=[
                io.Latent.Output(display_name="edited"),
                io.Latent.Output(display_name="reconstructed"),
                io.String.Output(display_name="report"),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Where Local Blend let the edit show in its last step, with soft "
                    "edges to paste by; all "
                    "white without it.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Any, **options: Any) -> io.NodeOutput:
        edited, reconstructed, report, mask = edit(model, inversion, **options)
        shown = ui.PreviewText(report)
        return io.NodeOutput(edited, reconstructed, report, mask, ui=shown)


class PivotEditGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotEditGuider",
            display_name="Edit Guider",
            category=CATEGORY,
            description="The guider of the Edit Sampler on its own, for SamplerCustomAdvanced "
            "with Inversion Parts.",
            search_aliases=["edit guider", "inversion guider"],
            inputs=[*edit_inputs(), guidance_input()],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Any, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(edit_guider(model, inversion, **options))
