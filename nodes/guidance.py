from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..guidance import Proximal
from ..guidance.proximal import OPERATOR_NAMES, POPULATIONS
from ..host.tasks.editing import edit_guider
from ..host.tasks.guidance import (
    CUSTOM,
    PLAIN,
    PRESETS,
    guidance,
)
from .sockets import CATEGORY, Guidance, edit_inputs


def _fraction(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def threshold_inputs() -> list[io.Input]:
    """What guides, and when."""
    return [
        io.Combo.Input(
            "preset",
            options=[CUSTOM, *PRESETS],
            default=CUSTOM,
            tooltip="The papers' own settings, in place of all values below; custom takes the "
            "values below.",
        ),
        io.Combo.Input(
            "operator",
            options=[PLAIN, *OPERATOR_NAMES],
            default=Proximal.operator,
            tooltip="What becomes of differences between the prompts' predictions. cfg: all "
            "guide; soft: shrunk by "
            "the threshold (the reference's l0); hard: only those above it; legacy_l1: the "
            "reference's l1, which turns "
            "some signs.",
        ),
        _fraction(
            "quantile",
            Proximal.quantile,
            "The part of the differences that does not guide. Higher keeps more and edits less; "
            "0.4 to 0.8.",
        ),
        io.Float.Input(
            "threshold",
            default=Proximal.threshold,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="A fixed threshold in units of noise, in the quantile's place; 0 takes the "
            "quantile. 0.01 to 0.2.",
        ),
        io.Combo.Input(
            "population",
            options=list(POPULATIONS),
            default=Proximal.population,
            tooltip="What the quantile is taken over. target: each target's own differences; "
            "legacy: source and target "
            "together as in the reference, whose 0.7 is then the target's 0.4.",
        ),
        _fraction(
            "start",
            Proximal.window[0],
            "First thresholded step, as a fraction of all; before it guidance is plain.",
        ),
        _fraction(
            "end",
            Proximal.window[1],
            "Last thresholded step, as a fraction of all; after it guidance is plain.",
        ),
    ]


def pull_inputs() -> list[io.Input]:
    """What else moves latents, and the source's guidance."""
    return [
        _fraction(
            "inversion_rate",
            PRESETS["proxnpi"].inversion_rate,
            "Inversion guidance: how far latents move to the trajectory after a step where "
            "nothing is edited. 1 keeps "
            "these places exactly; 0 is off, and right where something is to move away. Papers "
            "0.1 to 1.",
        ),
        _fraction(
            "reconstruction_rate",
            Proximal.reconstruction_rate,
            "Reconstruction guidance: the same for the predicted picture, towards the source "
            "picture. 0 is off.",
        ),
        _fraction(
            "guide_start",
            Proximal.guide_window[0],
            "First step with either, as a fraction of all. Lower keeps more; papers 0.4 to 0.6.",
        ),
        _fraction(
            "guide_end", Proximal.guide_window[1], "Last step with either, as a fraction of all."
        ),
        io.Int.Input(
            "dilation",
            default=Proximal.dilation,
            min=0,
            max=32,
            tooltip="By how many latent pixels (8 picture pixels) edited places grow before that. "
            "Higher keeps less.",
        ),
        io.Float.Input(
            "source_cfg",
            default=0.0,
            min=0.0,
            max=30.0,
            step=0.1,
            tooltip="Guidance of the source row alone; 0 takes the edit's. ProxMasaCtrl has 1.",
        ),
    ]


def guidance_inputs() -> list[io.Input]:
    """What a guidance rule is made of, in the order of both nodes."""
    return [*threshold_inputs(), *pull_inputs()]


class PivotProximalGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotProximalGuidance",
            display_name="CFG / Proximal Guidance",
            category=CATEGORY,
            description="Lets only what differs enough between the prompts guide the edit, and "
            "pulls the rest back to "
            "the picture. Connect it to the Edit Sampler.",
            search_aliases=[
                "proxnpi",
                "proxedit",
                "proximal guidance",
                "inversion guidance",
                "per-row cfg",
            ],
            inputs=guidance_inputs(),
            outputs=[Guidance.Output(display_name="guidance")],
        )

    @classmethod
    def execute(cls, **options: Any) -> io.NodeOutput:
        return io.NodeOutput(guidance(**options))


class PivotProximalGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotProximalGuider",
            display_name="CFG / Proximal Guider",
            category=CATEGORY,
            description="The Edit Guider with proximal guidance, for SamplerCustomAdvanced with "
            "Inversion Parts.",
            search_aliases=["proxnpi", "proxedit", "proximal guider", "per-row cfg"],
            inputs=[*edit_inputs(), *guidance_inputs()],
            outputs=[io.Guider.Output(display_name="guider")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        inversion: Any,
        source: Any,
        target: Any,
        negative: Any,
        cfg: float,
        correction: str,
        **options: Any,
    ) -> io.NodeOutput:
        rule = guidance(**options)
        return io.NodeOutput(
            edit_guider(model, inversion, source, target, negative, cfg, correction, rule)
        )
