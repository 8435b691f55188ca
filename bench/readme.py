"""Fills README's tables from the registries and from measured figures: `python -m bench.readme
[--demo] [--speed]`.

Figures come from `docs/figures/toy.json`, which `python -m toy.evaluate --json` writes, from the
last `make demo`, whose report and picture `--demo` takes over, from the last `make bench-speed`,
which `--speed` takes over, from `python -m bench.benchmarks --keep` and from `python -m
bench.inversion --edits 21 --keep`. Numbers are never typed into README by hand, and
`tests/contract/test_readme.py` compares.
"""

from __future__ import annotations

import collections
import importlib
import json
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bench.cases import KINDS
from bench.methods import UNCORRECTED
from bench.summary import TUNED, find, suited
from tools.pack import NAME, part

ROOT = pathlib.Path(__file__).absolute().parent.parent
DOCUMENT = ROOT / "README.md"
FIGURES = ROOT / "docs" / "figures"
DEMO = {
    "vae_psnr": "autoencoder round trip against the source",
    "reconstruction_psnr": "reconstruction against the source",
    "background_psnr": "edit against the source outside the object",
    "truth_psnr": "edit against the true edit",
}


def methods() -> str:
    """One row for each method, with the paper that its file names."""
    rows = ["| method | where | what it does | paper |", "|---|---|---|---|"]
    for kind in (*part("attention").CONTROLLERS, *part("features").CONTROLLERS):
        rows.append(_method_row(kind, kind.title, _summary(kind)))
    for kind in part("inversion").INVERTERS.values():
        rows.append(_method_row(kind, f"DDIM Inversion, `{kind.name}`", kind.label))
    for kind in part("inversion").CORRECTIONS.values():
        rows.append(_method_row(kind, f"Edit Sampler, `{kind.name}`", kind.label))
    for kind in part("guidance").RULES:
        rows.append(_method_row(kind, "CFG / Proximal Guidance", _summary(kind)))
    return "\n".join(rows)


def _method_row(kind: type, where: str, what: str) -> str:
    module = importlib.import_module(kind.__module__)
    name = kind.__module__.removeprefix(f"{NAME}.")
    paper = re.search(r"\(([^()]*?), arXiv\s([\d.]+)", module.__doc__ or "")
    if paper is None:
        raise ValueError(f"{name} names no paper in its docstring")
    link = f"[{paper[1].split(';')[0]}](https://arxiv.org/abs/{paper[2]})"
    return f"| `{name}` | {where} | {what} | {link} |"


def _summary(kind: type) -> str:
    """The first sentence of its docstring."""
    paragraph = " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".")


def nodes() -> str:
    """One row for each node: id, name, inputs and outputs, from the frozen contract."""
    contract = json.loads((ROOT / "tests" / "contract" / "nodes.json").read_text())
    rows = ["| node | inputs | outputs |", "|---|---|---|"]
    for node, (inputs, outputs) in contract.items():
        rows.append(f"| `{node}` | {', '.join(inputs) or '-'} | {', '.join(outputs)} |")
    return "\n".join(rows)


def toy() -> str:
    """The toy model's figures against their bars."""
    from toy.evaluate import report

    figures = _figures("toy.json")
    return f"{report(figures)}\n\n{figures['count']} pictures, cfg {figures['cfg']:g}, 50 steps."


def demo() -> str:
    """The demo's report: the picture's own figures."""
    figures = _figures("demo.json")
    rows = ["| figure | value |", "|---|---|"]
    rows += [f"| {text} | {figures[key]:.2f} dB |" for key, text in DEMO.items()]
    rows.append(
        "| every word of the target read back from the edit | "
        f"{'yes' if figures['edit_success'] else 'no'} |"
    )
    return "\n".join(rows)


SETTINGS = {" fp32": "fp32", " bf16": "bf16", " fp16": "SDXL fp16"}


def speed() -> str:
    """The ratios of the last speed bench that were measured, one column for each precision."""
    found: dict[str, dict[str, str]] = {}
    figures = _figures("speed.json")
    for each in figures:
        name, _, setting = each["figure"].rpartition(", ")
        if not name.startswith("largest"):
            target = "" if each["target"] is None else f"<= {each['target']:g}"
            column = next((text for end, text in SETTINGS.items() if setting.endswith(end)), "fp32")
            row = found.setdefault(name, {"target": target, "reference": each["reference"]})
            row[column] = f"{each['value']:g}"
    present = [
        column for column in SETTINGS.values() if any(column in row for row in found.values())
    ]
    columns = [*present, "target", "reference"]
    rows = [f"| figure | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    rows += [
        f"| {name} | {' | '.join(row.get(c, '') for c in columns)} |" for name, row in found.items()
    ]
    return "\n".join(
        [*rows, "", "SD1.5's size, 512x512, where nothing else is said.", *_runs(figures)]
    )


def _runs(figures: list[dict[str, Any]]) -> list[str]:
    """A line for each run and device, with how many figures come from it."""
    runs = collections.Counter(
        (each.get("run", "earlier, not noted"), each["device"]) for each in figures
    )
    return [f"{count} figures by the run {run}: {device}." for (run, device), count in runs.items()]


def edits() -> str:
    """The kinds of edits, each under the control that suits it, and without."""
    rows = _figures("quality.json")
    head = "| kind | control | cfg | read as the target | kept part | ceiling | to the true edit |"
    lines = [head, "|---|---|---|---|---|---|---|", *(_edits_row(rows, kind) for kind in KINDS)]
    first = find(rows, "direct", "none", "color")
    made = f"{first['n']} pictures of each kind, {first['steps']} steps, direct inversion; dB"
    plain = f"() plain sampling at cfg {first['cfg']:g}, and at the cfg that is tuned"
    return "\n".join([*lines, "", f"{made}; {plain}."])


def _edits_row(rows: list[Any], kind: str) -> str:
    row = suited(rows, kind)
    others = [find(rows, UNCORRECTED, "none", kind)]
    cfg = f"{row['cfg']}"
    if row["cfg"] == TUNED:
        cfg = f"{row['settings']['cfg']:g}, tuned"
        others.append(find(rows, "direct", "none", kind, TUNED))
    shown = {
        "edit_success": ("{:.0f} %", 100.0),
        "background_psnr": ("{:.1f}", 1.0),
        "truth_psnr": ("{:.1f}", 1.0),
    }
    success, kept, near = (
        f"{form.format(factor * row[name])} "
        f"({', '.join(form.format(factor * plain[name]) for plain in others)})"
        for name, (form, factor) in shown.items()
    )
    cells = (kind, f"`{row['control']}`", cfg, success, kept, f"{row['ceiling_psnr']:.1f}", near)
    return f"| {' | '.join(cells)} |"


def inversion() -> str:
    """How exactly every method brings pictures back, and what edits by them give."""
    rows, made = _figures("inversion.json"), _figures("inversion_edits.json")
    cfgs = sorted({row["cfg"] for row in rows})
    head = " | ".join(f"cfg {cfg:g}" for cfg in cfgs)
    lines = [
        f"| method | pictures | {head} | rows forward, backward |",
        f"|---|---|{'---|' * len(cfgs)}---|",
    ]
    for name, count in dict.fromkeys((row["method"], row["n"]) for row in rows):
        own = [
            next(r for r in rows if (r["method"], r["n"], r["cfg"]) == (name, count, cfg))
            for cfg in cfgs
        ]
        cells = " | ".join(f"{row['psnr']:.2f} ({row['latent_mse']:.1e})" for row in own)
        lines.append(
            f"| {name} | {count} | {cells} | {own[-1]['forward_rows']:.0f}, "
            f"{own[-1]['backward_rows']:.0f} |"
        )
    lines += [
        "",
        "dB (squared distance to the trajectory); the autoencoder alone "
        f"{rows[0]['ceiling_psnr']:.2f} dB.",
    ]
    lines += [
        "",
        "| P2P edits at cfg 7.5 | read as the target | outside the object | to the true edit |",
        "|---|---|---|---|",
    ]
    for row in made:
        figures = (
            f"{100 * row['success']:.0f} % | {row['background_psnr']:.1f} dB | "
            f"{row['truth_psnr']:.1f} dB"
        )
        lines.append(f"| {row['method']} | {figures} |")
    return "\n".join(
        [*lines, "", f"{made[0]['n']} pictures; color, pattern and shape; no Local Blend."]
    )


def _figures(name: str) -> Any:
    return json.loads((FIGURES / name).read_text())


def filled(text: str) -> str:
    """README with every marked section made anew."""
    return fill(
        text, {made.__name__: made for made in (methods, toy, demo, edits, inversion, speed, nodes)}
    )


def fill(text: str, sections: Mapping[str, Callable[[], str]]) -> str:
    """A document with every section between `<!-- name -->` and `<!-- /name -->` made anew;
    ValueError if one is not there once."""
    for name, made in sections.items():
        section = made()
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, found = re.subn(pattern, lambda m, s=section: f"{m[1]}{s}\n{m[2]}", text, flags=re.S)
        if found != 1:
            raise ValueError(f"expected one section <!-- {name} --> in the document, got {found}")
    return text


def take_demo() -> None:
    """Take over the last demo's figures and picture, the picture also as the workflow's
    thumbnail."""
    from PIL import Image

    made = ROOT / "out" / "demo"
    report = json.loads((made / "report.json").read_text())
    kept = {key: report[key] for key in (*DEMO, "source", "target", "edit_success", "versions")}
    (FIGURES / "demo.json").write_text(json.dumps(kept, indent=2) + "\n")
    grid = Image.open(made / "grid.png").convert("RGB")
    grid.save(ROOT / "docs" / "images" / "demo.png", optimize=True)
    small = grid.resize((grid.width * 512 // grid.height, 512), Image.Resampling.LANCZOS)
    small.save(ROOT / "workflows" / "prompt_to_prompt.jpg", quality=85)


def take_speed() -> None:
    """Take over the last speed bench's figures."""
    (FIGURES / "speed.json").write_text((ROOT / "out" / "bench" / "speed.json").read_text())


def main() -> None:
    if "--demo" in sys.argv:
        take_demo()
    if "--speed" in sys.argv:
        take_speed()
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
