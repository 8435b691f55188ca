from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..attention import LocalBlend, MasaCtrl, PromptToPrompt
from ..attention.masactrl import AutoMask
from ..core.words import MAPPERS, MODES
from ..host.tasks import controls
from .sockets import CATEGORY, Words, model_input


def _fraction(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def _words_input() -> io.Input:
    return Words.Input("words", tooltip="Which words correspond, from Prompt Pair or Add Target.")


class PivotPromptToPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotPromptToPrompt",
            display_name=PromptToPrompt.title,
            category=CATEGORY,
            description="Prompt-to-Prompt: the edit takes over where the source picture looks, so "
            "that shapes and "
            "places stay while words change. Works on the fused attention of the host, at any "
            "resolution.",
            search_aliases=[
                "p2p",
                "prompt-to-prompt",
                "attention replace",
                "attention refine",
                "attention reweight",
            ],
            inputs=[
                model_input("The model to patch; the model itself is left as it is."),
                _words_input(),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="auto",
                    tooltip="replace: swap words one for one (equal word counts); refine: add or "
                    "remove words; "
                    "auto: replace where the counts agree, else refine; reweight: by position, "
                    "for weights alone.",
                ),
                _fraction(
                    "cross_start",
                    PromptToPrompt.cross[0],
                    "When cross-attention edits begin, as a fraction of the steps. Usually 0.",
                ),
                _fraction(
                    "cross_end",
                    PromptToPrompt.cross[1],
                    "When cross-attention edits end. Higher keeps more of the source's layout; "
                    "0.4 to 0.8.",
                ),
                _fraction(
                    "self_start",
                    PromptToPrompt.self_[0],
                    "When self-attention edits begin, as a fraction of the steps. Usually 0.",
                ),
                _fraction(
                    "self_end",
                    PromptToPrompt.self_[1],
                    "When self-attention edits end. Higher keeps more of the source's shapes; 0.2 "
                    "to 0.8.",
                ),
                _fraction(
                    "self_limit",
                    PromptToPrompt.self_limit,
                    "Self-attention is edited in layers with at most this fraction of the "
                    "latent's positions. 0.0625: "
                    "coarse layers only (as prompt-to-prompt), 0.25: as null-text inversion, 1: "
                    "all.",
                ),
                io.String.Input(
                    "word_weights",
                    default="",
                    optional=True,
                    tooltip="How strongly words of the target prompt act, e.g. `shiny: 2, red: "
                    "0`. Above 1 more, below "
                    "1 less, 0 not at all, negative the opposite; -2 to 5. Works while the cross "
                    "window is open.",
                ),
                io.String.Input(
                    "word_windows",
                    default="",
                    optional=True,
                    tooltip="Cross windows of single words, e.g. `star: 0-0.3, red: 0.9`. A "
                    "shorter window lets this "
                    "word take a shape of its own; other words keep cross_start and cross_end.",
                ),
                io.Combo.Input(
                    "mapper",
                    options=list(MAPPERS),
                    default="fixed",
                    optional=True,
                    tooltip="fixed: attention is never lost between words; legacy: the table of "
                    "the public "
                    "implementations, to compare with their results.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.String.Output(display_name="alignment"),
            ],
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
        word_weights: str = "",
        word_windows: str = "",
        mapper: str = "fixed",
    ) -> io.NodeOutput:
        cross, self_ = (cross_start, cross_end), (self_start, self_end)
        patched, note = controls.prompt_to_prompt(
            model, words, mode, cross, self_, self_limit, word_weights, word_windows, mapper
        )
        return io.NodeOutput(patched, note, ui=ui.PreviewText(note))


class PivotLocalBlend(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotLocalBlend",
            display_name=LocalBlend.title,
            category=CATEGORY,
            description="Keeps everything outside of a region exactly as in the source. The "
            "region is where the "
            "model looks for the words you name, or a mask, or both. Chains with the other "
            "controllers in any order.",
            search_aliases=["p2p local blend", "blend words", "edit mask", "localblend"],
            inputs=[
                model_input("The model to patch; the model itself is left as it is."),
                io.String.Input(
                    "blend_words",
                    default="",
                    tooltip="What changes, before and after, e.g. `cat, dog`; all words that name "
                    "it show best where "
                    "it is, e.g. `striped, red, ball`. Words of either prompt; a replaced word "
                    "stands for its "
                    "counterpart too. May be empty with subtract_words or a mask.",
                ),
                io.String.Input(
                    "subtract_words",
                    default="",
                    tooltip="What must not change although it lies there, e.g. `hat`. Alone: "
                    "everything else may "
                    "change, as for a new background. Usually empty.",
                ),
                _fraction(
                    "threshold",
                    LocalBlend.threshold,
                    "Which share of the strongest attention still belongs to the region. Higher "
                    "makes it smaller; "
                    "0.2 to 0.6.",
                ),
                _fraction(
                    "subtract_threshold",
                    LocalBlend.subtract_threshold,
                    "The same for subtract_words. Higher subtracts less; 0.2 to 0.6.",
                ),
                _fraction(
                    "start",
                    LocalBlend.start,
                    "From which fraction of the steps on. Earlier keeps more of the surroundings; "
                    "the region is found "
                    "more surely later. 0 to 0.3.",
                ),
                io.Boolean.Input(
                    "pool",
                    default=LocalBlend.pool,
                    tooltip="Widen the words' maps by one position before the threshold, as in "
                    "the paper. Off keeps "
                    "more of the surroundings.",
                ),
                Words.Input(
                    "words",
                    optional=True,
                    tooltip="For blend_words: which words there are and correspond, from Prompt "
                    "Pair or Add Target.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the edit may show (white), of any size. Alone, or as a limit "
                    "to the words' region.",
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        blend_words: str,
        subtract_words: str,
        threshold: float,
        subtract_threshold: float,
        start: float,
        pool: bool,
        words: Any = None,
        mask: Any = None,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            controls.local_blend(
                model,
                words or (),
                blend_words,
                subtract_words,
                threshold,
                subtract_threshold,
                start,
                pool,
                mask,
            )
        )


class PivotMasaCtrl(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotMasaCtrl",
            display_name=MasaCtrl.title,
            category=CATEGORY,
            description="The edit keeps the look of the source and takes its layout from the "
            "target prompt: another "
            "pose, place or shape of the same thing. Under correction direct its reference is the "
            "inverted picture "
            "itself, under none what sampling makes of it. For changes of colour or material use "
            "the P2P Attention "
            "Controller.",
            search_aliases=["masactrl", "mutual self attention", "non-rigid edit", "pose edit"],
            inputs=[
                model_input("The model to patch; the model itself is left as it is."),
                io.Combo.Input(
                    "mode",
                    options=["plain", "union"],
                    default="plain",
                    tooltip="plain: the target sees only the source's content; union: its own "
                    "too, for things that "
                    "the source does not have.",
                ),
                io.String.Input(
                    "layers",
                    default="auto",
                    tooltip="Where: auto (the finer decoder layers, as in the paper), or e.g. "
                    "`up.2-3`, `mid, up.1`, "
                    "`up.1.2`, all. stage.level.number as in diffusers. More layers keep more of "
                    "the source.",
                ),
                _fraction(
                    "start",
                    MasaCtrl.start,
                    "From which fraction of the steps on. Later gives the layout more freedom; "
                    "0.04 to 0.4 (paper: "
                    "step 4 of 50).",
                ),
                _fraction(
                    "end",
                    MasaCtrl.end,
                    "Until which fraction of the steps. Earlier frees details; usually 1.",
                ),
                Words.Input(
                    "words",
                    optional=True,
                    tooltip="For mask_words: which words there are, from Prompt Pair.",
                ),
                io.String.Input(
                    "mask_words",
                    default="",
                    optional=True,
                    tooltip="The object, e.g. `cat`: object and surroundings then only look at "
                    "their own kind in the "
                    "source. Empty: no automatic mask.",
                ),
                io.Float.Input(
                    "mask_threshold",
                    default=AutoMask.threshold,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Of the automatic mask. Higher makes the object smaller; 0.1 to 0.5.",
                ),
                io.Mask.Input(
                    "source_mask",
                    optional=True,
                    tooltip="Where the object is in the source (white), instead of the automatic "
                    "mask.",
                ),
                io.Mask.Input(
                    "target_mask",
                    optional=True,
                    tooltip="Where the object shall be in the edit (white). Without it and "
                    "without mask_words the "
                    "source_mask counts.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.String.Output(display_name="layers"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        mode: str,
        layers: str,
        start: float,
        end: float,
        words: Any = None,
        mask_words: str = "",
        mask_threshold: float = AutoMask.threshold,
        source_mask: Any = None,
        target_mask: Any = None,
    ) -> io.NodeOutput:
        union = mode == "union"
        patched, note = controls.masactrl(
            model,
            layers,
            (start, end),
            union,
            words,
            mask_words,
            mask_threshold,
            source_mask,
            target_mask,
        )
        return io.NodeOutput(patched, note, ui=ui.PreviewText(note))
