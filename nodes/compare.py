"""The node that decodes an edit and lays it beside its source."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.tasks.pictures import comparison, decode
from .sockets import CATEGORY


class PivotCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotCompare",
            display_name="Decode and Compare",
            category=CATEGORY,
            description="Decodes an edit, saves it, and shows source, reconstruction and edit "
            "side by side.",
            search_aliases=["before after", "compare edit", "save edit"],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE the picture was encoded with."),
                io.Image.Input("image", tooltip="The source picture, before encoding."),
                io.Latent.Input("edited", tooltip="The edit, from Edit Sampler."),
                io.Latent.Input("reconstructed", tooltip="The reconstruction, from Edit Sampler."),
                io.String.Input(
                    "filename_prefix",
                    default="pivot/edit",
                    tooltip="Where the edited picture is saved in the output folder.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="edited"),
                io.Image.Output(display_name="reconstructed"),
                io.Image.Output(display_name="comparison"),
            ],
        )

    @classmethod
    def execute(
        cls,
        vae: Any,
        image: Any,
        edited: dict[str, Any],
        reconstructed: dict[str, Any],
        filename_prefix: str,
    ) -> io.NodeOutput:
        pictures = decode(vae, edited), decode(vae, reconstructed)
        grid = comparison(image, pictures[1], pictures[0])
        saved = ui.ImageSaveHelper.save_images(
            pictures[0], filename_prefix=filename_prefix, folder_type=io.FolderType.output, cls=cls
        )
        shown = ui.PreviewImage(grid, cls=cls)
        return io.NodeOutput(*pictures, grid, ui=ui.SavedImages([*shown.values, *saved]))
