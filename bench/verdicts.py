"""What Inversion Report says of inversions whose truth is known: `python -m bench.verdicts
[--second] [--keep]`, `out/bench/verdicts.json`.

Scenes are inverted under their captions, under captions of which every word is wrong, in 1 and in 4
steps and at cfg 7.5. The report then sees the picture itself, another one, or a weak autoencoder.
Printed is what was said first, how often, and an example. `--second` judges the second world's
model, for which nothing was set. `--keep` copies the lines to `docs/figures/`, for
docs/BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from bench.inversion import FIRST, OUT
from bench.second import scenes as second
from bench.second.world import SECOND
from tools import install
from tools.pack import part
from toy import scenes as toy
from toy.train import TOY_WORLD, World

FIGURES = OUT.with_name("verdicts.json")
CFG, STEPS, COUNT = 2.0, 20, 20
Line = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Way:
    """An inversion and what its report is shown."""

    name: str
    expected: tuple[str, ...]
    """The findings of which one should be first."""
    steps: int = STEPS
    cfg: float = 1.0
    wrong_prompt: bool = False
    other_picture: bool = False
    weak: bool = False


GOOD = ("comes back", "rest moves")
WAYS = (
    Way("right prompt", GOOD),
    Way("wrong prompt", ("wrong prompt",), wrong_prompt=True),
    Way("other picture", ("another picture",), other_picture=True),
    Way("1 step", ("no room",), steps=1),
    Way("4 steps", ("picture left",), steps=4),
    Way("weak autoencoder", ("rest moves", "lossy autoencoder"), weak=True),
    Way("inverted at cfg 7.5", ("loud noise",), cfg=7.5),
)


class Weak:
    """An autoencoder that loses all detail smaller than `grain` pixels."""

    def __init__(self, vae: Any, grain: int = 32) -> None:
        self.vae, self.grain = vae, grain

    def encode(self, picture: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(picture)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        picture = self.vae.decode(latent).movedim(-1, 1)
        small = torch.nn.functional.avg_pool2d(picture, self.grain)
        size = tuple(picture.shape[-2:])
        return torch.nn.functional.interpolate(small, size, mode="bilinear").movedim(1, -1)


class Judged:
    """A world's model, and what its reports say."""

    def __init__(self, world: World, words: dict[str, tuple[str, ...]]) -> None:
        self.world, self.words = world, words
        self.model, self.clip, self.vae = part("toy.loader").load(world.weights, world.shapes)
        self.encode = part("host.text.prompts").encode
        self.empty = self.encode(self.clip, "")
        self._inverted: dict[Any, Any] = {}

    def wrong(self, scene: Any) -> str:
        """A caption of which every word that names something is wrong."""
        chance = random.Random(scene.caption)
        changes = {
            kind: chance.choice([word for word in words if word != getattr(scene, kind)])
            for kind, words in self.words.items()
        }
        return str(scene.change(**changes).caption)

    def line(self, way: Way, index: int) -> Line:
        """What the report says of a scene's inversion."""
        scene = self.world.sample(FIRST + index)
        shown = self.world.sample(FIRST + index + 1) if way.other_picture else scene
        text = self.encode(self.clip, self.wrong(scene) if way.wrong_prompt else scene.caption)
        pivot = self._trajectory(scene, text, way)
        vae = Weak(self.vae) if way.weak else self.vae
        report = part("host.tasks.report").report
        told = report(self.model, vae, _image(shown), pivot, text, self.empty, CFG, "auto")
        return {
            "way": way.name,
            "scene": index,
            "findings": [each.name for each in told.findings],
            "right": told.findings[0].name in way.expected,
            "text": told.text,
        }

    def _trajectory(self, scene: Any, text: Any, way: Way) -> Any:
        key = (scene.caption, way.steps, way.cfg, way.wrong_prompt)
        if key not in self._inverted:
            latent = {"samples": self.vae.encode(_image(scene))}
            invert, ddim = part("host.tasks.inversion").invert_latent, part("inversion").Ddim()
            self._inverted = {  # the last alone: ways that share one follow each other
                key: invert(
                    self.model,
                    latent,
                    text,
                    way.steps,
                    "reference",
                    ddim,
                    False,
                    self.empty,
                    way.cfg,
                )[0]
            }
        return self._inverted[key]


def _image(scene: Any) -> torch.Tensor:
    return torch.from_numpy(scene.render())[None]


def lines(judged: Judged, count: int) -> Iterator[Line]:
    """A line for every scene and way; ways that share an inversion follow each other."""
    ways = sorted(WAYS, key=lambda way: (way.wrong_prompt, way.steps, way.cfg))
    for index in range(count):
        for way in ways:
            yield judged.line(way, index)


def table(lines: Sequence[Line]) -> str:
    """What was said first, how often, and whether it is right."""
    rows = ["| inversion | n | said first | right |", "|---|---|---|---|"]
    for way in WAYS:
        these = [line for line in lines if line["way"] == way.name]
        if these:
            first = collections.Counter(line["findings"][0] for line in these).most_common()
            said = ", ".join(f"{name} {count}" for name, count in first)
            right = sum(line["right"] for line in these)
            rows.append(f"| {way.name} | {len(these)} | {said} | {right} |")
    return "\n".join(rows)


def examples(lines: Sequence[Line]) -> str:
    """The whole report of the first scene, for every way."""
    parts = []
    for way in WAYS:
        one = next((line for line in lines if line["way"] == way.name), None)
        if one:
            parts.append(f"{way.name}:\n\n```\n{one['text']}\n```")
    return "\n\n".join(parts)


def section(lines: Sequence[Line]) -> str:
    """The section of docs/BENCHMARKS.md."""
    return f"{table(lines)}\n\n{examples(lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.verdicts", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="scenes")
    parser.add_argument("--second", action="store_true", help="of the second world and its model")
    parser.add_argument("--keep", action="store_true", help="copy the lines to docs/figures")
    options = parser.parse_args()
    install.import_comfy()
    world, words = (SECOND, second.WORDS) if options.second else (TOY_WORLD, toy.WORDS)
    path = FIGURES.with_stem("verdicts_second") if options.second else FIGURES
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        said = []
        for line in lines(Judged(world, words), options.count):
            said.append(line)
            print(line["way"], line["scene"], line["findings"], flush=True)
            path.write_text(json.dumps(said, indent=1) + "\n")
    print(section(said))
    if options.keep:
        shutil.copy(path, install.ROOT / "docs" / "figures" / path.name)


if __name__ == "__main__":
    main()
