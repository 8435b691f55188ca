"""How few steps an inversion can have: `python -m bench.inversion_steps [--keep]`,
`out/bench/inversion_steps.json`.

* back: held-out pictures inverted under their captions, in few steps and in many, and replayed at
  the same cfg without correction. How far below the autoencoder's round trip do they come back?
* edits: P2P under direct inversion, with every kind's settings at a gentle cfg. How near are they
  to the true edit, how well is the rest kept, and how many are read as the target?

Every edit is a line of `inversion_steps.jsonl` as it is made, a case of every kind in turn, so that
a stopped run goes on. `--keep` copies the figures to `docs/figures/`, for docs/BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bench.cases import KINDS, Edit
from bench.inversion import FIRST, OUT, Bench, Pictures
from bench.judge import judge
from bench.methods import ATTENTION, METHODS, Case
from bench.summary import bootstrap, interval
from tools import install
from tools.pack import part
from toy.scenes import Scene

FIGURES = OUT.with_name("inversion_steps.json")
LINES = FIGURES.with_suffix(".jsonl")
AT = ((1.0, (8, 10, 15, 20, 50)), (2.0, (10, 20)), (5.0, (10, 20)))
"""The guidance of inversions, and after how many steps pictures are brought back at the same."""
BACK = tuple((name, cfg, steps) for cfg, each in AT for steps in each for name in ("uni", "ddim"))
EDITED = (
    ("uni_direct", 10),
    ("uni_direct", 20),
    ("direct", 10),
    ("direct", 20),
    ("direct", 50),
)
"""Methods and steps; the last is the papers', with which the others are compared."""
CFG, PER_KIND, PICTURES = 5.0, 30, 16
JUDGED = ("success", "background_psnr", "truth_psnr", "source_psnr")
Row = dict[str, Any]


def back(bench: Bench, count: int) -> Iterator[Row]:
    """A row for every method, cfg and number of steps: dB below the ceiling without correction, and
    the standard deviation of the noise."""
    scenes = [Scene.sample(FIRST + i) for i in range(count)]
    pictures = Pictures(bench, [(scene, scene.caption) for scene in scenes])
    for name, cfg, steps in BACK:
        method = dataclasses.replace(METHODS[name], matched=True)
        pivot, rows, _ = pictures.prepared(method, cfg, steps)
        psnrs = [one for _, one in pictures.back(method, pivot, cfg)]
        yield {
            "method": name,
            "cfg": cfg,
            "steps": steps,
            "n": count,
            "rows": round(rows / count, 2),
            "below_ceiling": round(float(np.mean(pictures.ceiling) - np.mean(psnrs)), 3),
            "noise_std": round(float(pivot.latents[-1].std()), 3),
        }


def edits(bench: Bench, per_kind: int, done: set[tuple[Any, ...]]) -> Iterator[Row]:
    """A line for every edit that is not done yet: case after case, of all kinds together."""
    for i in range(per_kind):
        cases = [(kind, KINDS[kind].cases(i + 1)[i]) for kind in KINDS]
        ways = [way for way in EDITED if any((kind, i, *way) not in done for kind in KINDS)]
        if not ways:
            continue
        pictures = Pictures(bench, [(edit.scene, edit.source) for _, edit in cases])
        for name, steps in ways:
            pivot = pictures.prepared(METHODS[name], 1.0, steps)[0]
            for at, one in pictures.each(pivot):
                kind, edit = cases[at]
                if (kind, i, name, steps) not in done:
                    figures = edited(bench, pictures, at, one, kind, edit, METHODS[name].correction)
                    yield {"kind": kind, "case": i, "method": name, "steps": steps, **figures}


def edited(
    bench: Bench, pictures: Pictures, at: int, pivot: Any, kind: str, edit: Edit, correction: str
) -> Row:
    """What the judge says of one edit from its inversion."""
    words = (part("host.text.prompts").read_pair(bench.clip, edit.source, edit.target),)
    target = part("host.text.prompts").encode(bench.clip, edit.target)
    run, model = part("host.tasks.editing").edit, controlled(bench, words, kind, edit)
    samples = run(model, pivot, pictures.texts[at], target, pictures.empty, CFG, correction)[0]
    judged = judge(edit, bench.vae.decode(samples["samples"])[0].numpy())
    return {name: _rounded(getattr(judged, name)) for name in JUDGED}


def controlled(bench: Bench, words: Any, kind: str, edit: Edit) -> Any:
    """The model under P2P, as the node of the kind's graph would set it, word weights and all."""
    case = Case("", edit.source, edit.target, weights=edit.weights)
    inputs = ATTENTION["p2p"].node(case, KINDS[kind].settings)["inputs"] | {"words": words}
    options = part("attention.prompt_to_prompt").PromptToPromptOptions
    options = part("core.options").from_inputs(options, inputs)
    return part("host.tasks.controls").controlled(bench.model, options)[0]


def _rounded(value: float | bool) -> float | bool:
    return value if isinstance(value, bool) else round(float(value), 4)


def read_lines() -> list[Row]:
    """The edits that were made before; one that was cut off does not count."""
    lines = []
    for text in LINES.read_text().splitlines() if LINES.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def read_back() -> list[Row]:
    """The rows of the pictures that were brought back before."""
    rows: list[Row] = json.loads(FIGURES.read_text())["back"] if FIGURES.exists() else []
    return rows


def whole(lines: Sequence[Row]) -> list[Row]:
    """Of the lines, the cases that every kind has under every method."""
    made = {_key(line) for line in lines}
    cases = {
        line["case"]
        for line in lines
        if all((kind, line["case"], *way) in made for kind in KINDS for way in EDITED)
    }
    return [line for line in lines if line["case"] in cases]


def _key(line: Row) -> tuple[Any, ...]:
    return line["kind"], line["case"], line["method"], line["steps"]


def summed(lines: Sequence[Row]) -> list[Row]:
    """A row for every method and number of steps: means, 95 % intervals, what it gains over the
    last of `EDITED` on the same pairs, and the share read as the target of every kind."""
    by_way = {way: _of(lines, way) for way in EDITED}
    return [_row(way, by_way[way], by_way[EDITED[-1]]) for way in EDITED]


def _of(lines: Sequence[Row], way: tuple[str, int]) -> list[Row]:
    return sorted((line for line in lines if _key(line)[2:] == way), key=_key)


def _row(way: tuple[str, int], lines: Sequence[Row], reference: Sequence[Row]) -> Row:
    values = {name: [line[name] for line in lines] for name in JUDGED}
    row: Row = {"method": way[0], "steps": way[1], "n": len(lines), "cfg": CFG}
    row["rows"] = METHODS[way[0]].inversion_rows(way[1])
    row |= {name: round(float(np.mean(each)), 3) for name, each in values.items()}
    row["intervals"] = {name: interval(each) for name, each in values.items()}
    row["gains"] = {name: _gain(name, lines, reference) for name in JUDGED}
    row["read"] = {
        kind: round(float(np.mean([line["success"] for line in lines if line["kind"] == kind])), 3)
        for kind in KINDS
    }
    return row


def compared(lines: Sequence[Row]) -> list[Row]:
    """A row for every number of steps that both inverters have: what ddim gains over uni."""
    both = [steps for name, steps in EDITED if name == "direct" and ("uni_direct", steps) in EDITED]
    rows = []
    for steps in both:
        near, exact = (_of(lines, (name, steps)) for name in ("direct", "uni_direct"))
        gains = {name: _gain(name, near, exact) for name in JUDGED}
        rows.append({"steps": steps, "n": len(near), "gains": gains})
    return rows


def _gain(name: str, lines: Sequence[Row], reference: Sequence[Row]) -> Row:
    pairs = zip(lines, reference, strict=True)
    differences = [float(one[name]) - float(other[name]) for one, other in pairs]
    return {"mean": round(float(np.mean(differences)), 3), "interval": bootstrap(differences)}


# -- tables
# ------------------------------------------------------------------------------------------------


def tables(figures: dict[str, list[Row]]) -> str:
    """The section of docs/BENCHMARKS.md."""
    parts = (
        back_table(figures["back"]),
        edits_table(figures["edits"]),
        compared_table(figures["compared"]),
    )
    return "\n\n".join(parts)


def back_table(rows: Sequence[Row]) -> str:
    """How pictures come back: a line for every cfg and number of steps."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    heads = [f"{name}: {what}" for name in names for what in ("dB below the round trip", "std")]
    table = [f"| cfg | steps | {' | '.join(heads)} | n |", f"|{'---|' * (len(heads) + 3)}"]
    by_way = {(row["method"], row["cfg"], row["steps"]): row for row in rows}
    for cfg, steps in dict.fromkeys((row["cfg"], row["steps"]) for row in rows):
        here = [by_way[name, cfg, steps] for name in names]
        cells = [f"{row['below_ceiling']:.2f} | {row['noise_std']:.2f}" for row in here]
        table.append(f"| {cfg:g} | {steps} | {' | '.join(cells)} | {here[0]['n']} |")
    return "\n".join(table)


def edits_table(rows: Sequence[Row]) -> str:
    """Edits from either: their means, and in brackets what they gain over the last row, with its
    95 % interval."""
    heads = ("inversion", "steps", "rows", "n", "read as the target", "kept part, dB")
    heads = (*heads, "to the true edit, dB", "to the source, dB")
    table = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        inverter = METHODS[row["method"]].inverter
        cells = [inverter, str(row["steps"]), str(row["rows"]), str(row["n"])]
        cells.append(_cell(row, "success", row is rows[-1], 100.0, ".0f", " %"))
        cells += [_cell(row, name, row is rows[-1]) for name in JUDGED[1:]]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def _cell(
    row: Row, name: str, last: bool, factor: float = 1.0, form: str = ".1f", unit: str = ""
) -> str:
    value = f"{format(factor * row[name], form)}{unit}"
    return value if last else f"{value} ({_gained(row, name, factor, form)})"


def _gained(row: Row, name: str, factor: float = 1.0, form: str = ".1f") -> str:
    gain = row["gains"][name]
    mean, low, high = (format(factor * x, f"+{form}") for x in (gain["mean"], *gain["interval"]))
    return f"{mean}; {low} to {high}"


def compared_table(rows: Sequence[Row]) -> str:
    """What edits gain from ddim over those from uni, after as many steps."""
    heads = ("ddim over uni, steps", "n", "read as the target, %", "kept part, dB")
    heads = (*heads, "to the true edit, dB", "to the source, dB")
    table = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        gains = [_gained(row, "success", 100.0, ".0f"), *(_gained(row, n) for n in JUDGED[1:])]
        table.append(f"| {row['steps']} | {row['n']} | {' | '.join(gains)} |")
    return "\n".join(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.inversion_steps", description=__doc__)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="brought back; 0: as before")
    parser.add_argument("--per-kind", type=int, default=PER_KIND, help="edits of every kind")
    parser.add_argument("--keep", action="store_true", help="copy the figures to docs/figures")
    options = parser.parse_args()
    install.import_comfy()
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    lines = read_lines()
    with torch.inference_mode(), LINES.open("a") as file:
        print(file=file)  # ends a line that an earlier run was stopped in
        bench = Bench()
        for line in edits(bench, options.per_kind, {_key(line) for line in lines}):
            lines.append(line)
            print(json.dumps(line), file=file, flush=True)
        rows = list(back(bench, options.pictures)) if options.pictures else read_back()
    write(rows, lines, options.keep)


def write(rows: Sequence[Row], lines: Sequence[Row], keep: bool) -> None:
    """The figures of what has been made; keep: for docs/BENCHMARKS.md, too."""
    lines = whole(lines)
    figures = {"back": list(rows), "edits": summed(lines), "compared": compared(lines)}
    text = json.dumps(figures, indent=1)
    FIGURES.write_text(text + "\n")
    if keep:
        shutil.copy(FIGURES, install.ROOT / "docs" / "figures" / FIGURES.name)


if __name__ == "__main__":
    main()
