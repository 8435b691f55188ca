"""The nodes that read prompts and make conditioning of them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..host.text.conditioning import add_target, stack_rows
from ..host.text.prompts import check_prompt, encode, read_pair
from .sockets import CATEGORY, Words

_CLIP = "The text encoder, from Load Checkpoint or Load Toy Model."
_SOURCE = (
    "The picture as it is, in plain words, e.g. 'a cat on a sofa'. The better it fits, the "
    "cleaner the edit."
)


class PivotSourcePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotSourcePrompt",
            display_name="Source Prompt",
            category=CATEGORY,
            description="Describes the picture as it is. Feed the conditioning to the inversion "
            "and the text to the "
            "Prompt Pair: the inversion then does not depend on the target prompt, and is not run "
            "again when the "
            "target changes.",
            search_aliases=["pivot prompt", "source text"],
            inputs=[
                io.Clip.Input("clip", tooltip=_CLIP),
                io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip=_SOURCE),
            ],
            outputs=[
                io.Conditioning.Output(display_name="source"),
                io.String.Output(display_name="text"),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, prompt: str) -> io.NodeOutput:
        return io.NodeOutput(encode(clip, check_prompt(prompt, "source")), prompt)


class PivotPromptPair(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotPromptPair",
            display_name="Prompt Pair",
            category=CATEGORY,
            description="Encodes the source and the target prompt and finds which words "
            "correspond, for the P2P "
            "Attention Controller.",
            search_aliases=["p2p prompts", "prompt to prompt", "word alignment"],
            inputs=[
                io.Clip.Input("clip", tooltip=_CLIP),
                io.String.Input(
                    "source_prompt", multiline=True, dynamic_prompts=True, tooltip=_SOURCE
                ),
                io.String.Input(
                    "target_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The picture as it should become. Change only the words that should "
                    "change; keep the "
                    "others and their order.",
                ),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the edit should move away from; usually empty, as in the papers.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="source"),
                io.Conditioning.Output(display_name="target"),
                Words.Output(display_name="words"),
                io.Conditioning.Output(display_name="negative"),
            ],
        )

    @classmethod
    def execute(
        cls, clip: Any, source_prompt: str, target_prompt: str, negative_prompt: str = ""
    ) -> io.NodeOutput:
        pair = read_pair(clip, source_prompt, target_prompt)
        texts = (source_prompt, target_prompt, negative_prompt)
        source, target, negative = (encode(clip, text) for text in texts)
        return io.NodeOutput(source, target, (pair,), negative)


class PivotAddTarget(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotAddTarget",
            display_name="Add Target",
            category=CATEGORY,
            description="One more target prompt for the same source. All targets are edited in "
            "one run and share the "
            "source's work. Chain as many as you like.",
            search_aliases=["several targets", "more edits", "batch edit"],
            inputs=[
                io.Clip.Input("clip", tooltip=_CLIP),
                Words.Input(
                    "words", tooltip="The words so far, from Prompt Pair or another Add Target."
                ),
                io.Conditioning.Input(
                    "target", tooltip="The targets so far, from the same node as the words."
                ),
                io.String.Input(
                    "target_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="Another way the picture should become.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="target"),
                Words.Output(display_name="words"),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, words: Any, target: Any, target_prompt: str) -> io.NodeOutput:
        return io.NodeOutput(*add_target(clip, words, target, target_prompt))


class PivotRowsForKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PivotRowsForKSampler",
            display_name="Rows for KSampler",
            category=CATEGORY,
            description="Edits between generated pictures with the stock KSampler, as in the "
            "papers: connect this as "
            "the positive conditioning and an empty latent with batch_size 2. The first picture "
            "is the source, the "
            "second the edit, from the same noise.",
            search_aliases=["generated edit", "p2p ksampler", "prompt rows"],
            inputs=[
                io.Conditioning.Input("source", tooltip="The prompt of the first picture."),
                io.Conditioning.Input(
                    "target", tooltip="The prompt of the edit, or of several from Add Target."
                ),
            ],
            outputs=[io.Conditioning.Output(display_name="positive")],
        )

    @classmethod
    def execute(cls, source: Any, target: Any) -> io.NodeOutput:
        return io.NodeOutput(stack_rows(source, target, 1, "Rows for KSampler"))
