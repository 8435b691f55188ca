from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..core.schedule import LEVELS
from ..host.tasks.inversion import InversionParts, invert_latent, with_correction
from ..inversion import (
    INVERTERS,
    Ddim,
    Direct,
    FixedPoint,
    NegativePrompt,
    inverter_named,
)
from ..inversion.ddim import EVALUATIONS
from .sockets import (
    CATEGORY,
    Inversion,
    correction_input,
    inversion_input,
    model_input,
)


def _method_inputs() -> list[io.Input]:
    """Which way to noise, and at which guidance."""
    return [
        io.Combo.Input(
            "method",
            options=list(INVERTERS),
            default=Ddim.name,
            optional=True,
            tooltip="; ".join(f"{kind.name}: {kind.label}" for kind in INVERTERS.values())
            + ". fixed_point costs as many evaluations a step as it iterates.",
        ),
        io.Int.Input(
            "iterations",
            default=FixedPoint.iterations,
            min=0,
            max=50,
            optional=True,
            tooltip="Of fixed_point, at most: it stops where the step no longer changes, or "
            "changes more. "
            "Higher is more exact; 3 to 10.",
        ),
        io.Float.Input(
            "cfg",
            default=1.0,
            min=0.0,
            max=30.0,
            step=0.1,
            optional=True,
            tooltip="Guidance of the inversion. 1 as in the papers; with fixed_point the picture "
            "also comes "
            "back at a higher one, if the edit uses the same and correction none.",
        ),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="Only for a cfg other than 1: what unconditional rows read, as for the edit.",
        ),
    ]


class PivotDDIMInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotDDIMInversion",
            display_name="DDIM Inversion",
            category=CATEGORY,
            description="Finds the noise from which the model makes this picture, and keeps the "
            "whole way there. "
            "Do it once, edit often. The report says how exactly the picture comes back.",
            search_aliases=["invert", "unsampler", "ddim inversion", "real image editing"],
            inputs=[
                model_input(
                    "The model to invert into: the same checkpoint and LoRA as for the edit."
                ),
                io.Latent.Input("latent", tooltip="The picture, from VAE Encode."),
                io.Conditioning.Input(
                    "source", tooltip="What the picture shows, from Source Prompt."
                ),
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
                    tooltip="The clean end of the noise levels. reference: the model's first "
                    "level, as in the papers; "
                    "host: zero, as in ComfyUI's ddim_uniform.",
                ),
                io.Combo.Input(
                    "evaluation",
                    options=list(EVALUATIONS),
                    default=Ddim.evaluation,
                    tooltip="Of ddim: where the network is asked. reference: at the time of the "
                    "upper level, as public "
                    "implementations do, and closer; naive: of the lower level.",
                ),
                io.Boolean.Input(
                    "check_reconstruction",
                    default=True,
                    tooltip="Also run the way back and report how exactly the latent returns. "
                    "Costs as much as the "
                    "inversion, once.",
                ),
                *_method_inputs(),
            ],
            outputs=[
                Inversion.Output(display_name="inversion"),
                io.Float.Output(
                    display_name="psnr",
                    tooltip="dB in latent space, at the inversion's cfg; 0 if not checked.",
                ),
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
        method: str = Ddim.name,
        iterations: int = FixedPoint.iterations,
        cfg: float = 1.0,
        negative: Any = None,
    ) -> io.NodeOutput:
        inverter = inverter_named(method, evaluation=evaluation, iterations=iterations)
        trajectory, psnr, report = invert_latent(
            model, latent, source, steps, levels, inverter, check_reconstruction, negative, cfg
        )
        return io.NodeOutput(trajectory, psnr, report, ui=ui.PreviewText(report))


class PivotNegativePromptInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotNegativePromptInversion",
            display_name="Negative-Prompt Inversion",
            category=CATEGORY,
            description="Marks an inversion to be replayed with the source prompt as the negative "
            "one: as exact as the "
            "inversion at cfg 1, at no cost. Edit nodes set to auto follow it.",
            search_aliases=["npi", "negative prompt inversion", "proxnpi"],
            inputs=[
                inversion_input(),
                io.Float.Input(
                    "interpolation",
                    default=NegativePrompt.interpolation,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="From the source prompt (0) to the negative prompt (1), along the "
                    "sphere. Higher edits "
                    "more freely and comes back less exactly; 0 to 0.5, papers 0.",
                ),
                io.Boolean.Input(
                    "keep_source",
                    default=NegativePrompt.keep_source,
                    tooltip="The source row reads the source prompt whatever the interpolation: "
                    "exact, while targets "
                    "are free. ProxMasaCtrl has it on, with interpolation 1.",
                ),
                io.Float.Input(
                    "start",
                    default=NegativePrompt.start,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Before this fraction of the steps the negative prompt is read; "
                    "papers 0.",
                ),
            ],
            outputs=[Inversion.Output(display_name="inversion")],
        )

    @classmethod
    def execute(cls, inversion: Any, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(with_correction(inversion, NegativePrompt(**options)))


class PivotDirectInversion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotDirectInversion",
            display_name="Direct Inversion",
            category=CATEGORY,
            description="Marks an inversion to be replayed with its source row set from the "
            "trajectory, which is "
            "exact at any cfg. Only needed for the reference's own form and its ablations: edit "
            "nodes set to auto are "
            "direct.",
            search_aliases=["pnp inversion", "direct inversion", "source branch correction"],
            inputs=[
                inversion_input(),
                io.Boolean.Input(
                    "legacy",
                    default=Direct.legacy,
                    tooltip="Adds the difference to the source row, as the reference does, "
                    "instead of setting the row. "
                    "The same to the last bit but one, and costs the source's rows.",
                ),
                io.Float.Input(
                    "scale",
                    default=Direct.scale,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the difference is added. 1 is exact; the paper's "
                    "ablation tries 0.4 and 0.8.",
                ),
                io.Int.Input(
                    "every",
                    default=Direct.every,
                    min=1,
                    max=999,
                    tooltip="Only at every k-th step. 1 is exact; the paper's ablation tries 2 to "
                    "49.",
                ),
            ],
            outputs=[Inversion.Output(display_name="inversion")],
        )

    @classmethod
    def execute(cls, inversion: Any, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(with_correction(inversion, Direct(**options)))


class PivotInversionParts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotInversionParts",
            display_name="Inversion Parts",
            category=CATEGORY,
            description="An inversion as the parts of SamplerCustomAdvanced. The latent holds the "
            "source rows and "
            "then the target rows; take them apart with Latent From Batch.",
            search_aliases=["replay sampler", "inversion sigmas", "inversion noise"],
            inputs=[
                model_input("The model of the inversion, for the scale of its latents."),
                inversion_input(),
                correction_input(),
                io.Int.Input(
                    "targets",
                    default=1,
                    min=1,
                    max=64,
                    optional=True,
                    tooltip="How many target prompts the Edit Guider has: 1, and 1 more for each "
                    "Add Target.",
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
    def execute(
        cls, model: Any, inversion: Any, correction: str, targets: int = 1
    ) -> io.NodeOutput:
        parts = InversionParts.of(model, inversion, correction, targets)
        return io.NodeOutput(parts.sampler, parts.sigmas, parts.noise, parts.latent)
