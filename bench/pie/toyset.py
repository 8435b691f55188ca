"""A small folder in the benchmark's format, drawn: scenes of the toy world and their true edits.

Six of the ten types have a counterpart there: two words at once stand for 0 (random), a place for 5
(pose), a pattern for 7 (material); no object comes, goes or changes its content, and there is no
style. Pictures are the 128 pixel render enlarged to the format's 512 (bicubic) and stored as PNG:
the run makes them smaller again for the toy model.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random

import numpy as np
from PIL import Image

from bench.pie.dataset import MAPPING, PICTURES, SIDE, TYPES, encode
from tools.pictures import to_image
from toy.scenes import SIZE, WORDS, Scene, kept

SEED = 50_000_000
CHANGES = {
    "0": ("color", "pattern"),
    "1": ("shape",),
    "5": ("position",),
    "6": ("color",),
    "7": ("pattern",),
    "8": ("background",),
}


def write(folder: pathlib.Path, count: int = 12) -> None:
    """Write `count` held-out cases, the types in turn. An existing folder keeps what it holds
    besides."""
    entries = {}
    for index in range(count):
        kind = list(CHANGES)[index % len(CHANGES)]
        scene, truth = scenes(SEED + index, CHANGES[kind])
        entries[f"{index:012d}"] = entry(
            f"{kind}_{TYPES[kind].replace(' ', '_')}/{index:012d}.png", kind, scene, truth
        )
        path = folder / PICTURES / entries[f"{index:012d}"]["image_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        to_image(scene.render()).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    (folder / MAPPING).write_text(json.dumps(entries, indent=1) + "\n")


def scenes(seed: int, kinds: tuple[str, ...]) -> tuple[Scene, Scene]:
    """A scene that names its pattern even where it is plain, and the same with other words of some
    kinds."""
    chance = random.Random(seed)
    scene = dataclasses.replace(Scene.sample(seed), say_plain=True)
    words = {
        kind: chance.choice([word for word in WORDS[kind] if word != getattr(scene, kind)])
        for kind in kinds
    }
    return scene, scene.change(**words)


def entry(image_path: str, kind: str, scene: Scene, truth: Scene) -> dict[str, object]:
    """The mapping file's entry; its mask: what the true edit changes, and the object's old and new
    place."""
    pairs = list(zip(scene.caption.split(), truth.caption.split(), strict=True))
    before, after = (
        " ".join(f"[{pair[i]}]" if pair[0] != pair[1] else pair[i] for pair in pairs)
        for i in (0, 1)
    )
    words = (scene.background, truth.background) if kind == "8" else (scene.shape, truth.shape)
    mask = kept(scene, truth) < 1.0
    return {
        "image_path": image_path,
        "original_prompt": before,
        "editing_prompt": after,
        "editing_instruction": f"make it {truth.caption}",
        "editing_type_id": kind,
        "blended_word": ""
        if kind == "5"
        else " ".join(words),  # a place has no word of its own in the picture
        "mask": encode(np.kron(mask, np.ones((SIDE // SIZE, SIDE // SIZE), dtype=bool))),
    }
