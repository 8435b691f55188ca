"""The pack's own socket types and the inputs that several nodes share, each written once."""

from __future__ import annotations

from comfy_api.latest import io

from ..inversion import AUTO, CORRECTIONS

CATEGORY = "Pivot Edit"
Guidance = io.Custom("PIVOT_GUIDANCE")
Inversion = io.Custom("PIVOT_INVERSION")
Words = io.Custom("PIVOT_WORDS")


def model_input(tooltip: str) -> io.Model.Input:
    """The model, which every node uses in its own way."""
    return io.Model.Input("model", tooltip=tooltip)


def inversion_input() -> io.Input:
    """The inversion that a node works on."""
    return Inversion.Input(
        "inversion",
        tooltip="The inverted picture, from DDIM Inversion. It must come from this same model.",
    )


def edit_inputs() -> list[io.Input]:
    """The inputs of an edit, in the order of both edit nodes."""
    return [
        model_input(
            "The model to edit with, usually through the P2P Attention Controller. Any UNet "
            "checkpoint."
        ),
        inversion_input(),
        io.Conditioning.Input(
            "source",
            tooltip="The prompt of the picture as it is: the one the inversion was made with.",
        ),
        io.Conditioning.Input("target", tooltip="The prompt of the picture as it should become."),
        io.Conditioning.Input(
            "negative",
            tooltip="What unconditional rows read, usually the empty prompt. negative_prompt "
            "reads the source instead, "
            "null_text its own embeddings.",
        ),
        cfg_input(
            "Guidance of the edit. Higher follows the target prompt more and keeps less; 1 is none."
        ),
        correction_input(),
    ]


def cfg_input(tooltip: str) -> io.Input:
    """The guidance of an edit."""
    return io.Float.Input(
        "cfg",
        default=5.0,
        min=0.0,
        max=30.0,
        step=0.1,
        tooltip=f"{tooltip} Typical 4 to 9 (papers 7.5).",
    )


def correction_input() -> io.Input:
    """The correction of an edit, by name."""
    return io.Combo.Input(
        "correction",
        options=[AUTO, *CORRECTIONS],
        default=AUTO,
        tooltip="How the picture is kept on its trajectory. auto: as the inversion says that "
        "comes in, else direct; "
        + "; ".join(f"{kind.name}: {kind.label}" for kind in CORRECTIONS.values())
        + ".",
    )


def guidance_input() -> io.Input:
    """The guidance rule of an edit, if it has another than the plain one."""
    return Guidance.Input(
        "guidance",
        optional=True,
        tooltip="A guidance rule from CFG / Proximal Guidance; plain guidance without it.",
    )
