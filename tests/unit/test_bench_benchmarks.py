"""What is concluded from the quality bench: the best way to edit, its distance to the targets, and
how that reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bench import benchmarks
from bench.cases import KINDS, RIGID_KINDS
from bench.quality import GENTLE_CFG, PASTED
from bench.summary import TUNED, rows_of

CEILING = 38.0
LIMIT = {"background_psnr": CEILING}
EDITED = {
    "color": "color-000",
    "pattern": "pattern-000",
    "background": "background-000",
    "position": "position-000",
}


def line(
    kind: str, method: str, control: str, settings: Any, near: float, **found: Any
) -> dict[str, Any]:
    made = {
        "case": EDITED[kind],
        "kind": kind,
        "method": method,
        "control": control,
        "wrong": [],
        "edit_success": True,
    }
    made |= {
        "settings": dataclasses.asdict(settings) if settings else {},
        "truth_psnr": near,
        "background_psnr": 37.5,
    }
    made |= {
        "background_psnr_zeroed": 40.0,
        "truth_ssim": 0.9,
        "source_psnr": 20.0,
        "ceiling_psnr": CEILING,
    }
    made |= {"rows_per_step": 3.0, "prepare_rows": 20, "seconds": 2.0, "prepare_seconds": 1.0}
    return made | {"null_text_seconds": None} | found


def lines(**best: Any) -> list[dict[str, Any]]:
    """Plain sampling at 20 dB; direct, pasted or not, at 22 dB and tuned 26 dB (or as told);
    position edits."""
    found = []
    for kind in RIGID_KINDS:
        own, tuned = KINDS[kind].settings, KINDS[kind].tuned
        gentle = dataclasses.replace(own, cfg=GENTLE_CFG)
        found += [
            line(kind, "ddim", "none", own, 20.0),
            line(kind, "autoencoder", "round trip", None, 30.0, **LIMIT),
        ]
        for settings, near in ((own, 22.0), (gentle, 23.0), (tuned, 26.0)):
            found += [
                line(kind, "direct", control, settings, near) for control in ("p2p_blend", PASTED)
            ]
            found.append(line(kind, "direct", "none", settings, near - 1.0))
        found.append(line(kind, "direct", PASTED, tuned, 26.5) | best)
    position = KINDS["position"].settings
    found.append(line("position", "autoencoder", "round trip", None, 30.0, **LIMIT))
    return [
        *found,
        line(
            "position",
            "direct",
            "masactrl",
            position,
            20.0,
            wrong=["background"],
            edit_success=False,
        ),
    ]


def keyed(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As they are read from a file: of what was made twice, the last."""
    return list(
        {str((m["case"], m["method"], m["control"], m["settings"])): m for m in made}.values()
    )


def test_the_best_way_is_the_nearest_of_those_read_often_enough() -> None:
    best = benchmarks.best_rigid(rows_of(keyed(lines())))
    assert (best["method"], best["control"], best["cfg"], best["truth_psnr"]) == (
        "direct",
        PASTED,
        TUNED,
        26.5,
    )
    best = benchmarks.best_rigid(rows_of(keyed(lines(edit_success=False))))
    assert (best["control"], best["cfg"], best["truth_psnr"]) == ("p2p_blend", TUNED, 26.0)


def test_ways_that_few_cases_have_are_not_the_best() -> None:
    made = [*lines(), line("color", "negative_prompt", "p2p", KINDS["color"].settings, 99.0)]
    assert benchmarks.best_rigid(rows_of(keyed(made)))["method"] == "direct"


def test_targets_are_met_or_missed_by_their_means() -> None:
    made = keyed(lines())
    read, kept, closer, moved = benchmarks.targets(rows_of(made), made)
    assert (read["value"], kept["value"], closer["value"], moved["value"]) == (1.0, 0.5, 6.5, 1.0)
    assert all(row["met"] for row in (read, kept, closer, moved))
    assert closer["figure"].startswith(f"direct, {PASTED}, tuned to each kind, ")
    made = keyed(lines(background_psnr=36.9, truth_psnr=23.9, edit_success=False))
    made = [one if one["control"] == PASTED else one | {"edit_success": False} for one in made]
    made = [one | ({"wrong": ["color"]} if one["kind"] == "position" else {}) for one in made]
    missed = benchmarks.targets(rows_of(made), made)
    assert [row["met"] for row in missed] == [True, True, False, False]
    made = keyed(lines(background_psnr=36.9))
    assert [row["met"] for row in benchmarks.targets(rows_of(made), made)] == [
        True,
        False,
        True,
        True,
    ]


def test_gains_are_over_plain_sampling_at_the_papers_cfg_and_at_its_own() -> None:
    made = keyed(lines())
    found = benchmarks.all_rigid(rows_of(made), made)
    assert len(found) == 2 * 3 * 4
    tuned, own, gentle = (
        next(
            row
            for row in found
            if (row["control"], row["cfg"], row["kind"]) == (PASTED, cfg, "rigid")
        )
        for cfg in (TUNED, benchmarks.PAPERS_CFG, GENTLE_CFG)
    )
    assert (tuned["closer"]["gain"], own["closer"]["gain"], gentle["closer"]["gain"]) == (
        6.5,
        2.0,
        3.0,
    )
    assert (tuned["closer_at_its_cfg"]["gain"], own["closer_at_its_cfg"]["gain"]) == (1.5, 1.0)
    assert tuned["n"] == tuned["closer"]["n"] == 3 and tuned["below"]["gain"] == pytest.approx(0.5)
    color = next(row for row in found if row["kind"] == "color")
    assert color["n"] == color["closer"]["n"] == 1


def test_tables_say_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made = keyed(lines())
    rows = rows_of(made)
    figures = {
        "rigid.json": benchmarks.all_rigid(rows, made),
        "targets.json": benchmarks.targets(rows, made),
    }
    monkeypatch.setattr(benchmarks, "_figures", figures.__getitem__)
    (row,) = (
        each
        for each in benchmarks.section_rigid().splitlines()
        if "| p2p_blend_paste | tuned | rigid |" in each
    )
    assert row.endswith(
        "| 3 | 100 (44 to 100) % | 0.5 (0.5 to 0.5) | 6.5 (6.5 to 6.5) | 1.5 (1.5 to 1.5) |"
    )
    assert "| 100 % | 44 % to 100 % | 95 % | yes | 3 |" in benchmarks.section_targets()
