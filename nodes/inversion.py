"""The nodes that invert a picture and take an inversion apart."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io, ui

from ..core.options import Option, options_of
from ..core.schedule import LEVELS
from ..host.tasks.inversion import MOST_TARGETS, InversionParts, invert_latent
from ..inversion import AUTO, INVERTERS, PLAIN, inverter_for
from .methods import input_of
from .sockets import (
    CATEGORY,
    Inversion,
    correction_input,
    inversion_input,
    model_input,
)


def inverter_options() -> dict[str, Option]:
    """The options of all inversion methods.

    Where several have one of a name, the first method's stands for all.
    """
    options: dict[str, Option] = {}
    for kind in INVERTERS.values():
        for option in options_of(kind):
            options.setdefault(option.name, option)
    return {name: option for name, option in options.items() if option.shown}


PLACED = ("evaluation", "iterations")
"""Options of inversion methods that stand in the middle of the node, where older workflows have
them. Others stand at its end."""


def _placed(name: str) -> list[io.Input]:
    """The input of an option, if a method has it."""
    return [input_of(option) for option in inverter_options().values() if option.name == name]


def _later_inputs() -> list[io.Input]:
    """The inputs of all other options, optional, so that older workflows go on working."""
    later = [option for name, option in inverter_options().items() if name not in PLACED]
    return [input_of(dataclasses.replace(option, optional=True)) for option in later]


def _method_inputs() -> list[io.Input]:
    """The inputs that say which way to noise is taken, and at which guidance."""
    return [
        io.Combo.Input(
            "method",
            options=[*INVERTERS, AUTO],
            default=PLAIN,
            optional=True,
            tooltip="; ".join(f"{kind.name}: {kind.label}" for kind in INVERTERS.values())
            + ". fixed_point costs as many evaluations a step as it iterates. On the toy model, in "
            "few steps, uni is exact and free: edits score as after 50 steps of ddim. ddim is "
            "near: they keep more of the picture. auto: ddim at cfg 1, else uni.",
        ),
        *_placed("iterations"),
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
        *_later_inputs(),
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
            "Do it once, edit often. Inversion Report says how good it is.",
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
                    tooltip="More steps come back more exactly and cost more. For edits at cfg 2, "
                    "10 do as well as 20 on the toy model; at 7.5 they do not: 20 to 50. Papers "
                    "50.",
                ),
                io.Combo.Input(
                    "levels",
                    options=list(LEVELS),
                    default="reference",
                    tooltip="The clean end of the noise levels. reference: the model's first "
                    "level, as in the papers; "
                    "host: zero, as in ComfyUI's ddim_uniform.",
                    advanced=True,
                ),
                *_placed("evaluation"),
                io.Boolean.Input(
                    "check_reconstruction",
                    default=False,
                    tooltip="Also run the way back and report how exactly the latent returns "
                    "without correction. Costs as much as the inversion, once. Under direct, which "
                    "auto takes at cfg 1, it returns exactly in any case.",
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
        check_reconstruction: bool,
        method: str = PLAIN,
        cfg: float = 1.0,
        negative: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        inverter = inverter_for(method, cfg, **options)
        trajectory, psnr, report = invert_latent(
            model, latent, source, steps, levels, inverter, check_reconstruction, negative, cfg
        )
        return io.NodeOutput(trajectory, psnr, report, ui=ui.PreviewText(report))


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
                    max=MOST_TARGETS,
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
