"""The node that says how good an inversion is."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.tasks.report import WHERE, report
from .sockets import (
    CATEGORY,
    cfg_input,
    correction_input,
    inversion_input,
    model_input,
)


class PivotInversionReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotInversionReport",
            display_name=WHERE,
            category=CATEGORY,
            description="Says how good an inversion is before it is edited, the worst first: "
            "whether it is of this picture, whether the source prompt describes it, whether its "
            "noise can be edited, how exactly the picture comes back at your cfg and correction, "
            "and what to try. Costs as much as an edit, and two rows at up to 6 levels more.",
            search_aliases=["inversion quality", "reconstruction psnr", "check inversion"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                model_input("The model of the inversion, without control nodes."),
                io.Vae.Input("vae", tooltip="The VAE that the picture was encoded with."),
                io.Image.Input(
                    "image", tooltip="The picture that went into VAE Encode, to compare with."
                ),
                inversion_input(),
                io.Conditioning.Input(
                    "source", tooltip="The prompt that the inversion was made with."
                ),
                io.Conditioning.Input(
                    "negative",
                    tooltip="What unconditional rows will read in the edit, usually the empty "
                    "prompt.",
                ),
                cfg_input(
                    "Guidance of your edit. The higher, the further the picture drifts unless a "
                    "correction holds it."
                ),
                correction_input(),
            ],
            outputs=[
                io.Image.Output(display_name="reconstruction"),
                io.Image.Output(
                    display_name="plot",
                    tooltip="How far the replay is from the inversion after every step.",
                ),
                io.Float.Output(
                    display_name="psnr", tooltip="dB of the reconstruction against the picture."
                ),
                io.Float.Output(
                    display_name="ceiling", tooltip="dB of the autoencoder's own round trip."
                ),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, vae: Any, image: Any, inversion: Any, **options: Any
    ) -> io.NodeOutput:
        result = report(model, vae, image, inversion, **options)
        shown = {
            **ui.PreviewImage(result.plot, cls=cls).as_dict(),
            **ui.PreviewText(result.text).as_dict(),
        }
        quality = result.quality
        return io.NodeOutput(
            result.reconstruction,
            result.plot,
            quality.psnr,
            quality.ceiling,
            result.text,
            ui=shown,
        )
