"""Fills docs/BENCHMARKS.md from measured figures: `python -m bench.benchmarks [--keep]`.

`--keep` takes over the last `make bench-quality`: its rows and what follows from its single
pictures (targets, gains, contact sheets, plots) go to docs/figures and docs/images. Without it,
only the text is made anew from docs/figures. Numbers are never typed in by hand;
`tests/contract/test_readme.py` compares.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from bench import inversion_steps, masks, verdicts
from bench.cases import KINDS, RIGID_KINDS, TUNED_FILE
from bench.methods import EDITS, METHODS, PASTED, UNCORRECTED
from bench.quality import GENTLE_CFG, LINES, MADE, OUT
from bench.readme import FIGURES, ROOT, edits, fill, speed
from bench.sheets import contact_sheet, gallery, plot_costs
from bench.summary import (
    LIMITS,
    TUNED,
    Cfg,
    Line,
    Row,
    common,
    find,
    gain,
    read_lines,
    spread,
    table,
)
from bench.sweeps import SWEEPS
from bench.tuning import READ, unused_threshold

DOCUMENT = ROOT / "docs" / "BENCHMARKS.md"
IMAGES = ROOT / "docs" / "images"
PAPERS_CFG, QUALITY = 7.5, 88
PLAIN, CEILING = (UNCORRECTED, "none", PAPERS_CFG), ("autoencoder", "round trip", None)
COMPARED = tuple(name for name in METHODS if name != UNCORRECTED)
SHEETS = {
    "rigid": (("direct", PASTED, TUNED), RIGID_KINDS),
    "position": (("direct", "masactrl", PAPERS_CFG), ("position",)),
}


# -- what follows from single pictures
# ---------------------------------------------------------------------


KEPT, CLOSER, MOVED = 1.0, 4.0, 0.8
"""The targets beside READ: dB below the ceiling, dB above plain sampling, the share that is moved.
"""


def best_rigid(rows: Sequence[Row]) -> Row:
    """Of all ways to edit colour, pattern and background that all cases have and that are read as
    the target as often as asked for (or, if there is none, of all), the nearest to the true edits.
    """
    count, controls = find(rows, *PLAIN[:2], "rigid")["n"], (*EDITS, PASTED)
    rigid = [
        row
        for row in rows
        if (row["kind"], row["n"]) == ("rigid", count) and row["control"] in controls
    ]
    often = [row for row in rigid if row["edit_success"] >= READ]
    return max(often or rigid, key=lambda row: float(row["truth_psnr"]))


def targets(rows: Sequence[Row], lines: Sequence[Line]) -> list[Row]:
    """The figures that were asked for, of the best rigid method and of position edits."""
    best, moved = (
        rigid(best_rigid(rows), "rigid", rows, lines),
        find(rows, "direct", "masactrl", "position"),
    )
    name = (
        f"{best['method']}, {best['control']}, {_cfg(best['cfg'])}, colour, pattern and background"
    )
    kept = {"gain": moved["object_kept"], "n": moved["n"]}
    return [
        _target(f"{name}: read as the target", best["read"], READ, share=True),
        _target(f"{name}: kept part below the ceiling, dB", best["below"], KEPT, below=True),
        _target(f"{name}: to the true edit above plain sampling, dB", best["closer"], CLOSER),
        _target(
            f"direct, masactrl, cfg {PAPERS_CFG:g}, position: object kept and moved",
            kept,
            MOVED,
            share=True,
        ),
    ]


def all_rigid(rows: Sequence[Row], lines: Sequence[Line]) -> list[Row]:
    """The same figures of Local Blend, pasted and not, under the papers' cfg, a low one and the
    tuned settings, kind by kind."""
    ways = itertools.product((PASTED, "p2p_blend"), (TUNED, PAPERS_CFG, GENTLE_CFG))
    found = [find(rows, "direct", control, "rigid", cfg) for control, cfg in ways]
    return [rigid(one, kind, rows, lines) for one in found for kind in ("rigid", *RIGID_KINDS)]


def rigid(way: Row, kind: str, rows: Sequence[Row], lines: Sequence[Line]) -> Row:
    """Of a way to edit, for a kind: how often it is read as the target, how far the kept part lies
    below the ceiling, and how much nearer to the true edit it is than plain sampling, at the
    papers' cfg and (of direct inversion, whose edits without control are the same) at its own."""
    key = (way["method"], way["control"], way["cfg"])
    row, kinds = find(rows, *key[:2], kind, key[2]), RIGID_KINDS if kind == "rigid" else [kind]
    return {
        **{name: row[name] for name in ("method", "control", "cfg", "kind", "n")},
        "read": {
            "gain": row["edit_success"],
            "interval": row["intervals"]["edit_success"],
            "n": row["n"],
        },
        "below": gain(lines, CEILING, key, "background_psnr", kinds),
        "closer": gain(lines, key, PLAIN, "truth_psnr", kinds),
        "closer_at_its_cfg": gain(lines, key, ("direct", "none", way["cfg"]), "truth_psnr", kinds),
    }


def _cfg(cfg: Cfg) -> str:
    return f"cfg {cfg:g}" if isinstance(cfg, float) else "tuned to each kind"


def _target(name: str, found: Row, target: float, share: bool = False, below: bool = False) -> Row:
    value = found["gain"]
    met = bool(value <= target if below else value >= target)
    row = {
        "figure": name,
        "value": round(value, 3),
        "interval": found.get("interval"),
        "n": found["n"],
    }
    return row | {"target": target, "met": met, "share": share}


def against_plain(lines: Sequence[Line]) -> list[Row]:
    """Every correction against plain DDIM at the papers' cfg, on the cases that both have: the
    source that comes back, and edits under the controls that suit."""
    found = []
    for method in COMPARED:
        for control, name in (
            ("reconstruction", "source_psnr"),
            ("p2p", "background_psnr"),
            ("p2p", "truth_psnr"),
            ("p2p_blend", "background_psnr"),
            ("p2p_blend", "truth_psnr"),
            ("p2p_blend", "edit_success"),
        ):
            one, other = ((each, control, PAPERS_CFG) for each in (method, UNCORRECTED))
            if control == "reconstruction" and METHODS[method].few:
                continue  # of which README's inversion table says how it comes back
            found.append(
                {
                    "method": method,
                    "control": control,
                    "figure": name,
                    **gain(lines, one, other, name, list(KINDS)),
                }
            )
    return found


def take() -> None:
    """Take over the last `make bench-quality`."""
    lines, rows = read_lines(MADE / LINES), json.loads(OUT.read_text())
    _write("quality.json", rows)
    same = [
        row
        for cfg in (PAPERS_CFG, GENTLE_CFG)
        for row in common(lines, cfg)
        if row["kind"] in ("rigid", "all")
    ]
    _write("common.json", [row for row in same if row["cfg"] is not None])
    _write("targets.json", targets(rows, lines))
    _write("rigid.json", all_rigid(rows, lines))
    _write("against_plain.json", against_plain(lines))
    for name in ("quality_about.json", "sweeps.json"):
        shutil.copy(OUT.with_name(name), FIGURES / name)
    for name, (mine, kinds) in SHEETS.items():
        sheet = contact_sheet(lines, mine, PLAIN, kinds)
        sheet.save(IMAGES / f"cases_{name}.jpg", quality=QUALITY)
    for sweep in SWEEPS:
        with Image.open(OUT.with_name(f"sweep_{sweep.name}.png")) as sheet:
            sheet.save(IMAGES / f"sweep_{sweep.name}.jpg", quality=QUALITY)
    gallery(lines, rows).save(IMAGES / "edits.jpg", quality=QUALITY)
    plot_costs(same, IMAGES / "quality_cost.png")


def _write(name: str, rows: Sequence[Row]) -> None:
    """A JSON list with a row on each line."""
    text = ",\n".join(json.dumps(row) for row in rows)
    (FIGURES / name).write_text(f"[\n{text}\n]\n")


# -- the document
# ------------------------------------------------------------------------------------------


def _figures(name: str) -> Any:
    return json.loads((FIGURES / name).read_text())


def section_run() -> str:
    """What was run on what."""
    about, rows = _figures("quality_about.json"), _figures("quality.json")
    count = find(rows, "direct", "p2p_blend", "all")
    few = find(rows, "negative_prompt", "p2p_blend", "all")
    reference = find(rows, "null_text_reference", "p2p_blend", "all")
    per, steps, servers = (
        count["n"] // len(KINDS),
        count["steps"],
        about.get("servers", "not noted"),
    )
    return (
        f"{count['n']} pairs, {per} of each of {len(KINDS)} kinds, for `direct` under all "
        "controls and plain DDIM "
        f"under two; {few['n']} for the other methods, {reference['n']} for the reference's "
        "null-text; cfg "
        f"{PAPERS_CFG:g}, {steps} steps. `python -m bench.quality {about['options']}`; servers: "
        f"{servers}, "
        f"threads {about['threads']}; ComfyUI {about['comfyui_version']}, torch "
        f"{about['pytorch_version']}, "
        f"{about['device']}. A run that was stopped and went on: seconds are of its parts. "
        f"{about['earlier']} of "
        f"{about['pictures']} pictures were made before the last change of the pack's code."
    )


def section_targets() -> str:
    """The targets."""
    lines = ["| figure | value | 95 % | target | met | pairs |", "|---|---|---|---|---|---|"]
    for row in _figures("targets.json"):
        value, aim = (_value(row[name], row["share"]) for name in ("value", "target"))
        interval = " to ".join(_value(bound, row["share"]) for bound in row["interval"] or ())
        met = "yes" if row["met"] else "**no**"
        lines.append(f"| {row['figure']} | {value} | {interval} | {aim} | {met} | {row['n']} |")
    return "\n".join(lines)


def _value(value: float, share: bool) -> str:
    return f"{100 * value:.0f} %" if share else f"{value:.1f}"


def section_rigid() -> str:
    """Rigid edits, kind by kind, under several settings."""
    heads = ("control", "cfg", "kind", "n", "read as the target", "kept part below the ceiling")
    lines = [
        f"| {' | '.join((*heads, 'above plain sampling at 7.5', 'at its own cfg'))} |",
        f"|{'---|' * 8}",
    ]
    for row in _figures("rigid.json"):
        cfg = row["cfg"] if row["cfg"] == TUNED else f"{row['cfg']:g}"
        cells = [
            row["control"],
            cfg,
            row["kind"],
            str(row["n"]),
            _within(row["read"], 100.0, "{:.0f}") + " %",
        ]
        cells += [_within(row[name]) for name in ("below", "closer", "closer_at_its_cfg")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _within(found: Row, factor: float = 1.0, form: str = "{:.1f}") -> str:
    return (
        f"{form.format(factor * found['gain'])} "
        f"({' to '.join(form.format(factor * b) for b in found['interval'])})"
    )


def section_plain() -> str:
    """Corrections against plain DDIM."""
    lines = ["| method | what | gain over plain DDIM | 95 % | pairs |", "|---|---|---|---|---|"]
    names = {
        "source_psnr": "dB to the source",
        "background_psnr": "dB of the kept part",
        "truth_psnr": "dB to the true edit",
    }
    for row in _figures("against_plain.json"):
        share = row["figure"] == "edit_success"
        factor, unit, what = (
            (100.0, " %", "read as the target") if share else (1.0, "", names[row["figure"]])
        )
        low, high = (factor * bound for bound in row["interval"])
        apart = "**" if low > 0 else ""
        value = f"{apart}{factor * row['gain']:+.1f}{unit}{apart}"
        lines.append(
            f"| {row['method']} | {row['control']}, {what} | {value} | {low:+.1f} to {high:+.1f} "
            f"| {row['n']} |"
        )
    return "\n".join(lines)


def section_all() -> str:
    """Everything on the cases that all methods have."""
    return table(_figures("common.json"))


def section_gentle() -> str:
    """The same at a low cfg."""
    return table(_figures("common.json"), "all", GENTLE_CFG)


def section_limits() -> str:
    """What no edit can pass."""
    rows = _figures("quality.json")
    head = (
        "kind",
        *(f"{name}: kept part" for name in LIMITS),
        "true edit: to the true edit",
        "in a mask: to the true edit",
    )
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for kind in (*KINDS, "rigid", "all"):
        found = [find(rows, "autoencoder", name, kind, None) for name in LIMITS]
        cells = [f"{row['background_psnr']:.1f}" for row in found] + [
            f"{row['truth_psnr']:.1f}" for row in found[1:]
        ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def section_kinds() -> str:
    """Every kind under direct inversion."""
    rows = _figures("quality.json")
    shown = ("read as the target", "kept part", "zero-masked", "to the true edit", "SSIM")
    lines = [f"| kind | control | n | {' | '.join(shown)} |", f"|{'---|' * 8}"]
    for kind in KINDS:
        for control in EDITS:
            row = find(rows, "direct", control, kind)
            cells = [spread(row, "edit_success", "{:.0f}", 100.0) + " %"]
            cells += [
                spread(row, name, "{:.1f}")
                for name in ("background_psnr", "background_psnr_zeroed", "truth_psnr")
            ]
            lines.append(
                f"| {kind} | {control} | {row['n']} | {' | '.join(cells)} | "
                f"{row['truth_ssim']:.3f} |"
            )
    return "\n".join(lines)


P2P_SETTINGS = ("mode", "cross_end", "self_end", "self_limit")
BLEND_SETTINGS = ("threshold", "subtract_threshold", "pool")
SETTINGS = (*P2P_SETTINGS, *BLEND_SETTINGS, "masactrl_start")


def section_settings() -> str:
    """What the kinds' nodes were set to."""
    lines = [f"| kind | {' | '.join(SETTINGS)} | Local Blend |", f"|{'---|' * (len(SETTINGS) + 2)}"]
    for kind in KINDS.values():
        cells = " | ".join(str(getattr(kind.settings, name)) for name in SETTINGS)
        lines.append(
            f"| {kind.name} | {cells} | "
            f"{'at the object' if kind.at_object else 'everywhere but there'} |"
        )
    return "\n".join(lines)


def section_tuned() -> str:
    """What tuning found, and what it gave on the scenes it was done on."""
    names = ("cfg", *P2P_SETTINGS, *BLEND_SETTINGS, "blend_start")
    lines = [
        f"| kind | {' | '.join(names)} | tried | n | read | to the true edit |",
        f"|{'---|' * (len(names) + 5)}",
    ]
    for kind, found in json.loads(TUNED_FILE.read_text()).items():
        best, unused = found["best"], unused_threshold(KINDS[kind])
        cells = ["-" if name == unused else str(best["settings"][name]) for name in names]
        cells += [str(len(found["tried"])), str(best["n"]), f"{100 * best['edit_success']:.0f} %"]
        lines.append(f"| {kind} | {' | '.join(cells)} | {best['truth_psnr']:.1f} |")
    return "\n".join(lines)


def section_sweeps() -> str:
    """One setting at a time."""
    rows, found = _figures("sweeps.json"), []
    for sweep in SWEEPS:
        own = [row for row in rows if row["sweep"] == sweep.name]
        head = " | ".join(f"{row['value']:g}" for row in own)
        found += [
            f"**{sweep.label}** ({sweep.kind} edits, {sweep.method}, {sweep.control}; "
            f"{own[0]['n']} pairs)",
            "",
        ]
        found += [f"| | {head} |", f"|---|{'---|' * len(own)}"]
        shown = (
            ("edit_success", "read as the target, %", 100.0, ".0f"),
            ("background_psnr", "kept part, dB", 1.0, ".1f"),
        )
        for name, title, factor, form in (
            *shown,
            ("truth_psnr", "to the true edit, dB", 1.0, ".1f"),
        ):
            found.append(
                f"| {title} | {' | '.join(format(factor * row[name], form) for row in own)} |"
            )
        found += ["", f"![{sweep.label}](images/sweep_{sweep.name}.jpg)", ""]
    return "\n".join(found[:-1])


def section_steps() -> str:
    """How few steps an inversion can have."""
    return inversion_steps.tables(_figures("inversion_steps.json"))


def section_verdicts() -> str:
    """What Inversion Report says of inversions whose truth is known."""
    return verdicts.section(_figures("verdicts.json"))


def section_masks() -> str:
    """Whether masks of words find the object, on two worlds."""
    return masks.tables(_figures("masks.json"))


SECTIONS: dict[str, Callable[[], str]] = {
    "run": section_run,
    "targets": section_targets,
    "rigid": section_rigid,
    "plain": section_plain,
    "suited": edits,
    "all": section_all,
    "gentle": section_gentle,
    "limits": section_limits,
    "kinds": section_kinds,
    "settings": section_settings,
    "tuned": section_tuned,
    "sweeps": section_sweeps,
    "steps": section_steps,
    "verdicts": section_verdicts,
    "masks": section_masks,
    "speed": speed,
}


def filled(text: str) -> str:
    """The document with every marked section made anew."""
    return fill(text, SECTIONS)


def main() -> None:
    if "--keep" in sys.argv:
        take()
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
