"""Variants of null-text optimisation, side by side: `python -m bench.null_text`,
`docs/figures/null_text.json`.

On held-out toy pictures at cfg 7.5: the mean squared distance to the trajectory, and the UNet rows
that a picture took beyond its inversion; of some variants also P2P edits, with the embeddings read
by source and target or by the source alone. `docs/NULL_TEXT.md` takes its tables from here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.inversion import Bench, CountedRows, Pictures, edit_cases, judged_edits
from bench.methods import METHODS, STEPS, UNCORRECTED
from bench.readme import fill
from tools import install
from tools.pack import part

FIGURES = install.ROOT / "docs" / "figures" / "null_text.json"
DOCUMENT = install.ROOT / "docs" / "NULL_TEXT.md"
CFG = 7.5


@dataclasses.dataclass(frozen=True)
class Variant:
    """What is varied; single: who reads the embeddings in edits, the source alone (True), targets
    too, or no edits."""

    name: str
    settings: Any
    solver: Callable[..., Any] | None = None
    single: tuple[bool, ...] = ()


def variants() -> list[Variant]:
    """In the order of the log."""
    null_text = part("inversion.null_text")
    fast, reference = null_text.PRESETS["fast"], null_text.PRESETS["reference"]
    change = dataclasses.replace

    class Unscaled(null_text.Secant):  # type: ignore[name-defined,misc]
        """The gradient as it is."""

        def _direction(self, gradient: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
            return -gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-30)[:, None, None]

    return [
        Variant("empty prompt, not optimised", change(reference, inner_steps=0)),
        Variant("source prompt, not optimised", change(fast, inner_steps=0)),
        Variant("`reference`", reference, None, (False, True)),
        Variant("one direction: the gradient as it is", fast, Unscaled),
        Variant("one direction: scaled coordinates (`fast`)", fast, None, (False, True)),
        Variant("the same, tolerance 1e-4", change(fast, epsilon=1e-4)),
        Variant("two directions a step", change(fast, inner_steps=2)),
        Variant("three directions a step", change(fast, inner_steps=3)),
    ]


def measured(bench: Bench, count: int) -> Iterator[dict[str, Any]]:
    """A row for every variant."""
    these = edit_cases(count)
    pictures = Pictures(bench, [(edit.scene, edit.source) for _, edit in these])
    host, null_text = part("host.tasks.null_text"), part("inversion.null_text")
    plain = pictures.prepared(METHODS[UNCORRECTED], CFG)[0]
    for variant in variants():
        own = null_text.SOLVERS["secant"]
        null_text.SOLVERS["secant"] = variant.solver or own
        with CountedRows(bench.model) as rows:
            found = host.run_optimization(
                bench.model, plain, pictures.together, pictures.empty, CFG, variant.settings, "off"
            )[0]
        null_text.SOLVERS["secant"] = own
        pivot = host.with_embeddings(plain, found, pictures.empty, CFG, variant.settings)
        row = {"variant": variant.name, "n": count, "error": float(found.error.mean())}
        row |= {"rows": round((rows.forward + rows.backward) / count, 1)}
        yield row | {
            "edits": [_edits(bench, pictures, pivot, these, single) for single in variant.single]
        }


def _edits(
    bench: Bench, pictures: Pictures, pivot: Any, these: list[Any], single: bool
) -> dict[str, Any]:
    options = {**pivot.correction.options, "single_branch": single}
    pivot = dataclasses.replace(
        pivot, correction=dataclasses.replace(pivot.correction, options=options)
    )
    means = judged_edits(bench, pictures, pivot, these, CFG, "auto")
    return {"read_by": "source alone" if single else "source and target", **means}


def tables(rows: list[dict[str, Any]]) -> str:
    """The log's tables."""
    lines = ["| embedding | error | rows |", "|---|---|---|"]
    lines += [f"| {row['variant']} | {row['error']:.1e} | {row['rows']:.0f} |" for row in rows]
    lines += [
        "",
        "| edits | embedding read by | read as the target | outside the object | to the true edit "
        "|",
    ]
    lines += ["|---|---|---|---|---|"]
    for row in rows:
        for edit in row["edits"]:
            figures = (
                f"{100 * edit['success']:.0f} % | {edit['background_psnr']:.1f} dB | "
                f"{edit['truth_psnr']:.1f} dB"
            )
            lines.append(f"| {row['variant']} | {edit['read_by']} | {figures} |")
    return "\n".join(
        [
            *lines,
            "",
            f"{rows[0]['n']} pictures, {STEPS} steps, cfg {CFG:g}; rows beyond the inversion's.",
        ]
    )


def filled(text: str) -> str:
    """The log with its tables made anew."""
    return fill(text, {"tables": lambda: tables(json.loads(FIGURES.read_text()))})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.null_text", description=__doc__)
    parser.add_argument("--count", type=int, default=21, help="pictures")
    options = parser.parse_args()
    install.import_comfy()
    made = []
    with torch.inference_mode():
        for row in measured(Bench(), options.count):
            made.append(row)
            print(json.dumps(row), flush=True)
    FIGURES.write_text(json.dumps(made, indent=2) + "\n")
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
