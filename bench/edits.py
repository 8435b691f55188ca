"""Eight kinds of edits on the toy world, judged against the true edit: `python -m bench.edits [--count 16]`.

Every kind has one recipe, the nodes' settings that suit it. For held-out scenes, the edit is made with it and, from
the same inversion, without any attention control; the reader says whether the picture shows what the target says,
and whether nothing else changed is measured outside the object. Writes `out/edits/edits.json` and
`out/edits/sheet.png`; `--keep` copies both to `docs/`, where README takes the table from.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from bench import install
from bench.judge import kept, psnr, to_image
from bench.pack import part
from toy.scenes import WORDS, Scene

OUT = install.ROOT / "out" / "edits"
HELD_OUT = 40_000_000
CFG, STEPS = 3.0, 50
Control = Callable[["Edit", Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Edit:
    """A scene, the prompts, and the scene that the edit should show."""

    scene: Scene
    truth: Scene
    source: str
    target: str
    weights: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A kind of edit: how its cases are drawn, and which control suits it (`how` in the nodes' terms)."""

    kind: str
    draw: Callable[[Scene, random.Random], Edit]
    control: Control
    how: str


# -- the cases ---------------------------------------------------------------------------------------------


def swapped(kind: str, scene: Scene, chance: random.Random) -> Edit:
    """One word of a kind changed."""
    truth = scene.change(**{kind: chance.choice([word for word in WORDS[kind] if word != getattr(scene, kind)])})
    return Edit(scene, truth, scene.caption, truth.caption)


def added(scene: Scene, chance: random.Random) -> Edit:
    """A pattern where the source names none."""
    scene = dataclasses.replace(scene, pattern="plain", say_plain=False)
    truth = scene.change(pattern=chance.choice(["striped", "dotted"]))
    return Edit(scene, truth, scene.caption, truth.caption)


def removed(scene: Scene, chance: random.Random) -> Edit:
    """The pattern's word left out."""
    edit = added(scene, chance)
    return Edit(edit.truth, edit.scene, edit.target, edit.source)


def reweighted(scene: Scene, chance: random.Random) -> Edit:
    """The same prompt with the pattern's word turned against itself: the true edit has none."""
    edit = removed(scene, chance)
    return Edit(edit.scene, edit.truth, edit.source, edit.source, f"{edit.scene.pattern}: -1")


# -- the controls ------------------------------------------------------------------------------------------


def p2p(edit: Edit, model: Any, words: Any, mode: str, cross: float, self_: float, limit: float) -> Any:
    """The P2P Attention Controller, its windows from the first step on."""
    run = part("host.controls").prompt_to_prompt
    return run(model, words, mode, (0.0, cross), (0.0, self_), limit, edit.weights)[0]


def at_object(edit: Edit, model: Any, words: Any) -> Any:
    """Local Blend with its defaults: outside of the object, the source."""
    shapes = f"{edit.scene.shape}, {edit.truth.shape}"
    return part("host.controls").local_blend(model, words, shapes, "", 0.3, 0.3, 0.2, True)


def rigid(edit: Edit, model: Any, words: Any) -> Any:
    """What keeps its shape: all self-attention from the source."""
    return at_object(edit, p2p(edit, model, words, "auto", 0.8, 0.8, 1.0), words)


def weighted(edit: Edit, model: Any, words: Any) -> Any:
    """Words act to the end; the source's self-attention would carry the pattern along."""
    return at_object(edit, p2p(edit, model, words, "auto", 1.0, 0.4, 0.25), words)


def reshaped(edit: Edit, model: Any, words: Any) -> Any:
    """What changes its shape: the new word keeps attention of its own."""
    return at_object(edit, p2p(edit, model, words, "refine", 0.8, 0.2, 0.25), words)


def surrounded(edit: Edit, model: Any, words: Any) -> Any:
    """A new background: everywhere but at the object."""
    controlled = p2p(edit, model, words, "refine", 0.8, 0.4, 1.0)
    return part("host.controls").local_blend(controlled, words, "", edit.scene.shape, 0.3, 0.5, 0.2, True)


def moved(edit: Edit, model: Any, words: Any) -> Any:
    """Another place: the source's content in a layout of the target's own."""
    return at_object(edit, part("host.controls").masactrl(model, "auto", (0.08, 1.0), False)[0], words)


_BLEND = "Local Blend at the object"
_RIGID = f"P2P auto, cross 0.8, self 0.8, limit 1; {_BLEND}"
RECIPES = (
    Recipe("color", functools.partial(swapped, "color"), rigid, _RIGID),
    Recipe("pattern", functools.partial(swapped, "pattern"), rigid, _RIGID),
    Recipe("added word", added, rigid, _RIGID),
    Recipe("removed word", removed, rigid, _RIGID),
    Recipe(
        "reweighted word",
        reweighted,
        weighted,
        f"P2P auto, word x -1, cross 1, self 0.4, limit 0.25; {_BLEND}",
    ),
    Recipe(
        "shape",
        functools.partial(swapped, "shape"),
        reshaped,
        f"P2P refine, cross 0.8, self 0.2, limit 0.25; {_BLEND}",
    ),
    Recipe(
        "background",
        functools.partial(swapped, "background"),
        surrounded,
        "P2P refine, cross 0.8, self 0.4, limit 1; Local Blend without the object, 0.5",
    ),
    Recipe("position", functools.partial(swapped, "position"), moved, f"MasaCtrl from 0.08; {_BLEND}"),
)


# -- running and judging -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Judged:
    """A picture [H, W, 3] and what was found: read as the target; dB outside the object and to the true edit."""

    picture: np.ndarray
    success: bool
    background_psnr: float
    truth_psnr: float


class Bench:
    """The toy model, and edits with and without control on it."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = part("toy.loader").load()

    def run(self, edit: Edit, control: Control) -> tuple[Judged, Judged, float]:
        """The edit under control, without, and the autoencoder's own background PSNR (the ceiling)."""
        prompts = part("host.prompts")
        source, target, negative = (prompts.encode(self.clip, text) for text in (edit.source, edit.target, ""))
        words = (prompts.read_pair(self.clip, edit.source, edit.target),)
        latent = self.vae.encode(torch.from_numpy(edit.scene.render())[None])
        invert = part("host.inversion").invert_latent
        pivot = invert(self.model, {"samples": latent}, source, STEPS, "reference", part("inversion").Ddim(), False)[0]
        judged = []
        for model in (control(edit, self.model, words), self.model):
            made = part("host.editing").edit(model, pivot, source, target, negative, CFG, "direct")[0]
            judged.append(judge(edit, self._decoded(made["samples"])))
        return judged[0], judged[1], psnr(self._decoded(latent), edit.scene.render(), kept(edit.scene, edit.truth))

    def _decoded(self, latent: torch.Tensor) -> np.ndarray:
        return self.vae.decode(latent)[0].numpy()


def judge(edit: Edit, picture: np.ndarray) -> Judged:
    """A picture against what the edit should give."""
    from toy.reader import read

    background = psnr(picture, edit.scene.render(), kept(edit.scene, edit.truth))
    return Judged(picture, read(picture).matches(edit.truth), background, psnr(picture, edit.truth.render()))


def cases(recipe: Recipe, count: int) -> list[Edit]:
    """The first held-out cases of a kind."""
    seeds = [HELD_OUT + 1000 * RECIPES.index(recipe) + i for i in range(count)]
    return [recipe.draw(Scene.sample(seed), random.Random(seed)) for seed in seeds]


def summary(recipe: Recipe, runs: Sequence[tuple[Judged, Judged, float]]) -> dict[str, Any]:
    """One row of the table."""

    def means(each: Sequence[Judged]) -> dict[str, float]:
        names = ("success", "background_psnr", "truth_psnr")
        return {name: round(float(np.mean([getattr(one, name) for one in each])), 3) for name in names}

    ceiling = round(float(np.mean([run[2] for run in runs])), 3)
    with_control, without = (means([run[i] for run in runs]) for i in (0, 1))
    row = {"kind": recipe.kind, "how": recipe.how, "n": len(runs), **with_control, "ceiling_psnr": ceiling}
    return {**row, "without": without}


# -- the sheet ---------------------------------------------------------------------------------------------


def sheet(chosen: Sequence[tuple[Edit, Judged]], columns: int = 3) -> Any:
    """Source, edit and true edit of every case under what changes, `columns` cases beside each other."""
    from PIL import Image, ImageDraw, ImageFont

    side, gap, line = 128, 14, 20
    width, height = 3 * side + gap, side + line + gap
    page = Image.new("RGB", (columns * width + gap, -(-len(chosen) // columns) * height + line + gap), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=13)
    for index, (edit, judged) in enumerate(chosen):
        row, column = divmod(index, columns)
        x, y = gap + column * width, line + row * height
        pen.text((x, y + 2), change(edit), fill="#1f2328" if judged.success else "#cf222e", font=font)
        pictures = (edit.scene.render(), judged.picture, edit.truth.render())
        for place, picture in enumerate(pictures):
            page.paste(to_image(picture), (x + place * side, y + line))
            if row == 0:
                pen.text((x + place * side, 2), ("source", "edit", "true edit")[place], fill="#6e7781", font=font)
    return page


def change(edit: Edit) -> str:
    """What the edit changes, in a few words."""
    if edit.weights:
        return edit.weights.replace(":", " x")
    old, new = edit.source.split(), edit.target.split()
    gone, come = ([word for word in a if word not in b] for a, b in ((old, new), (new, old)))
    return " -> ".join([" ".join(gone) or "(nothing)", " ".join(come) or "(nothing)"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.edits", description=__doc__)
    parser.add_argument("--count", type=int, default=16, help="cases of each kind")
    parser.add_argument("--keep", action="store_true", help="copy table and sheet to docs/")
    options = parser.parse_args()
    if options.keep and options.count < 16:
        parser.error("figures are kept from 16 cases of each kind on")
    install.import_comfy()
    began, rows, shown = time.time(), [], []
    with torch.inference_mode():
        bench = Bench()
        for recipe in RECIPES:
            edits = cases(recipe, options.count)
            runs = [bench.run(edit, recipe.control) for edit in edits]
            rows.append(summary(recipe, runs))
            shown += [(edit, run[0]) for edit, run in zip(edits[:3], runs, strict=False)]
            print(json.dumps(rows[-1]), flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    figures = {"cfg": CFG, "steps": STEPS, "rows": rows}
    (OUT / "edits.json").write_text(json.dumps(figures, indent=2) + "\n")
    sheet(shown).save(OUT / "sheet.png", optimize=True)
    print(f"{OUT / 'sheet.png'}  {time.time() - began:.0f} s")
    if options.keep:
        shutil.copy(OUT / "edits.json", install.ROOT / "docs" / "figures" / "edits.json")
        shutil.copy(OUT / "sheet.png", install.ROOT / "docs" / "images" / "edits.png")


if __name__ == "__main__":
    main()
