"""Eight kinds of edits on held-out scenes of the toy world, and the settings that suit each.

A case is a scene, its prompts and the scene drawn again with the edit made: the true edited
picture. Settings were chosen on scenes of their own (`TUNED_ON`), never on those that are judged:
by hand at the papers' cfg, where methods are compared, and by `python -m bench.tuning`, which comes
nearest to the true edits.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import random
from collections.abc import Callable
from typing import Any

from bench.methods import Settings
from toy.scenes import WORDS, Scene

HELD_OUT, TUNED_ON = 40_000_000, 30_000_000
TUNED_FILE = pathlib.Path(__file__).with_name("tuned.json")
OBJECT = ("pattern", "color", "shape")


@dataclasses.dataclass(frozen=True)
class Edit:
    """A scene, the prompts, and the scene that the edit should show."""

    scene: Scene
    truth: Scene
    source: str
    target: str
    weights: str = ""

    @property
    def change(self) -> str:
        """What the edit changes, in a few words."""
        if self.weights:
            return self.weights.replace(":", " x")
        old, new = self.source.split(), self.target.split()
        gone, come = ([word for word in a if word not in b] for a, b in ((old, new), (new, old)))
        return " -> ".join([" ".join(gone) or "(nothing)", " ".join(come) or "(nothing)"])

    @property
    def object_words(self) -> str:
        """All words of either prompt that name the object, for Local Blend: together they show
        where it is."""
        said = f"{self.source} {self.target}".split()
        words = [getattr(scene, kind) for scene in (self.scene, self.truth) for kind in OBJECT]
        return ", ".join(dict.fromkeys(word for word in words if word in said))


# -- how cases are drawn
# -----------------------------------------------------------------------------------


def swapped(kind: str, scene: Scene, chance: random.Random) -> Edit:
    """One word of a kind changed."""
    truth = scene.change(
        **{kind: chance.choice([word for word in WORDS[kind] if word != getattr(scene, kind)])}
    )
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
    return Edit(edit.scene, edit.truth, edit.source, edit.source, f"{edit.scene.pattern}: -4")


# -- the kinds
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of edit: how its cases are drawn and its nodes are set. at_object: Local Blend edits
    at the object, else everywhere but there."""

    name: str
    draw: Callable[[Scene, random.Random], Edit]
    settings: Settings
    at_object: bool = True

    @property
    def tuned(self) -> Settings | None:
        """What bench/tuning.py found for this kind, if it was asked."""
        found = _tuned().get(self.name)
        return Settings(**found["best"]["settings"]) if found else None

    def cases(self, count: int, first: int = HELD_OUT) -> list[Edit]:
        """The first held-out cases of this kind."""
        seeds = [first + 1000 * list(KINDS).index(self.name) + i for i in range(count)]
        return [self.draw(Scene.sample(seed), random.Random(seed)) for seed in seeds]


@functools.cache
def _tuned() -> Any:
    return json.loads(TUNED_FILE.read_text()) if TUNED_FILE.exists() else {}


_BASE = Settings(
    cfg=7.5, steps=20, threshold=0.3, subtract_threshold=0.5, pool=False, masactrl_start=0.2
)
_PATTERN = dataclasses.replace(_BASE, cross_end=0.2, self_end=0.2, self_limit=1.0)
_SHAPE = dataclasses.replace(_BASE, mode="refine", self_end=0.2, pool=True)
_KINDS = (
    Kind(
        "color",
        functools.partial(swapped, "color"),
        dataclasses.replace(_BASE, cross_end=0.4, self_end=1.0, self_limit=1.0, threshold=0.4),
    ),
    Kind("pattern", functools.partial(swapped, "pattern"), _PATTERN),
    Kind("add", added, _PATTERN),
    Kind("remove", removed, _PATTERN),
    Kind("reweight", reweighted, dataclasses.replace(_BASE, cross_end=1.0, self_end=0.0)),
    Kind("shape", functools.partial(swapped, "shape"), _SHAPE),
    Kind(
        "background",
        functools.partial(swapped, "background"),
        dataclasses.replace(_BASE, mode="refine", cross_end=0.2, self_end=0.0),
        at_object=False,
    ),
    Kind("position", functools.partial(swapped, "position"), _SHAPE),
)
KINDS = {kind.name: kind for kind in _KINDS}
RIGID_KINDS = ("color", "pattern", "background")
