"""The node that loads the toy model."""

from __future__ import annotations

from comfy_api.latest import io

from ..toy.loader import load
from .sockets import CATEGORY


class PivotToyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotToyModel",
            display_name="Load Toy Model",
            category=CATEGORY,
            description="A very small text-to-image model that comes with the pack: coloured "
            "shapes in landscapes, "
            "128x128. It runs on any machine and lets every method be tried in seconds. For "
            "photographs "
            "use Load Checkpoint instead.",
            search_aliases=["pivot toy", "demo model", "tiny model"],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                io.Vae.Output(display_name="VAE"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load())
