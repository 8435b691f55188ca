"""The settings that bring each kind of edit nearest to the true one: `python -m bench.tuning`,
`bench/tuned.json`.

On scenes that are never judged (bench/cases.TUNED_ON), one setting after the other: of its values,
the one nearest to the true edits among those that are read as the target in 95 % (or, if none is,
as often as the best); in the end, the best of all that was tried, by the same rule. Lines are kept
in `out/bench/tuning/`, so that a run that was stopped goes on; every value that was tried is in
`tuned.json`, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bench.cases import KINDS, TUNED_FILE, TUNED_ON, Kind
from bench.jobs import Job, command, make
from bench.methods import PASTED, Settings
from bench.summary import Line, read_lines
from tools import install
from tools.client import ServerError

MADE, LINES = install.ROOT / "out" / "bench" / "tuning", "cases.jsonl"
METHOD, READ = "direct", 0.95
SUITED = ("color", "pattern", "background", "shape", "add", "remove")
"""The kinds that pasting suits: not another place, nor weights, which the case gives."""
CHANGES: dict[str, tuple[dict[str, Any], ...]] = {
    "cfg": tuple({"cfg": cfg} for cfg in (1.5, 2.0, 3.0, 5.0, 7.5)),
    "threshold": (
        *({"threshold": share, "pool": False} for share in (0.1, 0.2, 0.3, 0.4, 0.5)),
        *({"threshold": share, "pool": True} for share in (0.3, 0.5, 0.7)),
    ),
    "subtract_threshold": tuple(
        {"subtract_threshold": share} for share in (0.2, 0.3, 0.4, 0.5, 0.6)
    ),
    "cross_end": tuple({"cross_end": end} for end in (0.0, 0.2, 0.4, 0.8)),
    "self_end": tuple({"self_end": end} for end in (0.0, 0.2, 0.4, 1.0)),
    "self_limit": tuple({"self_limit": limit} for limit in (0.25, 1.0)),
    "blend_start": tuple({"blend_start": start} for start in (0.0, 0.2, 0.4)),
}
ORDER = (*CHANGES, "cfg")

Trial = dict[str, Any]


def unused_threshold(kind: Kind) -> str:
    """The threshold of words that a kind's Local Blend does not have."""
    return "subtract_threshold" if kind.at_object else "threshold"


def trials(kind: Kind, field: str, start: Settings) -> list[Settings]:
    """The settings with every change of a field; none of a threshold that is not used."""
    changes = () if field == unused_threshold(kind) else CHANGES[field]
    return [dataclasses.replace(start, **change) for change in changes]


def jobs(tried: Mapping[str, Sequence[Settings]], count: int) -> list[list[Job]]:
    """A job for every case, which tries all settings of its kind."""
    named = {
        kind: tuple((f"{PASTED}@{i}", one) for i, one in enumerate(tried[kind])) for kind in tried
    }
    return [
        [Job(kind, index, METHOD, named[kind], TUNED_ON)]
        for index in range(count)
        for kind in tried
    ]


def judged(kind: str, settings: Settings, lines: Sequence[Line], count: int) -> Trial:
    """What some settings gave on the first cases, and which these are; ValueError if a case has no
    line."""
    wanted, cases = (
        dataclasses.asdict(settings),
        {Job(kind, index, METHOD).case for index in range(count)},
    )
    found = [line for line in lines if line["case"] in cases and line["settings"] == wanted]
    if len(found) != count:
        raise ValueError(f"expected {count} lines of {kind} with {settings}, got {len(found)}")
    names = ("edit_success", "background_psnr", "truth_psnr")
    means = {name: round(float(np.mean([line[name] for line in found])), 4) for name in names}
    return {"n": len(found), **means, "settings": wanted}


def best(tried: Sequence[Trial]) -> Trial:
    """The nearest to the true edits of those that are read as the target often enough."""
    often = min(READ, max(trial["edit_success"] for trial in tried))
    return max(
        (one for one in tried if one["edit_success"] >= often),
        key=lambda one: float(one["truth_psnr"]),
    )


def search(kinds: Sequence[str], count: int, servers: int) -> Iterator[dict[str, list[Trial]]]:
    """One field after the other, for all kinds at once: everything that was tried."""
    found = {kind: KINDS[kind].settings for kind in kinds}
    for field in ORDER:
        tried = {kind: own for kind in kinds if (own := trials(KINDS[kind], field, found[kind]))}
        if failed := make(jobs(tried, count), MADE, LINES, servers).failed:
            raise ServerError(f"{failed} jobs failed")
        lines = read_lines(MADE / LINES)
        results = {kind: [judged(kind, one, lines, count) for one in tried[kind]] for kind in tried}
        for kind in tried:
            found[kind] = Settings(**best(results[kind])["settings"])
            print(field, kind, best(results[kind]), flush=True)
        yield results


def run() -> int:
    """Tune, and write what was found into `bench/tuned.json`, where bench/cases.py reads it."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tuning", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--kinds", nargs="+", default=list(SUITED), choices=list(KINDS))
    parser.add_argument("--cases", type=int, default=20, help="scenes of each kind")
    parser.add_argument(
        "--servers", type=int, default=0, help="ComfyUI servers side by side; 0: 2, or 1 on a GPU"
    )
    chosen = parser.parse_args()
    steps = list(search(chosen.kinds, chosen.cases, chosen.servers))
    written = json.loads(TUNED_FILE.read_text()) if TUNED_FILE.exists() else {}
    for kind in chosen.kinds:
        tried = {
            json.dumps(trial["settings"]): trial for step in steps for trial in step.get(kind, ())
        }
        written[kind] = {"best": best(list(tried.values())), "tried": list(tried.values())}
    TUNED_FILE.write_text(_text(written))
    print(TUNED_FILE)
    return 0


def _text(written: Mapping[str, Any]) -> str:
    """JSON with a line for every trial."""
    kinds = []
    for kind, found in written.items():
        tried = ",\n".join(json.dumps(trial) for trial in found["tried"])
        kinds.append(f'"{kind}": {{"best": {json.dumps(found["best"])},\n"tried": [\n{tried}\n]}}')
    return "{" + ",\n".join(kinds) + "}\n"


if __name__ == "__main__":
    sys.exit(command(run))
