from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..attention import PromptToPrompt
from ..core.words import MODES
from ..host.patching import add_controller
from .sockets import CATEGORY, Words, model_input


def _fraction(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


class PivotPromptToPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotPromptToPrompt",
            display_name="P2P Attention Controller",
            category=CATEGORY,
            description="Prompt-to-Prompt: the edit takes over where the source picture looks, so that shapes and "
            "places stay while words change. Works on the fused attention of the host, at any resolution.",
            search_aliases=["p2p", "prompt-to-prompt", "attention replace", "attention refine"],
            inputs=[
                model_input("The model to patch; the model itself is left as it is."),
                Words.Input("words", tooltip="Which words correspond, from Prompt Pair."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="replace: swap words one for one (equal word counts); refine: add or remove words; "
                    "auto: replace where the counts agree, else refine.",
                ),
                _fraction(
                    "cross_start",
                    0.0,
                    "When cross-attention edits begin, as a fraction of the steps. Usually 0.",
                ),
                _fraction(
                    "cross_end",
                    0.8,
                    "When cross-attention edits end. Higher keeps more of the source's layout; 0.4 to 0.8.",
                ),
                _fraction(
                    "self_start",
                    0.0,
                    "When self-attention edits begin, as a fraction of the steps. Usually 0.",
                ),
                _fraction(
                    "self_end",
                    0.4,
                    "When self-attention edits end. Higher keeps more of the source's shapes; 0.2 to 0.8.",
                ),
                _fraction(
                    "self_limit",
                    0.25,
                    "Self-attention is edited in layers with at most this fraction of the latent's positions. 0.0625: "
                    "coarse layers only (as prompt-to-prompt), 0.25: as null-text inversion, 1: all.",
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL"), io.String.Output(display_name="alignment")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        words: Any,
        mode: str,
        cross_start: float,
        cross_end: float,
        self_start: float,
        self_end: float,
        self_limit: float,
    ) -> io.NodeOutput:
        alignment = words.align(mode)
        controller = PromptToPrompt(alignment, (cross_start, cross_end), (self_start, self_end), self_limit)
        return io.NodeOutput(add_controller(model, controller), f"{alignment.mode}: {alignment.note}")
