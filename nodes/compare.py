"""The nodes that lay an edit beside its source, and paste it into the picture."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..core.pictures import PASTE
from ..host.tasks.folders import checked_prefix, explained
from ..host.tasks.pictures import COMPARE, check_comparable, comparison, decode, paste_edit
from .sockets import CATEGORY


class PivotCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotCompare",
            display_name=COMPARE,
            category=CATEGORY,
            description="Decodes an edit, saves it, and shows source, reconstruction and edit "
            "side by side. Of the source it shows what was encoded.",
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
        # all that can be refused comes before the work
        check_comparable(image, edited, reconstructed)
        prefix = checked_prefix(filename_prefix, "edit", COMPARE)
        pictures = decode(vae, edited), decode(vae, reconstructed)
        grid = comparison(vae, image, pictures[1], pictures[0])
        with explained(prefix, COMPARE):
            saved = ui.ImageSaveHelper.save_images(
                pictures[0],
                filename_prefix=prefix,
                folder_type=io.FolderType.output,
                cls=cls,
            )
        shown = ui.PreviewImage(grid, cls=cls)
        return io.NodeOutput(*pictures, grid, ui=ui.SavedImages([*shown.values, *saved]))


class PivotPasteEdit(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotPasteEdit",
            display_name=PASTE,
            category=CATEGORY,
            description="Puts an edit into the picture itself, at full size and in its exact "
            "place. VAE Encode takes the middle of a picture whose sides are no multiple of 8. "
            "What is outside of the mask keeps every bit.",
            search_aliases=["paste edit", "composite edit", "stitch", "uncrop", "odd size"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE the picture was encoded with."),
                io.Image.Input("image", tooltip="The whole picture, as it went into VAE Encode."),
                io.Image.Input("edited", tooltip="The edit, from Decode and Compare."),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=256,
                    tooltip="Fades the mask's edges inwards over so many pixels. 0 pastes by the "
                    "mask as it is; the Edit Sampler's has soft edges already.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the edit shows: the mask of Edit Sampler, or one drawn on the "
                    "picture. Without it all that was encoded is pasted.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="One picture for each edit."),
                io.Mask.Output(display_name="mask", tooltip="The mask at the picture's size."),
            ],
        )

    @classmethod
    def execute(
        cls, vae: Any, image: Any, edited: Any, feather: int, mask: Any = None
    ) -> io.NodeOutput:
        return io.NodeOutput(*paste_edit(vae, image, edited, feather, mask))
