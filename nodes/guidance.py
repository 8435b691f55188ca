"""The nodes of guidance rules, alone and as a guider."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io, ui

from ..core.options import in_words, options_of
from ..guidance.proximal import Proximal
from ..host.tasks.editing import edit_guider
from ..host.tasks.guidance import CUSTOM, PLAIN, PRESETS, described, guidance
from .methods import input_of
from .sockets import CATEGORY, Guidance, edit_inputs


def guidance_inputs() -> list[io.Input]:
    """The inputs of a guidance rule, in the order of both nodes.

    They are a preset, or proximal guidance's own options, with plain guidance among its operators.
    Pulls are on, as in ProxNPI.
    """
    options = {option.name: option for option in options_of(Proximal)}
    operator, rate = options["operator"], options["inversion_rate"]
    options |= {
        "operator": dataclasses.replace(operator, names=(PLAIN, *operator.names)),
        "inversion_rate": dataclasses.replace(rate, default=PRESETS["proxnpi"].inversion_rate),
    }
    # what a preset uses, the values below do not show
    uses = "; ".join(f"{name}: {_settings(rule)}" for name, rule in PRESETS.items())
    preset = io.Combo.Input(
        "preset",
        options=[CUSTOM, *PRESETS],
        default=CUSTOM,
        tooltip="The papers' own settings, in place of all values below, which then count for "
        f"nothing; custom takes the values below. {uses}.",
    )
    return [preset, *map(input_of, options.values())]


def _settings(rule: Proximal) -> str:
    """What a preset sets."""
    return f"operator {rule.operator}, {in_words(rule, changed=True)}"


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
        rule = guidance(**options)
        return io.NodeOutput(rule, ui=ui.PreviewText(described(rule)))


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
