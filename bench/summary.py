"""From judged pictures to figures: means, bootstrap intervals, paired gains, tables.

A line is what bench/quality.py writes of one picture; a row sums up the lines of a method, a
control, a cfg and a kind. In place of a cfg stands `tuned` where each kind has the settings that
bring it nearest to the true edit.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bench.cases import KINDS, RIGID_KINDS
from bench.methods import CONTROLS, EDITS, METHODS, PASTED

Line = Mapping[str, Any]
Row = dict[str, Any]
Cfg = float | str | None
TUNED = "tuned"
LIMITS = {"round trip": "ceiling", "true edit": "true", "true edit in a mask": "masked"}
"""What no edit can pass, all of method `autoencoder`, and the nodes that save it."""
MEASURED = (
    "edit_success",
    "background_psnr",
    "background_psnr_zeroed",
    "truth_psnr",
    "truth_ssim",
    "source_psnr",
)
RESAMPLES = 2000


def read_lines(path: pathlib.Path) -> list[Line]:
    """The lines of earlier runs; a last one that was cut off does not count, and of what was made
    twice, the last."""
    found: dict[str, Line] = {}
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        found[key(line["case"], line["method"], line["control"], line["settings"])] = line
    return list(found.values())


def key(case: str, method: str, control: str, settings: Mapping[str, Any]) -> str:
    """What a picture is known by."""
    return json.dumps([case, method, control, settings])


def cfgs_of(line: Line) -> tuple[Cfg, ...]:
    """What a line counts under: its cfg, if all else but the steps is as its kind has it; `tuned`,
    if all is as that is; neither, if it was made with settings that its kind has no more. None:
    limits, which have no settings."""
    settings, kind = line["settings"], KINDS[line["kind"]]
    if not settings:
        return (None,)
    cfg, found = settings["cfg"], []
    if settings == dataclasses.asdict(
        dataclasses.replace(kind.settings, cfg=cfg, steps=settings["steps"])
    ):
        found.append(cfg)
    if kind.tuned is not None and settings == dataclasses.asdict(kind.tuned):
        found.append(TUNED)
    return tuple(found)


def rows_of(lines: Sequence[Line]) -> list[Row]:
    """The rows of quality.json: of every kind, of the rigid ones together, of all; of cases whose
    limits are known."""
    ceilings = {
        line["case"]: line["ceiling_psnr"] for line in lines if line["control"] == "round trip"
    }
    lines = [line for line in lines if line["case"] in ceilings]
    groups = collections.defaultdict(list)
    for line in lines:
        for cfg in cfgs_of(line):
            kinds = [line["kind"], *(["rigid"] if line["kind"] in RIGID_KINDS else [])]
            for kind in kinds if cfg == TUNED else [*kinds, "all"]:  # not all kinds are tuned
                groups[cfg, line["method"], line["control"], kind].append(line)
    return [_row(*group, groups[group], ceilings, lines) for group in sorted(groups, key=_order)]


def _order(group: tuple[Cfg, str, str, str]) -> tuple[Any, ...]:
    cfg, method, control, kind = group
    methods, controls = [*METHODS, "autoencoder"], [*CONTROLS, *LIMITS]
    return (
        cfg == TUNED,
        -cfg if isinstance(cfg, float) else 0.0,
        methods.index(method),
        controls.index(control),
        [*KINDS, "rigid", "all"].index(kind),
    )


def _row(
    cfg: Cfg,
    method: str,
    control: str,
    kind: str,
    lines: Sequence[Line],
    ceilings: Mapping[str, float],
    every: Sequence[Line],
) -> Row:
    row: Row = {"method": method, "control": control, "kind": kind, "n": len(lines), "cfg": cfg}
    row |= {name: _mean(lines, name) for name in MEASURED}
    row["ceiling_psnr"] = round(float(np.mean([ceilings[line["case"]] for line in lines])), 4)
    row["object_kept"] = round(
        float(np.mean([set(line["wrong"]) <= {"background"} for line in lines])), 4
    )
    row["intervals"] = {name: interval([line[name] for line in lines]) for name in MEASURED}
    if cfg is not None:
        row |= {"steps": lines[0]["settings"]["steps"]}
        row |= {name: _mean(lines, name) for name in ("rows_per_step", "prepare_rows")}
        row["seconds"] = round(_mean(lines, "seconds") + prepare_seconds(method, every, cfg), 2)
    if cfg == TUNED and kind in KINDS:
        row["settings"] = lines[0]["settings"]
    return row


def _mean(lines: Sequence[Line], name: str) -> float:
    return round(float(np.mean([line[name] for line in lines])), 4)


def prepare_seconds(method: str, lines: Iterable[Line], cfg: Cfg) -> float:
    """Mean seconds of a method's inversion and optimisation at a cfg. Inversions that the host had
    cached from the job
    before took none: methods that start from the same one share the time of those that ran, at any
    cfg if it has no part in them."""
    matched = METHODS[method].matched
    inversions, optimised = [], []
    for line in lines:
        if line["method"] not in METHODS or METHODS[line["method"]].matched != matched:
            continue
        here = cfg in cfgs_of(line)
        if line["prepare_seconds"] is not None and (here or not matched):
            inversions.append(line["prepare_seconds"] - (line["null_text_seconds"] or 0.0))
        if line["method"] == method and line["null_text_seconds"] and here:
            optimised.append(line["null_text_seconds"])
    return sum(float(np.mean(times)) for times in (inversions, optimised) if times)


def interval(values: Sequence[float] | Sequence[bool]) -> list[float]:
    """The 95 % interval of a mean; of a share, where resampling cases that all agree would give
    none, Wilson's."""
    if not isinstance(values[0], bool):
        return bootstrap(values)
    import scipy.stats  # takes seconds, which few of this module's users need

    found = scipy.stats.binomtest(sum(values), len(values)).proportion_ci(method="wilson")
    return [round(float(found.low), 4), round(float(found.high), 4)]


def common(lines: Sequence[Line], cfg: float) -> list[Row]:
    """Rows of the cases that a method of few has at a cfg, so that all methods are compared on the
    same ones."""
    cases = {
        line["case"]
        for line in lines
        if line["method"] == "negative_prompt" and cfg in cfgs_of(line)
    }
    rows = rows_of([line for line in lines if line["case"] in cases])
    return [row for row in rows if row["cfg"] in (cfg, None)]


def bootstrap(values: Sequence[float]) -> list[float]:
    """The 95 % interval of the mean, by resampling the cases (percentiles, seed 0)."""
    drawn = np.random.default_rng(0).choice(values, (RESAMPLES, len(values)))
    return [round(float(bound), 4) for bound in np.percentile(drawn.mean(1), (2.5, 97.5))]


def gain(
    lines: Sequence[Line],
    one: tuple[Any, ...],
    other: tuple[Any, ...],
    name: str,
    kinds: Sequence[str],
) -> Row:
    """How much higher a figure is under (method, control, cfg) `one` than under `other`, on the
    cases of these kinds
    that both have: its mean, 95 % interval and n."""
    found: dict[tuple[Any, ...], dict[str, float]] = {one: {}, other: {}}
    for line in lines:
        for cfg in cfgs_of(line) if line["kind"] in kinds else ():
            group = (line["method"], line["control"], cfg)
            if group in found:
                found[group][line["case"]] = float(line[name])
    both = sorted(found[one].keys() & found[other].keys())
    differences = [found[one][case] - found[other][case] for case in both]
    if not differences:
        raise ValueError(f"no case has both {one} and {other}")
    return {"gain": float(np.mean(differences)), "interval": bootstrap(differences), "n": len(both)}


# -- tables
# ------------------------------------------------------------------------------------------------

HEAD = (
    "method",
    "control",
    "n",
    "read as the target",
    "kept part",
    "to the true edit",
    "SSIM",
    "rows",
    "seconds",
)


def table(rows: Sequence[Row], kind: str = "all", cfg: Cfg = 7.5) -> str:
    """The rows of one kind at one cfg as a Markdown table; half the width of the 95 % interval
    behind a mean."""
    chosen = [
        row for row in rows if (row["kind"], row["cfg"]) == (kind, cfg) and row["control"] in EDITS
    ]
    return "\n".join([_cells(HEAD), _cells(["---"] * len(HEAD)), *map(_table_row, chosen)])


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table_row(row: Row) -> str:
    cost = ["", ""]
    if row["cfg"] is not None:
        cost[0] = f"{row['prepare_rows'] + row['rows_per_step'] * row['steps']:.0f}"
        cost[1] = f"{row['seconds']:.1f}"
    success = spread(row, "edit_success", "{:.0f}", 100.0) + " %"
    decibels = [spread(row, name, "{:.1f}") for name in ("background_psnr", "truth_psnr")]
    return _cells(
        [
            row["method"],
            row["control"],
            str(row["n"]),
            success,
            *decibels,
            f"{row['truth_ssim']:.3f}",
            *cost,
        ]
    )


def spread(row: Row, name: str, form: str, factor: float = 1.0) -> str:
    """A mean and how far its interval reaches, such as "23.1 ±0.4"."""
    low, high = row["intervals"][name]
    return f"{form.format(factor * row[name])} ±{form.format(factor * (high - low) / 2)}"


def find(rows: Sequence[Row], method: str, control: str, kind: str, cfg: Cfg = 7.5) -> Row:
    """One row; KeyError if there is none."""
    wanted = (method, control, kind, cfg)
    for row in rows:
        if (row["method"], row["control"], row["kind"], row["cfg"]) == wanted:
            return row
    raise KeyError(wanted)


def suited(rows: Sequence[Row], kind: str) -> Row:
    """Of the ways to edit under direct inversion, at the papers' cfg or as the kind is tuned, that
    as many cases have as no control has, and that are read as the target as often as the best, less
    a tenth: the nearest to the true edits."""
    plain = find(rows, "direct", "none", kind)
    own = [
        row
        for row in rows
        if (row["method"], row["kind"], row["n"]) == ("direct", kind, plain["n"])
    ]
    found = [
        row
        for row in own
        if row["cfg"] in (plain["cfg"], TUNED) and row["control"] in (*EDITS, PASTED)
    ]
    often = max(row["edit_success"] for row in found) - 0.1
    return max(
        (row for row in found if row["edit_success"] >= often),
        key=lambda row: float(row["truth_psnr"]),
    )
