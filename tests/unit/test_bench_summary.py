"""Figures from judged pictures: means, intervals, paired gains, and what is left to be made."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from bench import quality
from bench.cases import KINDS
from bench.jobs import Job, Made, Uploads, _left, graph_of, make
from bench.methods import CONTROLS, EDITS, METHODS, PASTED, Settings
from bench.summary import (
    LIMITS,
    TUNED,
    bootstrap,
    common,
    find,
    gain,
    interval,
    key,
    prepare_seconds,
    read_lines,
    rows_of,
    spread,
    suited,
    table,
)
from tools import pack
from tools.pack import PARTS, ROOT, digest


def line(
    case: str, method: str = "direct", control: str = "none", cfg: float = 7.5, **found: Any
) -> dict[str, Any]:
    kind = case.partition("-")[0]
    made = {
        "case": case,
        "kind": kind,
        "method": method,
        "control": control,
        "wrong": [],
        "edit_success": True,
    }
    made["settings"] = dataclasses.asdict(dataclasses.replace(KINDS[kind].settings, cfg=cfg))
    made |= {
        "background_psnr": 30.0,
        "background_psnr_zeroed": 31.0,
        "truth_psnr": 25.0,
        "truth_ssim": 0.9,
        "source_psnr": 20.0,
    }
    made |= {
        "rows_per_step": 3.0,
        "prepare_rows": 20,
        "seconds": 2.0,
        "prepare_seconds": 1.0,
        "null_text_seconds": None,
    }
    return made | found


def limit(case: str, ceiling: float) -> dict[str, Any]:
    return line(case, "autoencoder", "round trip", ceiling_psnr=ceiling) | {"settings": {}}


LINES = [
    line("color-000", truth_psnr=24.0),
    line("color-001", truth_psnr=26.0, edit_success=False, wrong=["background"]),
    line("shape-000", truth_psnr=20.0, wrong=["shape"], edit_success=False),
    limit("color-000", 38.0),
    limit("color-001", 40.0),
    limit("shape-000", 36.0),
]


def test_rows_are_means_by_kind() -> None:
    rows = rows_of(LINES)
    color, rigid, everything = (
        find(rows, "direct", "none", kind) for kind in ("color", "rigid", "all")
    )
    assert (color["n"], color["truth_psnr"], color["ceiling_psnr"], color["edit_success"]) == (
        2,
        25.0,
        39.0,
        0.5,
    )
    assert (
        color["object_kept"] == 1.0 and find(rows, "direct", "none", "shape")["object_kept"] == 0.0
    )
    assert {name: rigid[name] for name in rigid if name != "kind"} == {
        n: color[n] for n in color if n != "kind"
    }
    assert everything["n"] == 3 and everything["truth_psnr"] == pytest.approx(70 / 3, abs=1e-4)
    assert everything["seconds"] == 3.0 and everything["rows_per_step"] == 3.0
    with pytest.raises(KeyError):
        find(rows, "ddim", "none", "color")


def test_cfgs_are_rows_of_their_own() -> None:
    rows = rows_of([*LINES, line("color-000", cfg=2.0, truth_psnr=30.0)])
    assert find(rows, "direct", "none", "color")["n"] == 2
    assert find(rows, "direct", "none", "color", 2.0)["truth_psnr"] == 30.0


def test_bootstrap_is_seeded_holds_the_mean_and_narrows() -> None:
    drawn = np.random.default_rng(3).normal(5.0, 2.0, 400)
    low, high = bootstrap(list(drawn))
    assert bootstrap(list(drawn)) == [low, high]
    assert low < drawn.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * drawn.std() / 20.0, rel=0.1)
    assert bootstrap([3.0] * 5) == [3.0, 3.0]
    few = bootstrap(list(drawn[:25]))
    assert few[1] - few[0] > 2.5 * (high - low)


def test_shares_that_all_agree_are_not_certain() -> None:
    low, high = interval([True] * 30)
    assert high == 1.0 and low == pytest.approx(1 / (1 + 1.96**2 / 30), abs=1e-3)
    assert interval([1.0, 2.0, 3.0]) == bootstrap([1.0, 2.0, 3.0])


def test_cases_without_limits_are_left_out() -> None:
    assert find(rows_of([*LINES, line("color-007")]), "direct", "none", "color")["n"] == 2


def test_common_rows_are_of_the_same_cases() -> None:
    lines = [
        *LINES,
        line("color-000", "negative_prompt"),
        line("color-001", "negative_prompt", cfg=2.0),
    ]
    rows = common(lines, 7.5)
    assert (
        find(rows, "direct", "none", "all")["n"]
        == find(rows, "negative_prompt", "none", "all")["n"]
        == 1
    )
    assert {row["cfg"] for row in common([*lines, line("color-000", cfg=2.0)], 7.5)} == {7.5, None}


def test_gains_are_paired() -> None:
    lines = [
        line(f"color-{i:03d}", method, truth_psnr=base + i)
        for method, base in (("ddim", 10.0), ("direct", 13.0))
        for i in range(5)
    ]
    lines += [
        line("color-009", "direct", truth_psnr=99.0),
        line("shape-000", "direct"),
        line("shape-000", "ddim"),
    ]
    found = gain(lines, ("direct", "none", 7.5), ("ddim", "none", 7.5), "truth_psnr", ["color"])
    assert found == {"gain": 3.0, "interval": [3.0, 3.0], "n": 5}
    with pytest.raises(ValueError, match="no case"):
        gain(lines, ("direct", "none", 7.5), ("ddim", "p2p", 7.5), "truth_psnr", ["color"])


def test_methods_of_one_inversion_share_its_time() -> None:
    lines = [
        line("color-000", "ddim", prepare_seconds=2.0),
        line("color-000", "direct", prepare_seconds=None),
        line("color-000", "null_text_fast", prepare_seconds=None, null_text_seconds=5.0),
        line("color-001", "null_text_fast", prepare_seconds=10.0, null_text_seconds=6.0),
        line("color-000", "fixed_point", prepare_seconds=9.0),
        line("color-000", "fixed_point", cfg=2.0, prepare_seconds=4.0),
        line("color-000", "null_text_fast", cfg=2.0, prepare_seconds=None, null_text_seconds=2.0),
        limit("color-000", 38.0),
    ]
    assert (
        prepare_seconds("direct", lines, 7.5)
        == prepare_seconds("direct", lines, 2.0)
        == pytest.approx(3.0)
    )
    assert prepare_seconds("null_text_fast", lines, 7.5) == pytest.approx(8.5)
    assert prepare_seconds("fixed_point", lines, 7.5) == 9.0
    assert prepare_seconds("null_text_fast", lines, 2.0) == pytest.approx(3.0 + 2.0)
    assert prepare_seconds("fixed_point", lines, 2.0) == 4.0


def test_tables_show_means_and_intervals() -> None:
    rows = rows_of(LINES)
    text = table(rows, "color").splitlines()
    assert text[0].startswith("| method | control | n |") and len(text) == 3
    assert "| direct | none | 2 | 50 ±41 % | 30.0 ±0.0 | 25.0 ±1.0 | 0.900 | 80 | 3.0 |" == text[2]
    assert spread(rows[0], "truth_ssim", "{:.2f}") == "0.90 ±0.00"


def test_cut_off_lines_do_not_count_and_the_last_does(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "cases.jsonl"
    again = line("color-000", truth_psnr=27.0)
    path.write_text(
        "\n".join(json.dumps(each) for each in (LINES[0], LINES[1], again)) + '\n{"case": "color-0'
    )
    found = read_lines(path)
    assert [each["truth_psnr"] for each in found] == [27.0, 26.0]
    assert read_lines(tmp_path / "none.jsonl") == []


# -- the plan and what is left of it
# -----------------------------------------------------------------------


def chosen(**others: Any) -> argparse.Namespace:
    options = {"per_kind": 3, "others": 2, "reference": 1, "gentle": 1, "back": 2, "steps": 0}
    lists = {"kinds": list(KINDS), "methods": list(METHODS), "controls": list(CONTROLS)}
    return argparse.Namespace(**{**options, **lists, **others})


def by_method(jobs: list[Job], cfg: float) -> dict[str, set[str]]:
    """The controls of every method at a cfg, all else as the kind has it."""
    own = dataclasses.replace(KINDS[jobs[0].kind].settings, cfg=cfg)
    return {
        job.method: {name for name, _ in job.controls}
        for job in jobs
        if job.controls and job.controls[0][1] == own
    }


def test_the_plan_covers_every_kind_method_and_control() -> None:
    cases = quality.plan(chosen())
    assert [case[0].case for case in cases][:9] == [f"{kind}-000" for kind in KINDS] + ["color-001"]
    assert all(case[0].method == "autoencoder" for case in cases)
    first, second, third = (by_method(cases[at], 7.5) for at in (0, 8, 16))
    assert set(first) == set(METHODS) and set(second) == set(METHODS) - {"null_text_reference"}
    assert all(names >= set(EDITS) for names in (*first.values(), *second.values()))
    assert third == {method: set(names) for method, names in quality.CORE.items()} | {
        "direct": {*EDITS, PASTED}
    }
    back = {method for method, names in second.items() if "reconstruction" in names}
    assert back == set(second) and "reconstruction" not in first["null_text_reference"]


def test_little_guidance_is_tried_on_some_and_with_direct_on_all_rigid_kinds() -> None:
    cases = quality.plan(chosen())
    low = quality.GENTLE_CFG
    assert set(by_method(cases[0], low)) == set(METHODS)
    assert (
        by_method(cases[16], low) == {"direct": set(quality.BLENDED)}
        and cases[16][0].kind == "color"
    )
    assert by_method(cases[16], quality.RIGID_CFGS[1]) == {"direct": set(quality.BLENDED)}
    assert by_method(cases[16 + list(KINDS).index("shape")], low) == {}


def test_the_whole_plan_has_240_pairs_of_eight_kinds() -> None:
    cases = quality.plan(quality.options([]))
    edits = {job.edit for case in cases for job in case[:1]}
    assert len(cases) == len(edits) == 240


def test_what_is_done_is_not_made_again(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = KINDS["color"].settings
    job = Job("color", 0, "direct", (("none", settings), ("p2p", settings)))
    done = key("color-000", "direct", "none", dataclasses.asdict(settings))
    assert job.without(set()) == job
    left = job.without({done})
    assert left is not None and [name for name, _ in left.controls] == ["p2p"]
    other = dataclasses.replace(job, controls=(("none", dataclasses.replace(settings, cfg=3.0)),))
    assert other.without({done}) == other
    limits = {key("color-000", "autoencoder", name, {}) for name in LIMITS}
    assert Job("color", 0, "autoencoder").without(limits) is None
    assert Job("color", 0, "autoencoder").without(set(list(limits)[:1])) is not None
    made = line("color-000", "direct", "none") | {"settings": dataclasses.asdict(settings)}
    (tmp_path / "cases.jsonl").write_text(json.dumps(made) + "\n")
    assert (
        make([[dataclasses.replace(job, controls=job.controls[:1])]], tmp_path, "cases.jsonl")
        == Made()
    )
    said = capsys.readouterr().out
    assert "0 jobs of 1" in said and "1 of 1 pictures are from other versions of the pack" in said
    (tmp_path / "cases.jsonl").write_text(json.dumps(made | {"pack": digest()}) + "\n")
    assert (
        make([[dataclasses.replace(job, controls=job.controls[:1])]], tmp_path, "cases.jsonl")
        == Made()
    )
    assert "other versions" not in capsys.readouterr().out
    lines = [made | {"pack": digest()}, made | {"case": "color-001"}]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    make([[dataclasses.replace(job, controls=job.controls[:1])]], tmp_path, "cases.jsonl")
    assert "1 of 2 pictures are from other versions" in capsys.readouterr().out


def test_the_way_that_suits_is_the_nearest_of_those_that_edit() -> None:
    found = {
        "none": (1.0, 20.0),
        "p2p": (0.95, 22.0),
        "p2p_blend": (0.85, 26.0),
        "proxnpi": (0.0, 30.0),
    }
    same = {"method": "direct", "kind": "color", "n": 30}
    rows = [
        {**same, "control": name, "cfg": 7.5, "edit_success": success, "truth_psnr": near}
        for name, (success, near) in {
            **found,
            "masactrl": (1.0, 19.0),
            "proxmasactrl": (1.0, 18.0),
        }.items()
    ]
    assert suited(rows, "color")["control"] == "p2p"
    pasted = {**same, "control": PASTED, "cfg": 7.5, "edit_success": 0.95, "truth_psnr": 23.0}
    assert suited([*rows, pasted], "color")["control"] == PASTED
    tuned = {**same, "control": "p2p_blend", "cfg": TUNED, "edit_success": 0.95, "truth_psnr": 27.0}
    assert suited([*rows, tuned], "color")["cfg"] == TUNED
    for other in (
        {"truth_psnr": 21.0},
        {"kind": "shape"},
        {"method": "ddim"},
        {"n": 29},
        {"control": "reconstruction"},
    ):
        assert suited([*rows, tuned | other], "color")["control"] == "p2p"


def test_pictures_that_two_jobs_ask_for_are_made_once() -> None:
    settings = KINDS["color"].settings
    first = Job("color", 0, "direct", (("none", settings), ("p2p", settings)))
    second = Job("color", 0, "direct", (("p2p", settings), ("p2p_blend", settings)))
    left = _left([first, second, first], set())
    assert [[name for name, _ in job.controls] for job in left] == [["none", "p2p"], ["p2p_blend"]]
    limits = Job("color", 0, "autoencoder")
    assert _left([limits, limits], set()) == [limits]


def test_a_picture_is_uploaded_once() -> None:
    """Jobs that are queued may be reading it."""

    class Counting:
        names: list[str] = []

        def upload(self, picture: Any, name: str) -> str:
            self.names.append(name)
            return name

    client = Counting()
    upload = Uploads(client)  # type: ignore[arg-type]
    jobs = [Job("color", 0, "direct", (("none", Settings(cfg)),)) for cfg in (1.0, 2.0)]
    graphs = [
        graph_of(job, upload)
        for job in (*jobs, Job("color", 0, "autoencoder"), Job("color", 1, "autoencoder"))
    ]
    assert client.names == [
        f"pivot_color-{case}.png"
        for case in ("000", "000_true", "000_mask", "001", "001_true", "001_mask")
    ]
    assert graphs[0]["image"] == graphs[1]["image"]


def test_the_packs_mark_is_of_all_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {
        "bench",
        "tests",
        "tools",
    }
    assert packages == set(PARTS)
    monkeypatch.setattr(pack, "ROOT", tmp_path)
    files = [tmp_path / "__init__.py", *(tmp_path / name / "part.py" for name in PARTS)]
    marks = set()
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("a = 1\n")
    for file in files:
        file.write_text("a = 2\n")
        digest.cache_clear()
        marks.add(digest())
    digest.cache_clear()
    assert len(marks) == len(files) and all(len(mark) == 8 for mark in marks)


def test_rows_are_in_the_order_of_cfgs_and_tuned_ones_last() -> None:
    lines = [line("color-000", cfg=cfg) for cfg in (2.0, 7.5, 3.0)]
    tuned = line("color-000") | {"settings": dataclasses.asdict(KINDS["color"].tuned)}
    rows = [
        row for row in rows_of([*lines, tuned, limit("color-000", 38.0)]) if row["kind"] == "color"
    ]
    assert [row["cfg"] for row in rows] == [7.5, 3.0, 2.0, None, TUNED]
    assert rows[-1]["settings"] == tuned["settings"] and "settings" not in rows[0]
    assert "all" not in {
        row["kind"] for row in rows_of([tuned, limit("color-000", 38.0)]) if row["cfg"] == TUNED
    }
