"""PIE-Bench's report: means without what is not finite, the field's scale, and the published rows
beside ours."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import pytest

from bench.pie import report
from bench.pie.metrics import COLUMNS
from bench.pie.published import NAMES, ROWS

NAN, INF = math.nan, math.inf
VALUES = {
    "a": {"psnr": 20.0, "mse": 0.01, "lpips": 0.1},
    "b": {"psnr": 30.0, "mse": 0.03, "lpips": NAN},
    "c": {"psnr": INF, "mse": NAN, "lpips": NAN},
}
KINDS = {"a": "0", "b": "6", "c": "6"}


def test_what_is_not_finite_is_in_no_mean_and_is_counted() -> None:
    found = report.summary(list(VALUES.values()))
    assert found["psnr"] == {"mean": 25.0, "n": 2, "left_out": 1}
    assert found["mse"] == {"mean": 0.02, "n": 2, "left_out": 1}
    assert found["lpips"] == {"mean": 0.1, "n": 1, "left_out": 2}
    assert set(found) == {"psnr", "mse", "lpips"}


def test_means_are_taken_over_all_cases_and_by_type() -> None:
    found = report.by_type(VALUES, KINDS)
    assert list(found) == ["all", "0", "6"] and [one["cases"] for one in found.values()] == [
        3,
        1,
        2,
    ]
    assert found["6"]["columns"]["psnr"]["mean"] == 30.0
    assert found["6"]["columns"]["lpips"] == {"mean": None, "n": 0, "left_out": 2}


def test_the_table_is_in_the_fields_scale() -> None:
    text = report.our_table(report.by_type(VALUES, KINDS))
    head, _, whole, random_, color = text.splitlines()
    assert head == "| editing type | n | PSNR ↑ | LPIPS x10^3 ↓ | MSE x10^4 ↓ |"
    assert whole == "| all | 3 | 25.00 (1 left out) | 100.00 (2 left out) | 200.00 (1 left out) |"
    assert random_ == "| 0 random | 1 | 20.00 | 100.00 | 100.00 |"
    assert color == "| 6 change color | 2 | 30.00 (1 left out) | - | 300.00 (1 left out) |"
    scales = {name: column.scale for name, column in COLUMNS.items()}
    assert (scales["structure"], scales["lpips"], scales["mse"], scales["ssim"]) == (
        1e3,
        1e3,
        1e4,
        1e2,
    )
    assert scales["psnr"] == scales["clip_whole"] == scales["clip_edited"] == 1.0


def test_published_rows_say_where_they_are_from_and_how_far_to_trust_them() -> None:
    direct = [row for row in ROWS if (row.inversion, row.editing) == ("Direct", "P2P")]
    assert [row.values[:2] for row in direct] == [(11.65, 27.22), (11.64, 27.19)]
    assert (
        direct[0].status == "[mem]; [web]: structure, psnr, lpips, clip_whole"
        and direct[1].status == "[web]"
    )
    assert {row.status for row in ROWS if row.where == "paper" and row not in direct} == {"[mem]"}
    assert len(ROWS) == 15 and all(len(row.values) == len(NAMES) == 7 for row in ROWS)
    assert {row.editing for row in ROWS} == {"P2P", "MasaCtrl", "P2P-Zero", "PnP"}


def test_a_recalled_cell_carries_its_mark() -> None:
    line = next(line for line in report.published_table().splitlines() if "11.65 | 27.22" in line)
    assert "| 11.65 | 27.22 | 54.55 | 32.86 ? | 84.76 ? | 25.02 | 22.10 ? | paper |" in line
    assert "69.43 ?" in report.published_table()


@pytest.fixture
def whole() -> dict[str, Any]:
    return {
        "settings": {"method": "direct", "control": "p2p", "checkpoint": "toy", "size": 128},
        "asked": 4,
        "results": report.by_type(VALUES, KINDS),
        "not_measured": {"structure": "OSError: no network"},
        "excluded": {"d": "prompts too long"},
        "notes": {"a": "no blend words"},
        "comfyui": ["0.30.0"],
        "versions": report.versions(),
        "cases": VALUES,
    }


def test_the_report_names_everything_that_is_not_in_its_means(whole: dict[str, Any]) -> None:
    text = report.markdown(whole)
    for line in (
        "* not measured: structure: OSError: no network",
        "* excluded: d: prompts too long",
        "* excluded in all: 1 of 4 cases, not in any mean",
        "* noted: a: no blend words",
    ):
        assert line in text.splitlines()
    assert "comfyui 0.30.0, torch " in text and "### Published" in text
    for said in ("JPEG", "0.8", "painted black", "never verified", "no seed", "left out"):
        assert said in text


def test_the_file_is_strict_json(whole: dict[str, Any], tmp_path: pathlib.Path) -> None:
    report.write(tmp_path, whole)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert found["cases"]["c"] == {"psnr": None, "mse": None, "lpips": None}
    assert found["results"]["all"]["columns"]["psnr"]["left_out"] == 1
    assert (tmp_path / "report.md").read_text() == report.markdown(whole)
