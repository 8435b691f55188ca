"""Whether README's settings hold on more than one model: `python -m bench.advice [--scenes 6]`.

Held-out scenes of the toy world and of the second world (bench/second) are edited under direct
inversion, word by word, as README's table of edits says and otherwise. An edit counts as read where
the picture is nearest to the true edit among those of all words of its kind. `--keep` copies the
figures, `out/bench/advice.json`, to `docs/figures/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bench.masks import WORLDS, Case, Editor, Judged, Row, cases, judged
from tools import install
from tools.pictures import psnr

OUT = install.ROOT / "out" / "bench" / "advice.json"


@dataclasses.dataclass(frozen=True)
class Way:
    """How an edit is made: P2P's and Local Blend's inputs that are not their defaults (None:
    without it)."""

    cfg: float
    p2p: dict[str, Any] | None = None
    blend: dict[str, Any] | None = None


_REFINE = {"mode": "refine"}
_FREE = {"cross": (0.0, 0.0), "self_": (0.0, 0.2), "self_limit": 1, **_REFINE}
WAYS = {
    "object": {
        "no control, cfg 7.5": Way(7.5),
        "P2P, cfg 7.5": Way(7.5, {}),
        "P2P and Local Blend, cfg 7.5": Way(7.5, {}, {}),
        "P2P and Local Blend, cfg 2.5": Way(2.5, {}, {}),
    },
    "shape": {
        "no control, cfg 7.5": Way(7.5),
        "P2P refine and Local Blend, cfg 7.5": Way(7.5, _REFINE, {}),
        "the same, self_end 0.2": Way(7.5, {"self_": (0.0, 0.2), **_REFINE}, {}),
        "the same, cfg 2.5": Way(2.5, {"self_": (0.0, 0.2), **_REFINE}, {}),
    },
    "background": {
        "no control, cfg 7.5": Way(7.5),
        "P2P refine and Local Blend, cfg 7.5": Way(7.5, _REFINE, {}),
        "cross_end 0, self_end 0.2, self_limit 1, start 0.4": Way(7.5, _FREE, {"start": 0.4}),
        "the same, cfg 2.5": Way(2.5, _FREE, {"start": 0.4}),
    },
}
"""By what is edited: a property of the object, its shape, or the background."""


def subject(kind: str) -> str:
    """Under which name a kind's ways stand."""
    return kind if kind in WAYS else "object"


def read(world: Judged, case: Case, picture: np.ndarray) -> bool:
    """Whether a picture is nearest to the true edit, among those of every word of the kind."""
    near = {
        word: psnr(picture, case.scene.change(**{case.kind: word}).render())
        for word in world.words[case.kind]
    }
    return max(near, key=lambda word: near[word]) == getattr(case.truth, case.kind)


def measured(editor: Editor, case: Case) -> list[Row]:
    """A line for every way to make a case's edit."""
    editor.take(case)
    lines = []
    for name, way in WAYS[subject(case.kind)].items():
        chain = () if way.blend is None else (editor.blend(case, **way.blend),)
        picture = editor.edit(chain, way.cfg, way.p2p)[0]
        row = {"way": name, "read": read(editor.world, case, picture), **judged(case, picture)}
        lines.append({"subject": subject(case.kind), **row})
    return lines


def figures(lines: Sequence[Row]) -> list[Row]:
    """The means of every way on every world."""
    rows = []
    for what, world in itertools.product(WAYS, dict.fromkeys(line["world"] for line in lines)):
        for name in WAYS[what]:
            chosen = [
                line
                for line in lines
                if (line["subject"], line["world"], line["way"]) == (what, world, name)
            ]
            means = {
                key: round(float(np.mean([line[key] for line in chosen])), 3)
                for key in ("read", "truth_psnr", "kept_psnr")
            }
            rows.append({"subject": what, "way": name, "world": world, "n": len(chosen), **means})
    return rows


def tables(rows: Sequence[Row]) -> str:
    """The figures as they stand in docs/BENCHMARKS.md."""
    worlds = list(dict.fromkeys(row["world"] for row in rows))
    head = " | ".join(f"{world}: read | to the true edit, dB | kept part, dB" for world in worlds)
    lines = [f"| what changes | how | {head} |", f"|---|---|{'---|' * (3 * len(worlds))}"]
    form = "{read:.0%} of {n} | {truth_psnr:.1f} | {kept_psnr:.1f}"
    for what, ways in WAYS.items():
        for name in ways:
            every = {
                row["world"]: row for row in rows if (row["subject"], row["way"]) == (what, name)
            }
            cells = " | ".join(form.format(**every[world]) for world in worlds)
            lines.append(f"| {what} | {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.advice", description=__doc__)
    parser.add_argument("--scenes", type=int, default=6, help="of each kind, in each world")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    install.import_comfy()
    lines: list[Row] = []
    for name, world in WORLDS.items():
        editor = Editor(world)
        for case in cases(world, options.scenes * len(world.kinds)):
            with torch.inference_mode():
                lines += [{"world": name, **row} for row in measured(editor, case)]
            print(name, case.kind, lines[-1], flush=True)
    rows = figures(lines)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(["[", ",\n".join(json.dumps(row) for row in rows), "]"]) + "\n")
    print(tables(rows))
    if options.keep:
        shutil.copy(OUT, install.ROOT / "docs" / "figures" / OUT.name)


if __name__ == "__main__":
    main()
