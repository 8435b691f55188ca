"""The nodes that save and load inversions."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.tasks import storage
from .sockets import CATEGORY, Inversion, inversion_input


class PivotSaveInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotSaveInversion",
            display_name=storage.SAVE,
            category=CATEGORY,
            description="Keeps an inversion in the output folder, with its prompt, its correction "
            "and its optimised "
            "embeddings, so that the picture can be edited again in another session without "
            "inverting it.",
            search_aliases=["save inversion", "keep inversion", "export inversion"],
            is_output_node=True,
            inputs=[
                inversion_input(),
                io.String.Input(
                    "filename_prefix",
                    default=storage.PREFIX,
                    tooltip="Where it is saved in the output folder; a number is put behind it.",
                ),
                io.Boolean.Input(
                    "half_precision",
                    default=False,
                    tooltip="Half the size. The picture then comes back a little less exactly; "
                    "the report says by how "
                    "much. Off keeps every bit.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    optional=True,
                    tooltip="The source prompt to keep with it. Empty keeps the one from Source "
                    "Prompt; needed only "
                    "where the text was encoded by another node.",
                ),
            ],
            outputs=[
                Inversion.Output(display_name="inversion"),
                io.String.Output(
                    display_name="file", tooltip="The name under which Load Inversion lists it."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, inversion: Any, filename_prefix: str, half_precision: bool, prompt: str = ""
    ) -> io.NodeOutput:
        name, report = storage.save(inversion, filename_prefix, half_precision, prompt)
        return io.NodeOutput(inversion, name, ui=ui.PreviewText(report))


class PivotLoadInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotLoadInversion",
            display_name=storage.LOAD,
            category=CATEGORY,
            description="An inversion that Save Inversion has kept. Give its prompt to Prompt "
            "Pair as source prompt, "
            "and the same model to the edit.",
            search_aliases=["load inversion", "open inversion", "import inversion"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=storage.listed(),
                    tooltip="The inversions in the input folder and, marked [output], in the "
                    "output folder.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model of the edit: refused here already if the inversion was "
                    "made with another one.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The picture of the edit, from VAE Encode: refused here already if "
                    "its size is another.",
                ),
            ],
            outputs=[
                Inversion.Output(display_name="inversion"),
                io.String.Output(
                    display_name="prompt", tooltip="What the picture shows, for Prompt Pair."
                ),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        return storage.refusal(file) or True

    @classmethod
    def fingerprint_inputs(cls, file: str, **inputs: Any) -> str:
        return storage.stamp(file)

    @classmethod
    def execute(
        cls, file: str, model: Any = None, latent: dict[str, Any] | None = None
    ) -> io.NodeOutput:
        trajectory, report = storage.load(file, model, latent)
        return io.NodeOutput(trajectory, trajectory.prompt, report, ui=ui.PreviewText(report))
