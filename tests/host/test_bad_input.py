"""Everything that should be refused is refused through the API, with the node's name and what to
do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import graphs
from tools.client import Client, Graph, ServerError

pytestmark = pytest.mark.server


def empty_source(graph: Graph) -> Graph:
    graphs.inputs(graph, "PivotSourcePrompt")["prompt"] = "  "
    return graph


def empty_target(graph: Graph) -> Graph:
    graphs.inputs(graph, "PivotPromptPair")["target_prompt"] = ""
    return graph


def impossible_alignment(graph: Graph) -> Graph:
    graphs.inputs(graph, "PivotPromptPair")["target_prompt"] = graphs.SCENE.caption + " at night"
    graphs.inputs(graph, "PivotPromptToPrompt")["mode"] = "replace"
    return graph


def zero_steps(graph: Graph) -> Graph:
    graphs.inputs(graph, "PivotDDIMInversion")["steps"] = 0
    return graph


def another_size(graph: Graph) -> Graph:
    graph = graphs.from_parts(graph)
    graph["24"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 64, "height": 128, "batch_size": 2},
    }
    graph["22"]["inputs"]["latent_image"] = ["24", 0]
    return graph


def another_batch(graph: Graph) -> Graph:
    graph = another_size(graph)
    graph["24"]["inputs"] = {"width": 128, "height": 128, "batch_size": 3}
    return graph


def other_steps(graph: Graph) -> Graph:
    graph = graphs.from_parts(graph)
    scheduler = {"model": ["1", 0], "scheduler": "normal", "steps": 4, "denoise": 1.0}
    graph["25"] = {"class_type": "BasicScheduler", "inputs": scheduler}
    graph["22"]["inputs"]["sigmas"] = ["25", 0]
    return graph


def stochastic(graph: Graph) -> Graph:
    return graphs.from_parts(graph, "euler_ancestral")


def another_solver(graph: Graph) -> Graph:
    return graphs.from_parts(graph, "dpmpp_2m")


def transformer(graph: Graph) -> Graph:
    graph["26"] = {"class_type": "TransformerModel", "inputs": {}}
    graphs.inputs(graph, "PivotDDIMInversion")["model"] = ["26", 0]
    return graph


def other_model(graph: Graph) -> Graph:
    graph["27"] = {"class_type": "OtherModel", "inputs": {"model": ["1", 0]}}
    graphs.inputs(graph, "PivotPromptToPrompt")["model"] = ["27", 0]
    return graph


def other_source(graph: Graph) -> Graph:
    graphs.inputs(graph, "PivotPromptPair")["source_prompt"] = (
        "a plain white circle at the center of a lake"
    )
    return graph


def nan_latent(graph: Graph) -> Graph:
    graph["28"] = {"class_type": "BadLatent", "inputs": {"latent": ["3", 0]}}
    graphs.inputs(graph, "PivotDDIMInversion")["latent"] = ["28", 0]
    return graph


def clip_skip_on_one_side(graph: Graph) -> Graph:
    skip = {"clip": ["1", 1], "stop_at_clip_layer": -2}
    graph["35"] = {"class_type": "CLIPSetLastLayer", "inputs": skip}
    graphs.inputs(graph, "PivotPromptPair")["clip"] = ["35", 0]
    return graph


def a_very_long_prompt(graph: Graph) -> Graph:
    graphs.inputs(graph, "PivotPromptPair")["target_prompt"] = "a red star " * 10_000
    return graph


def plain_sampler(graph: Graph) -> Graph:
    graph["29"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["7", 0],
            "positive": ["6", 1],
            "negative": ["6", 3],
            "latent_image": ["3", 0],
            "seed": 0,
            "steps": 2,
            "cfg": 5.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    }
    graphs.inputs(graph, "PivotCompare")["edited"] = ["29", 0]
    return graph


def unknown_weight(graph: Graph) -> Graph:
    graphs.inputs(graph, "PivotPromptToPrompt")["word_weights"] = "sofa: 2"
    return graph


def unreadable_weight(graph: Graph) -> Graph:
    graphs.inputs(graph, "PivotPromptToPrompt")["word_weights"] = "circle = 2"
    return graph


def window_beyond_the_run(graph: Graph) -> Graph:
    graphs.inputs(graph, "PivotPromptToPrompt")["word_windows"] = "circle: 0.2-1.5"
    return graph


def blended(graph: Graph, **options: object) -> Graph:
    values = {"blend_words": "", "subtract_words": "", "threshold": 0.3, "subtract_threshold": 0.3}
    values |= {"start": 0.2, "pool": True, "model": ["7", 0], "words": ["6", 2], **options}
    graph["30"] = {"class_type": "PivotLocalBlend", "inputs": values}
    graphs.inputs(graph, "PivotEditSampler")["model"] = ["30", 0]
    return graph


def no_blend_words(graph: Graph) -> Graph:
    return blended(graph)


def unknown_blend_word(graph: Graph) -> Graph:
    return blended(graph, blend_words="circle, sofa")


def masa(graph: Graph, **options: object) -> Graph:
    values = {
        "mode": "plain",
        "layers": "auto",
        "start": 0.08,
        "end": 1.0,
        "model": ["7", 0],
        **options,
    }
    graph["31"] = {"class_type": "PivotMasaCtrl", "inputs": values}
    graphs.inputs(graph, "PivotEditSampler")["model"] = ["31", 0]
    return graph


def unknown_layers(graph: Graph) -> Graph:
    return masa(graph, layers="up.7")


def unreadable_layers(graph: Graph) -> Graph:
    return masa(graph, layers="decoder 3")


def mask_words_without_words(graph: Graph) -> Graph:
    return masa(graph, mask_words="circle")


def maps_of_an_unwatched_model(graph: Graph) -> Graph:
    values = {
        "model": ["7", 0],
        "samples": ["8", 0],
        "image": ["9", 0],
        "clip": ["1", 1],
        "prompt": ["4", 1],
    }
    values |= {"words": "", "threshold": 0.4, "blur": 0.0, "grow": 0}
    graph["32"] = {"class_type": "PivotAttentionMaps", "inputs": values}
    graph["33"] = {"class_type": "PreviewImage", "inputs": {"images": ["32", 0]}}
    return graph


def maps_of_an_unknown_word(graph: Graph) -> Graph:
    graph = maps_of_an_unwatched_model(graph)
    graph["34"] = {
        "class_type": "PivotRecordAttention",
        "inputs": {"model": ["7", 0], "start": 0.0, "end": 1.0},
    }
    graphs.inputs(graph, "PivotEditSampler")["model"] = ["34", 0]
    graph["32"]["inputs"] |= {"model": ["34", 0], "words": "sofa"}
    return graph


CASES: dict[Callable[[Graph], Graph], tuple[str, str]] = {
    empty_source: (
        "PivotSourcePrompt",
        "Expected a source prompt, but got an empty text.*CLIP Text Encode with an empty text",
    ),
    empty_target: ("PivotPromptPair", "Expected a target prompt, but got an empty text"),
    impossible_alignment: ("PivotPromptToPrompt", "as many words .* refine"),
    zero_steps: ("PivotDDIMInversion", "smaller than min"),
    another_size: ("SamplerCustomAdvanced", r"size \[1, 4, 16, 16\], but got \[1, 4, 16, 8\]"),
    another_batch: ("SamplerCustomAdvanced", "2 rows, source then target, but got 3"),
    other_steps: ("SamplerCustomAdvanced", "inversion's own 4 steps"),
    stochastic: ("SamplerCustomAdvanced", "euler_ancestral .* choose euler"),
    another_solver: ("SamplerCustomAdvanced", "dpmpp_2m"),
    transformer: ("PivotDDIMInversion", "a UNet model .* SD3 .* without UNet attention"),
    other_model: ("PivotEditSampler", "the model the inversion was made with .* same checkpoint"),
    other_source: ("PivotEditSampler", "source conditioning that the inversion was made with"),
    clip_skip_on_one_side: (
        "PivotEditSampler",
        "the same text 'a .*' encoded otherwise.*clip skip or a LoRA on one side only",
    ),
    a_very_long_prompt: ("PivotPromptPair", "at most 39424 characters, but got 110000"),
    nan_latent: ("PivotDDIMInversion", "finite numbers .* NaN"),
    plain_sampler: ("KSampler", "Edit Sampler.*Rows for KSampler.*batch_size 2"),
    unknown_weight: ("PivotPromptToPrompt", "'sofa'.*There are: a, .*circle"),
    unreadable_weight: ("PivotPromptToPrompt", "words with weights.*'circle = 2'"),
    window_beyond_the_run: ("PivotPromptToPrompt", "windows between 0 and 1"),
    no_blend_words: (
        "PivotLocalBlend",
        "words to blend at, words to subtract, or a mask, but got none.*there are: .*circle",
    ),
    unknown_blend_word: ("PivotLocalBlend", "'sofa'.*There are: a, .*circle"),
    unknown_layers: ("PivotMasaCtrl", "'up.7'.*It has: down.0.0, .*up.2.1"),
    unreadable_layers: ("PivotMasaCtrl", "up.2-3.*'decoder'"),
    mask_words_without_words: ("PivotMasaCtrl", "Connect words from Prompt Pair"),
    maps_of_an_unwatched_model: ("PivotAttentionMaps", "without Record Attention"),
    maps_of_an_unknown_word: ("PivotAttentionMaps", "'sofa'.*Its words are: a, "),
}


@pytest.mark.parametrize("spoil", CASES, ids=lambda case: case.__name__)
def test_bad_input_is_refused_by_its_node(client: Client, spoil: Callable[[Graph], Graph]) -> None:
    node_class, message = CASES[spoil]
    with pytest.raises(ServerError, match=message) as caught:
        client.run(spoil(graphs.starter(client, steps=4)))
    assert caught.value.node_class == node_class


def test_nothing_is_lost_after_a_refusal(client: Client) -> None:
    good = graphs.starter(client, steps=4)
    client.run(good)
    with pytest.raises(ServerError):
        client.run(other_model(graphs.starter(client, steps=4)))
    again = client.run(good)
    assert graphs.node(good, "PivotDDIMInversion") in again.cached
    assert again.images
