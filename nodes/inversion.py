from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..core.schedule import LEVELS
from ..host.inversion import InversionParts, invert_latent
from ..inversion import CORRECTIONS
from ..inversion.ddim import EVALUATIONS
from .sockets import CATEGORY, Inversion, inversion_input, model_input


class PivotDDIMInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotDDIMInversion",
            display_name="DDIM Inversion",
            category=CATEGORY,
            description="Finds the noise from which the model makes this picture, and keeps the whole way there. "
            "Do it once, edit often. The report says how exactly the picture comes back.",
            search_aliases=["invert", "unsampler", "ddim inversion", "real image editing"],
            inputs=[
                model_input("The model to invert into: the same checkpoint and LoRA as for the edit."),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Conditioning.Input("source", tooltip="What the picture shows, from Source Prompt."),
                io.Int.Input(
                    "steps",
                    default=50,
                    min=1,
                    max=999,
                    tooltip="More steps come back more exactly and cost more. 20 to 50; papers 50.",
                ),
                io.Combo.Input(
                    "levels",
                    options=list(LEVELS),
                    default="reference",
                    tooltip="The clean end of the noise levels. reference: the model's first level, as in the papers; "
                    "host: zero, as in ComfyUI's ddim_uniform.",
                ),
                io.Combo.Input(
                    "evaluation",
                    options=list(EVALUATIONS),
                    default="reference",
                    tooltip="Where the network is asked. reference: at the time of the upper level, as all public "
                    "implementations do, and closer; naive: of the lower level.",
                ),
                io.Boolean.Input(
                    "check_reconstruction",
                    default=True,
                    tooltip="Also run the way back and report how exactly the latent returns. Costs as much as the "
                    "inversion, once.",
                ),
            ],
            outputs=[
                Inversion.Output(display_name="inversion"),
                io.Float.Output(display_name="psnr", tooltip="dB in latent space, at guidance 1; 0 if not checked."),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        latent: dict[str, Any],
        source: Any,
        steps: int,
        levels: str,
        evaluation: str,
        check_reconstruction: bool,
    ) -> io.NodeOutput:
        trajectory, psnr, report = invert_latent(model, latent, source, steps, levels, evaluation, check_reconstruction)
        return io.NodeOutput(trajectory, psnr, report, ui=ui.PreviewText(report))


class PivotInversionParts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotInversionParts",
            display_name="Inversion Parts",
            category=CATEGORY,
            description="An inversion as the parts of SamplerCustomAdvanced. The latent holds the source rows and "
            "then the target rows; take them apart with Latent From Batch.",
            search_aliases=["replay sampler", "inversion sigmas", "inversion noise"],
            inputs=[
                model_input("The model of the inversion, for the scale of its latents."),
                inversion_input(),
                io.Combo.Input(
                    "correction",
                    options=list(CORRECTIONS),
                    default="direct",
                    tooltip="As on the Edit Guider; set both alike.",
                ),
                io.Int.Input(
                    "targets",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="How many target prompts the Edit Guider has: 1, and 1 more for each Add Target.",
                ),
            ],
            outputs=[
                io.Sampler.Output(display_name="sampler"),
                io.Sigmas.Output(display_name="sigmas"),
                io.Noise.Output(display_name="noise"),
                io.Latent.Output(display_name="latent"),
            ],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Any, correction: str, targets: int = 1) -> io.NodeOutput:
        parts = InversionParts.of(model, inversion, correction, targets)
        return io.NodeOutput(parts.sampler, parts.sigmas, parts.noise, parts.latent)
