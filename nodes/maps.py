"""The nodes that show what runs have left: heat maps of words, and the mask of a local blend."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..core.options import from_inputs
from ..host.tasks.masks import MaskOptions, check_blended, word_heat
from .methods import inputs_of
from .sockets import CATEGORY, model_input

_SAMPLES = "The latent exactly as the sampler gave it: it tells which run is meant."


class PivotAttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotAttentionMaps",
            display_name="Attention Maps",
            category=CATEGORY,
            description="Shows, word by word, where the model looked while it made a picture, and "
            "gives a mask of "
            "each word. Changing the words or the mask settings does not sample again.",
            search_aliases=["daam", "word heat map", "word mask", "attention mask"],
            inputs=[
                model_input("The model behind Record Attention that the sampler used."),
                io.Latent.Input("samples", tooltip=_SAMPLES),
                io.Image.Input(
                    "image",
                    tooltip="The picture to lay the maps over, usually these samples decoded.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder, to find the words in the prompt."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="The text that the sampler's conditioning was made from.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="Words or phrases to show, e.g. `cat, red sofa`. Empty shows every "
                    "word.",
                ),
                *inputs_of(MaskOptions),
            ],
            outputs=[
                io.Image.Output(display_name="heat maps", tooltip="One picture for each word."),
                io.Image.Output(
                    display_name="grid", tooltip="All words with their names in one picture."
                ),
                io.Mask.Output(
                    display_name="masks", tooltip="One mask for each word, in the same order."
                ),
                io.String.Output(display_name="words", tooltip="The words in their order."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        samples: dict[str, Any],
        image: Any,
        clip: Any,
        prompt: str,
        words: str,
        **mask: Any,
    ) -> io.NodeOutput:
        options = from_inputs(MaskOptions, mask)
        shown = word_heat(model, samples["samples"], image, clip, prompt, words, options)
        return io.NodeOutput(shown.pictures, shown.grid, shown.masks, ", ".join(shown.words))


class PivotBlendMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotBlendMask",
            display_name="Local Blend Mask",
            category=CATEGORY,
            description="The mask that Local Blend used in its last step, for samples of a stock "
            "sampler, and which share of the picture it takes. The Edit Sampler gives both by "
            "itself.",
            search_aliases=["blend mask", "local blend mask"],
            inputs=[
                model_input("The model behind Local Blend that the sampler used."),
                io.Latent.Input("samples", tooltip=_SAMPLES),
            ],
            outputs=[
                io.Mask.Output(display_name="mask"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, model: Any, samples: dict[str, Any]) -> io.NodeOutput:
        mask, report = check_blended(model, samples["samples"])
        return io.NodeOutput(mask, report, ui=ui.PreviewText(report))
