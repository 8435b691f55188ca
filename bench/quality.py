"""Does it edit, does it keep the rest, what does it cost: `make bench-quality`,
`out/bench/quality.json`.

Eight kinds of edits on held-out toy scenes (bench/cases.py), whose true edited picture is known,
under every inversion method and every attention control (bench/methods.py), by the real ComfyUI API
server (bench/jobs.py). A run that was
stopped goes on where it was: pictures and a line each are kept in `out/bench/quality/`.

Rows of `quality.json`, one for every method, control, cfg and kind, `rigid` (colour, pattern,
background) and `all`:
* edit_success: share of pictures in which the reader finds every word of the target; object_kept:
  every word but the background's;
* background_psnr: dB over the pixels the true edit leaves alone; background_psnr_zeroed: with all
  others black in both, as the field's benchmark has it; ceiling_psnr: of the autoencoder's round
  trip;
* truth_psnr, truth_ssim: to the true edit;
* rows_per_step: UNet rows of the edit; prepare_rows: of inversion and optimisation, forward and
  backward alike;
* seconds: of all nodes between the encoded picture and the edited latent, with as many servers side
  by side;
* intervals: 95 %, by bootstrap over cases.
In place of its cfg a row says `tuned` where every kind has the settings that bench/tuning.py found
for it. Of method `autoencoder` they say what no edit can pass: `true edit` is the true picture's
round trip, `true edit in a mask` the true picture's latents where the edit may change anything and
one latent pixel around, the source's elsewhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence

from bench.cases import KINDS, RIGID_KINDS
from bench.jobs import Job, Made, command, make
from bench.methods import CONTROLS, EDITS, METHODS, PASTED, UNCORRECTED
from bench.summary import Line, Row, read_lines, rows_of, table
from tools import install
from tools.pack import digest

OUT = install.ROOT / "out" / "bench" / "quality.json"
MADE, LINES = OUT.with_suffix(""), "cases.jsonl"
GENTLE_CFG, GENTLE = 2.0, ("none", "p2p_blend", "proxnpi")
RIGID_CFGS, BLENDED = (GENTLE_CFG, 3.0), ("none", "p2p_blend", PASTED)
CORE = {"direct": EDITS, UNCORRECTED: ("none", "p2p_blend")}
"""What is measured on all cases; everything else may be on fewer, for time."""


def plan(chosen: argparse.Namespace) -> list[list[Job]]:
    """Jobs by case, every kind in turn, with the kind's settings: CORE on all cases, every method
    and control on the first `others` of each kind, the reference's null-text on the first
    `reference`; at low cfgs direct inversion on all of RIGID_KINDS, every method on the first
    `gentle`; of the first `back` the source as it comes back. Of kinds that are tuned, direct
    inversion with these settings, too."""
    return [_jobs(kind, index, chosen) for index in range(chosen.per_kind) for kind in chosen.kinds]


def _jobs(kind: str, index: int, chosen: argparse.Namespace) -> list[Job]:
    own = KINDS[kind].settings
    if chosen.steps:
        own = dataclasses.replace(own, steps=chosen.steps)
    jobs = [Job(kind, index, "autoencoder")]
    for method in chosen.methods:
        for cfg in dict.fromkeys((own.cfg, *RIGID_CFGS)):
            names = [
                name
                for name in _names(kind, index, method, cfg == own.cfg, cfg, chosen)
                if name in chosen.controls
            ]
            settings = dataclasses.replace(own, cfg=cfg)
            if names and (not METHODS[method].few or index < chosen.reference):
                jobs.append(Job(kind, index, method, tuple((name, settings) for name in names)))
    tuned, names = KINDS[kind].tuned, [name for name in BLENDED if name in chosen.controls]
    if (
        tuned is not None
        and names
        and "direct" in chosen.methods
        and chosen.steps in (0, tuned.steps)
    ):
        jobs.append(Job(kind, index, "direct", tuple((name, tuned) for name in names)))
    return jobs


def _names(
    kind: str, index: int, method: str, own: bool, cfg: float, chosen: argparse.Namespace
) -> list[str]:
    """The controls of a case at its kind's own cfg, or at a lower one."""
    names: list[str] = []
    if own:
        names += EDITS if index < chosen.others else CORE.get(method, ())
        names += ["reconstruction"] if index < chosen.back and not METHODS[method].few else []
    elif cfg == GENTLE_CFG and index < chosen.gentle:
        names += GENTLE
    if method == "direct" and kind in RIGID_KINDS:
        names += BLENDED
    return list(dict.fromkeys(names))


def write(lines: Sequence[Line], versions: Mapping[str, str]) -> list[Row]:
    """quality.json, and beside it how it was made and how many pictures an earlier version of the
    pack has made; returns its rows."""
    rows = rows_of(lines)
    OUT.write_text(json.dumps(rows, indent=1) + "\n")
    path = OUT.with_name("quality_about.json")
    about = json.loads(path.read_text()) if path.exists() else {}
    about |= {
        **versions,
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "options": " ".join(sys.argv[1:]),
    }
    about |= {
        "pictures": len(lines),
        "earlier": sum(line.get("pack") != digest() for line in lines),
    }
    path.write_text(json.dumps(about, indent=1) + "\n")
    return rows


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--per-kind", type=int, default=30, help="cases of each kind")
    parser.add_argument(
        "--others",
        type=int,
        default=30,
        help="of these, cases of methods and controls beyond the core",
    )
    parser.add_argument(
        "--reference", type=int, default=2, help="of these, cases of the reference's null-text"
    )
    parser.add_argument(
        "--gentle", type=int, default=10, help=f"of these, cases at cfg {GENTLE_CFG:g}, too"
    )
    parser.add_argument(
        "--back", type=int, default=10, help="of these, cases whose source is looked at, too"
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--controls", nargs="+", default=list(CONTROLS), choices=list(CONTROLS))
    parser.add_argument("--steps", type=int, default=0, help="0: each kind's own")
    parser.add_argument(
        "--servers", type=int, default=0, help="ComfyUI servers side by side; 0: 2, or 1 on a GPU"
    )
    parser.add_argument(
        "--only-report", action="store_true", help="make nothing, sum up what there is"
    )
    return parser.parse_args(arguments)


def run() -> int:
    """Make what is missing and sum up; 1 if a job failed."""
    chosen = options()
    made = Made() if chosen.only_report else make(plan(chosen), MADE, LINES, chosen.servers)
    lines = read_lines(MADE / LINES)
    if not lines:
        print(f"error: nothing was made yet: no {MADE / LINES}", file=sys.stderr)
        return 1
    print(table(write(lines, made.versions)))
    print(OUT if not made.failed else f"{made.failed} jobs failed; run it again", flush=True)
    return min(made.failed, 1)


if __name__ == "__main__":
    sys.exit(command(run))
