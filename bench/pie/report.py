"""What a run found: means by editing type and over all, in the field's scale, beside the published
figures."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from bench.pie.dataset import TYPES
from bench.pie.metrics import COLUMNS
from bench.pie.published import NAMES, ROWS, Published
from bench.pie.store import replace

CAVEATS = (
    "Cells of the published table marked ? were recalled and never verified: do not quote them.",
    "The published figures are of Stable Diffusion 1.4 at 512 x 512; ours are of the checkpoint "
    "and size named above.",
    "Published CLIP figures are not reproducible to better than 0.8: whoever ran public code "
    "again found the authors' "
    "0.68 and 0.85 higher (issues: UniEdit-Flow 7, FireFlow 10).",
    "PSNR, MSE, SSIM and LPIPS are taken with the edited part painted black and averaged over the "
    "whole picture: they "
    "look the better the larger the mask. The masked columns are means over the background alone.",
    "The reference stores its results as JPEG strips and cuts the last 512 pixels out; ours are "
    "PNG.",
    "No noise is drawn: inversion and sampling are deterministic, so there is no seed and one run "
    "for each picture.",
    "A value that is no finite number (no background; equal pictures' PSNR) is left out of its "
    "mean and counted.",
)


def summary(values: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """For every column that was measured: mean (None without any), n, and how many were left out as
    not finite."""
    found = {}
    for name in COLUMNS:
        given = [one[name] for one in values if name in one]
        finite = [value for value in given if math.isfinite(value)]
        if given:
            mean = math.fsum(finite) / len(finite) if finite else None
            found[name] = {"mean": mean, "n": len(finite), "left_out": len(given) - len(finite)}
    return found


def by_type(values: Mapping[str, Mapping[str, float]], kinds: Mapping[str, str]) -> dict[str, Any]:
    """`summary` over all ids, and over those of each editing type that occurs."""
    groups = {"all": list(values)}
    for kind in TYPES:
        groups |= (
            {kind: [name for name in values if kinds[name] == kind]}
            if kind in kinds.values()
            else {}
        )
    return {
        group: {"cases": len(ids), "columns": summary([values[name] for name in ids])}
        for group, ids in groups.items()
    }


def versions() -> dict[str, str]:
    """Of the packages that measured."""
    found = {}
    for name in ("torch", "torchvision", "torchmetrics", "transformers", "pillow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# -- tables
# ------------------------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    settings = report["settings"]
    title = (
        f"## PIE-Bench: {settings['method']}, {settings['control']}, {settings['checkpoint']} at "
        f"{settings['size']}"
    )
    parts = [
        title,
        our_table(report["results"]),
        remarks(report),
        "### Published",
        published_table(),
    ]
    return "\n\n".join([*parts, "\n".join(f"* {line}" for line in CAVEATS)]) + "\n"


def our_table(results: Mapping[str, Any]) -> str:
    """Rows: all, then each type; the columns that were measured, in the field's scale."""
    shown = [name for name in COLUMNS if name in results["all"]["columns"]]
    rows = [["editing type", "n", *(COLUMNS[name].title for name in shown)]]
    for group, result in results.items():
        label = f"{group} {TYPES[group]}" if group in TYPES else group
        rows.append(
            [
                label,
                str(result["cases"]),
                *(cell(result["columns"].get(name), name) for name in shown),
            ]
        )
    return table(rows)


def cell(found: Mapping[str, Any] | None, name: str) -> str:
    """A mean in the field's scale, with the number of cases that were left out of it."""
    if found is None or found["mean"] is None:
        return "-"
    left = f" ({found['left_out']} left out)" if found["left_out"] else ""
    return f"{found['mean'] * COLUMNS[name].scale:.2f}{left}"


def published_table(rows: Sequence[Published] = ROWS) -> str:
    """The published rows; ? behind a value that is from memory alone."""
    lines = [["inversion", "editing", *(COLUMNS[name].title for name in NAMES), "source", "status"]]
    for row in rows:
        values = [
            f"{value:.2f}{'' if name in row.verified else ' ?'}"
            for name, value in zip(NAMES, row.values, strict=True)
        ]
        lines.append([row.inversion, row.editing, *values, row.where, row.status])
    return table(lines)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def remarks(report: Mapping[str, Any]) -> str:
    """What is not in the means, what differs from plan, and with what it was made."""
    lines = [f"not measured: {name}: {why}" for name, why in report["not_measured"].items()]
    lines += [f"excluded: {name}: {why}" for name, why in report["excluded"].items()]
    lines += [f"noted: {name}: {why}" for name, why in report["notes"].items()]
    lines += [
        f"excluded in all: {len(report['excluded'])} of {report['asked']} cases, not in any mean"
    ]
    lines += [f"{name}: {json.dumps(value)}" for name, value in report["settings"].items()]
    made = {"comfyui": ", ".join(report["comfyui"]), **report["versions"]}
    return "\n".join(
        f"* {line}"
        for line in [*lines, "versions: " + ", ".join(f"{k} {v}" for k, v in made.items())]
    )


def write(folder: pathlib.Path, report: Mapping[str, Any]) -> None:
    """`report.json` and `report.md`; a number that is not finite becomes null."""
    replace(folder / "report.json", json.dumps(strict(report), indent=1, allow_nan=False) + "\n")
    replace(folder / "report.md", markdown(report))


def strict(value: Any) -> Any:
    """The same with null for NaN and infinities, which JSON has no words for."""
    if isinstance(value, Mapping):
        return {name: strict(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
