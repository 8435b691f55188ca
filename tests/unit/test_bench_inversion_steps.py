"""Few steps against many: which lines count, what the figures of them are, and how they read."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from bench import inversion_steps as bench
from bench.cases import KINDS

LAST = bench.EDITED[-1]


def line(kind: str, case: int, way: tuple[str, int], truth: float, success: bool) -> dict[str, Any]:
    figures = {"success": success, "background_psnr": 25.0, "truth_psnr": truth}
    figures["source_psnr"] = 20.0
    return {"kind": kind, "case": case, "method": way[0], "steps": way[1], **figures}


def lines(cases: int) -> list[dict[str, Any]]:
    """The reference at 20 dB and always read; every other way 1, 2, 3... dB above, read in all
    kinds but the first."""
    return [
        line(kind, case, way, 20.0 + (at if way != LAST else 0), way == LAST or kind != "color")
        for case in range(cases)
        for at, way in enumerate(bench.EDITED, 1)
        for kind in KINDS
    ]


def test_only_cases_count_that_every_kind_has_under_every_method() -> None:
    made = lines(3)
    assert bench.whole(made) == made
    left = bench.whole([*made[:-1]])
    assert {each["case"] for each in left} == {0, 1} and len(left) == 2 * len(made) // 3


def test_gains_are_over_the_papers_steps_on_the_same_pairs() -> None:
    made = lines(2)
    made[0]["truth_psnr"] += 16.0
    first, *_, last = bench.summed(list(reversed(made)))
    assert (first["method"], first["steps"], first["n"]) == (*bench.EDITED[0], 2 * len(KINDS))
    assert first["rows"] == 11 and last["rows"] == 50
    assert first["truth_psnr"] == 22.0 and last["truth_psnr"] == 20.0
    assert first["gains"]["truth_psnr"]["mean"] == 2.0
    assert first["success"] == pytest.approx(7 / 8) and first["read"]["color"] == 0.0
    assert first["gains"]["success"]["mean"] == pytest.approx(-1 / 8)
    assert last["gains"]["truth_psnr"] == {"mean": 0.0, "interval": [0.0, 0.0]}


def test_pairs_are_found_in_any_order() -> None:
    made = lines(2)
    for each in made:
        each["truth_psnr"] += 16.0 * (each["kind"] == "color" and each["case"] == 0)
    first = bench.summed([*made[3:], *made[:3]])[0]
    assert first["gains"]["truth_psnr"] == {"mean": 1.0, "interval": [1.0, 1.0]}


def test_tables_say_what_was_measured() -> None:
    about = {"n": 16, "rows": 8.0, "noise_std": 0.8514}
    rows = [
        {"method": name, "cfg": cfg, "steps": steps, "below_ceiling": steps / 8, **about}
        for name, cfg, steps in bench.BACK
    ]
    made = lines(2)
    edits, compared = bench.summed(made), bench.compared(made)
    text = bench.tables({"back": rows, "edits": edits, "compared": compared})
    assert "| cfg | steps | uni: dB below the round trip | uni: std | ddim: dB below" in text
    assert "\n| 1 | 10 | 1.25 | 0.85 | 1.25 | 0.85 | 16 |\n" in text
    assert "\n| uni | 10 | 11 | 16 | 88 % (-12; " in text
    assert "| 21.0 (+1.0; +1.0 to +1.0) |" in text
    assert "\n| ddim | 50 | 50 | 16 | 100 % | 25.0 | 20.0 | 20.0 |\n" in text
    none, nearer = "+0.0; +0.0 to +0.0", "+2.0; +2.0 to +2.0"
    assert f"\n| 10 | 16 | +0; +0 to +0 | {none} | {nearer} | {none} |\n| 20 | 16 |" in text


def test_what_a_stopped_run_has_made_stands(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "FIGURES", tmp_path / "figures.json")
    monkeypatch.setattr(bench, "LINES", tmp_path / "lines.jsonl")
    assert bench.read_lines() == [] and bench.read_back() == []
    made = lines(1)
    bench.LINES.write_text("\n".join(map(json.dumps, made)) + '\n{"kind": "col')
    assert bench.read_lines() == made
    bench.write([{"method": "uni"}], made, keep=False)
    assert bench.read_back() == [{"method": "uni"}]
    assert len(json.loads(bench.FIGURES.read_text())["edits"]) == len(bench.EDITED)
