"""Runs every shipped workflow in a real ComfyUI and keeps what it shows as its thumbnail: `python
-m bench.thumbnails`.

Real pictures are the example scene, whose prompt the workflows carry. Names on the command line
choose some.
"""

from __future__ import annotations

import json
import pathlib
import sys

import numpy as np
from PIL import Image

from bench.workflows import API
from tools import install
from tools.client import Client, Graph, Result
from tools.pictures import to_image
from tools.server import Server
from toy.scenes import EXAMPLE, scene_from_caption

HEIGHT = 256


def example() -> Image.Image:
    """The picture that the shipped workflows describe."""
    return to_image(scene_from_caption(*EXAMPLE).render())


def filled(name: str, picture: str) -> Graph:
    """A shipped workflow with an uploaded picture in its place."""
    graph: Graph = json.loads((API / f"{name}.json").read_text())
    for node in graph.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = picture
    return graph


def shown(graph: Graph, result: Result) -> list[Image.Image]:
    """What a person sees at the end: comparisons and masks, else the saved pictures."""
    compared = [node for node, entry in graph.items() if entry["class_type"] == "PivotCompare"]
    previews = [
        picture
        for node in (*compared, *result.previews)
        for picture in result.previews.get(node, ())
    ]
    pictures = previews if compared else [one for saved in result.images.values() for one in saved]
    return list({id(picture): picture for picture in pictures}.values())


def strip(pictures: list[Image.Image]) -> Image.Image:
    """Pictures below or beside each other, at a thumbnail's size."""
    if not pictures:
        raise ValueError("the workflow shows nothing")
    wide = pictures[0].width > 2 * pictures[0].height
    stacked = [np.asarray(_scaled(picture, pictures[0], wide)) for picture in pictures]
    joined = Image.fromarray(np.concatenate(stacked, 0 if wide else 1))
    height = HEIGHT * (len(stacked) if wide else 1)
    return joined.resize((joined.width * height // joined.height, height), Image.Resampling.LANCZOS)


def _scaled(picture: Image.Image, first: Image.Image, wide: bool) -> Image.Image:
    """A picture as wide (in a column) or as high (in a row) as the first, on white; wider ones are
    made smaller."""
    if wide and picture.width > first.width:
        picture = picture.resize(
            (first.width, picture.height * first.width // picture.width), Image.Resampling.LANCZOS
        )
    sheet = Image.new(
        "RGB", (first.width, picture.height) if wide else (picture.width, first.height), "white"
    )
    sheet.paste(picture.convert("RGB"), ((sheet.width - picture.width) // 2, 0))
    return sheet


def main() -> None:
    names = sys.argv[1:] or [
        path.stem for path in sorted(API.glob("*.json")) if path.stem != "prompt_to_prompt"
    ]
    with Server(cpu=True) as server, Client(server.url) as client:
        picture = client.upload(example(), "pivot_example.png")
        for name in names:
            graph = filled(name, picture)
            target: pathlib.Path = install.ROOT / "workflows" / f"{name}.jpg"
            strip(shown(graph, client.run(graph))).save(target, quality=85)
            print(target.relative_to(install.ROOT), flush=True)


if __name__ == "__main__":
    main()
