"""What too weak and too strong look like: one setting at a time, by the API, for
docs/BENCHMARKS.md.

Each sweep edits the same held-out cases with every value of one setting, all else as bench/cases.py
has it. Lines are kept beside those of bench/quality.py; `out/bench/sweeps.json` holds their means,
`out/bench/sweep_<name>.png` pictures.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bench.cases import KINDS
from bench.jobs import Job, command, make
from bench.summary import Line, read_lines
from tools import install
from tools.pictures import to_image

OUT = install.ROOT / "out" / "bench"
MADE, LINES = OUT / "quality", "sweeps.jsonl"
CASES, SHOWN = 6, 3
SIDE, GAP, LINE = 96, 8, 18


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Values of a setting of bench/methods.Settings, for edits of a kind by a method under a
    control. base: what differs from the kind's own settings."""

    name: str
    field: str
    label: str
    values: tuple[float, ...]
    kind: str
    control: str
    method: str = "direct"
    base: tuple[tuple[str, Any], ...] = ()


SWEEPS = (
    Sweep(
        "cross",
        "cross_end",
        "cross_end",
        (0.0, 0.2, 0.4, 0.8, 1.0),
        "shape",
        "p2p",
        base=(("self_end", 0.0),),
    ),
    Sweep(
        "self",
        "self_end",
        "self_end",
        (0.0, 0.2, 0.4, 0.8, 1.0),
        "shape",
        "p2p",
        base=(("self_limit", 1.0),),
    ),
    Sweep("cfg", "cfg", "cfg, direct", (1.0, 2.0, 3.0, 5.0, 7.5, 12.0), "color", "p2p_blend"),
    Sweep("cfg_plain", "cfg", "cfg, no control", (1.0, 2.0, 3.0, 5.0, 7.5, 12.0), "color", "none"),
    Sweep(
        "cfg_negative",
        "cfg",
        "cfg, negative-prompt",
        (1.0, 1.5, 2.0, 3.0, 5.0, 7.5),
        "color",
        "p2p",
        "negative_prompt",
    ),
    Sweep(
        "quantile",
        "quantile",
        "quantile, at cfg 3",
        (0.0, 0.4, 0.7, 0.9, 0.98),
        "color",
        "proxnpi",
        "negative_prompt",
        (("cfg", 3.0),),
    ),
    Sweep(
        "masactrl",
        "masactrl_start",
        "MasaCtrl start",
        (0.0, 0.2, 0.4, 0.7, 1.0),
        "position",
        "masactrl",
    ),
    Sweep(
        "threshold",
        "threshold",
        "Local Blend threshold",
        (0.1, 0.2, 0.3, 0.4, 0.6),
        "color",
        "p2p_blend",
    ),
    Sweep(
        "pool",
        "threshold",
        "the same, pooled",
        (0.2, 0.3, 0.5, 0.7, 0.9),
        "color",
        "p2p_blend",
        base=(("pool", True),),
    ),
    Sweep("steps", "steps", "steps", (5, 10, 20, 50), "color", "p2p_blend"),
)


def settings_of(sweep: Sweep, value: float) -> Any:
    """The kind's settings with one of the sweep's values."""
    return dataclasses.replace(
        KINDS[sweep.kind].settings, **dict(sweep.base), **{sweep.field: value}
    )


def jobs(count: int, chosen: Sequence[Sweep] = SWEEPS) -> list[list[Job]]:
    """A job for every sweep, case and value."""
    return [
        [
            Job(sweep.kind, i, sweep.method, ((sweep.control, settings_of(sweep, value)),))
            for value in sweep.values
        ]
        for sweep in chosen
        for i in range(count)
    ]


def lines_at(sweep: Sweep, value: float, lines: Sequence[Line]) -> list[Line]:
    """The lines of one value, by case."""
    wanted = dataclasses.asdict(settings_of(sweep, value))
    found = [
        line
        for line in lines
        if (line["kind"], line["method"], line["control"])
        == (sweep.kind, sweep.method, sweep.control)
        and line["settings"] == wanted
    ]
    return sorted(found, key=lambda line: line["case"])


def means(sweep: Sweep, lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """What every value gave."""
    for value in sweep.values:
        at = lines_at(sweep, value, lines)
        names = ("edit_success", "background_psnr", "truth_psnr")
        row = {name: round(float(np.mean([line[name] for line in at])), 3) for name in names}
        yield {"sweep": sweep.name, "setting": sweep.label, "value": value, "n": len(at), **row}


def sheet(sweep: Sweep, lines: Sequence[Line], rows: Sequence[dict[str, Any]]) -> Image.Image:
    """Cases below each other, values beside each other between the source and the true edit."""
    heads = [f"{row['value']:g}" for row in rows]
    figures = [f"{100 * row['edit_success']:.0f} %, {row['truth_psnr']:.1f} dB" for row in rows]
    names, below = ["source", *heads, "true edit"], ["", *figures, ""]
    page = Image.new(
        "RGB", (len(names) * (SIDE + GAP) + GAP, SHOWN * (SIDE + GAP) + 3 * LINE + GAP), "white"
    )
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    pen.text(
        (GAP, 2), f"{sweep.label}: read as the target, to the true edit", fill="#1f2328", font=font
    )
    columns = [_made(sweep, value, lines) for value in sweep.values]
    edits = KINDS[sweep.kind].cases(SHOWN)
    ends = (
        [to_image(edit.scene.render()) for edit in edits],
        [to_image(edit.truth.render()) for edit in edits],
    )
    for column, pictures in enumerate((ends[0], *columns, ends[1])):
        x = GAP + column * (SIDE + GAP)
        pen.text((x, LINE), names[column], fill="#1f2328", font=font)
        pen.text((x, 2 * LINE), below[column], fill="#6e7781", font=font)
        for place, picture in enumerate(pictures):
            page.paste(
                picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS),
                (x, 3 * LINE + place * (SIDE + GAP)),
            )
    return page


def _made(sweep: Sweep, value: float, lines: Sequence[Line]) -> list[Image.Image]:
    """The first cases' pictures at one value."""
    at = {line["case"]: line for line in lines_at(sweep, value, lines)}
    return [
        Image.open(MADE / at[f"{sweep.kind}-{i:03d}"]["picture"]).convert("RGB")
        for i in range(SHOWN)
    ]


def run(count: int = CASES, servers: int = 0) -> int:
    """Make what is missing, write figures and pictures; 1 if a job failed, then without figures."""
    made = make(jobs(count), MADE, LINES, servers)
    lines = read_lines(MADE / LINES)
    if made.failed:
        print(f"{made.failed} jobs failed; run it again")
        return 1
    rows = [row for sweep in SWEEPS for row in means(sweep, lines)]
    (OUT / "sweeps.json").write_text(json.dumps(rows, indent=1) + "\n")
    for sweep in SWEEPS:
        own = [row for row in rows if row["sweep"] == sweep.name]
        sheet(sweep, lines, own).save(OUT / f"sweep_{sweep.name}.png", optimize=True)
    print(OUT / "sweeps.json")
    return 0


if __name__ == "__main__":
    sys.exit(command(run))
