"""Graphs for the API tests: the starter, made smaller, and the same edit from parts."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from PIL import Image

from tools.client import Client, Graph
from tools.pictures import to_image
from toy.scenes import Scene

ROOT = pathlib.Path(__file__).absolute().parents[2]
SCENE = Scene.sample(10_000_003)


def picture(scene: Scene = SCENE) -> Image.Image:
    return to_image(scene.render())


def node(graph: Graph, class_type: str) -> str:
    """The id of the only node of a class."""
    (found,) = [key for key, value in graph.items() if value["class_type"] == class_type]
    return found


def inputs(graph: Graph, class_type: str) -> dict[str, Any]:
    return graph[node(graph, class_type)]["inputs"]


def starter(client: Client, steps: int = 4, **target: str) -> Graph:
    """The shipped starter graph on a toy scene with one word changed."""
    graph: Graph = json.loads((ROOT / "workflows" / "api" / "prompt_to_prompt.json").read_text())
    inputs(graph, "LoadImage")["image"] = client.upload(picture(), "scene.png")
    inputs(graph, "PivotSourcePrompt")["prompt"] = SCENE.caption
    inputs(graph, "PivotPromptPair")["target_prompt"] = SCENE.change(
        **(target or {"shape": "circle"})
    ).caption
    inputs(graph, "PivotDDIMInversion")["steps"] = steps
    return graph


def from_parts(graph: Graph, sampler: str | None = None) -> Graph:
    """The starter with SamplerCustomAdvanced, the Edit Guider and Inversion Parts in the Edit
    Sampler's place."""
    graph = dict(graph)
    edit = graph.pop(node(graph, "PivotEditSampler"))["inputs"]
    graph["20"] = {"class_type": "PivotEditGuider", "inputs": edit}
    parts = {key: edit[key] for key in ("model", "inversion", "correction")}
    graph["21"] = {"class_type": "PivotInversionParts", "inputs": parts}
    graph["22"] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "guider": ["20", 0],
            "sampler": ["21", 0],
            "sigmas": ["21", 1],
            "noise": ["21", 2],
            "latent_image": ["21", 3],
        },
    }
    if sampler is not None:
        graph["23"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": sampler}}
        graph["22"]["inputs"]["sampler"] = ["23", 0]
    for index, key in enumerate(("reconstructed", "edited")):
        graph[f"3{index}"] = {
            "class_type": "LatentFromBatch",
            "inputs": {"samples": ["22", 0], "batch_index": index, "length": 1},
        }
        compare = {**inputs(graph, "PivotCompare"), key: [f"3{index}", 0]}
        graph[node(graph, "PivotCompare")] = {"class_type": "PivotCompare", "inputs": compare}
    return graph
