"""Tuning: what is tried, by which rule settings are chosen, and that nothing judged is tuned on."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import pytest

from bench import quality, tuning
from bench.cases import HELD_OUT, KINDS, RIGID_KINDS, TUNED_FILE
from bench.graphs import control_of
from bench.methods import PASTED, Settings
from bench.summary import TUNED, cfgs_of
from tools.client import ServerError

EACH = pytest.mark.parametrize("kind", tuning.SUITED)


def trial(read: float, near: float, **changed: Any) -> dict[str, Any]:
    settings = dataclasses.asdict(Settings(**changed))
    return {
        "n": 20,
        "edit_success": read,
        "background_psnr": 30.0,
        "truth_psnr": near,
        "settings": settings,
    }


def line(kind: str, settings: Settings) -> dict[str, Any]:
    return {"kind": kind, "settings": dataclasses.asdict(settings)}


def test_of_those_read_often_enough_the_nearest_is_best() -> None:
    tried = [trial(0.9, 30.0), trial(0.95, 24.0), trial(1.0, 25.0), trial(1.0, 23.0)]
    assert tuning.best(tried) is tried[2]
    assert tuning.best(tried[:2]) is tried[1]
    assert tuning.best([trial(1.0, 23.0), tried[1]]) is tried[1]


def test_where_none_is_read_often_enough_the_most_read_is_best() -> None:
    tried = [trial(0.5, 30.0), trial(0.7, 20.0), trial(0.7, 21.0)]
    assert tuning.best(tried) is tried[2]


def test_one_field_is_tried_at_a_time_and_thresholds_where_words_are() -> None:
    start = Settings(cfg=7.5, pool=False)
    cfgs = tuning.trials(KINDS["color"], "cfg", start)
    assert [one.cfg for one in cfgs] == [1.5, 2.0, 3.0, 5.0, 7.5]
    assert all(dataclasses.replace(one, cfg=7.5) == start for one in cfgs)
    assert tuning.trials(KINDS["color"], "subtract_threshold", start) == []
    assert tuning.trials(KINDS["background"], "threshold", start) == []
    pooled = {
        (one.threshold, one.pool) for one in tuning.trials(KINDS["color"], "threshold", start)
    }
    assert len(pooled) == 8 and {pool for _, pool in pooled} == {False, True}


def test_every_setting_that_is_tuned_is_one_of_the_nodes() -> None:
    changed = {name for changes in tuning.CHANGES.values() for change in changes for name in change}
    assert changed <= {field.name for field in dataclasses.fields(Settings)}
    assert set(tuning.ORDER) == set(tuning.CHANGES)


def test_jobs_try_all_settings_of_a_case_at_once_on_scenes_of_their_own() -> None:
    tried = {"color": [Settings(1.0), Settings(2.0)], "background": [Settings(3.0)]}
    cases = tuning.jobs(tried, 2)
    assert [[(job.case, len(job.controls)) for job in case] for case in cases] == [
        [("color-000", 2)],
        [("background-000", 1)],
        [("color-001", 2)],
        [("background-001", 1)],
    ]
    assert {control_of(name) for case in cases for job in case for name, _ in job.controls} == {
        PASTED
    }
    judged = {edit.scene for edit in KINDS["color"].cases(30, HELD_OUT)}
    assert not judged & {job.edit.scene for case in cases for job in case}


def test_means_are_of_the_lines_with_these_settings() -> None:
    found = {"edit_success": True, "background_psnr": 30.0, "truth_psnr": 20.0}
    first, second, third = ({"case": f"color-00{i}"} | found for i in range(3))
    lines = [
        line("color", Settings(2.0)) | first,
        line("color", Settings(2.0)) | second | {"edit_success": False, "truth_psnr": 24.0},
        line("color", Settings(2.0)) | third | {"truth_psnr": 90.0},
        line("color", Settings(3.0)) | first,
        line("pattern", Settings(2.0)) | first | {"case": "pattern-000"},
    ]
    one = tuning.judged("color", Settings(2.0), lines, 2)
    assert (one["n"], one["edit_success"], one["background_psnr"], one["truth_psnr"]) == (
        2,
        0.5,
        30.0,
        22.0,
    )
    assert Settings(**one["settings"]) == Settings(2.0)
    with pytest.raises(ValueError, match="expected 4 lines of color"):
        tuning.judged("color", Settings(2.0), lines, 4)


def test_fields_are_tuned_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """With a model whose distance to the truth falls with the distance from one place, the search
    ends there."""
    wanted = {
        "cfg": 3.0,
        "threshold": 0.5,
        "pool": True,
        "cross_end": 0.0,
        "self_end": 1.0,
        "self_limit": 1.0,
        "blend_start": 0.4,
    }

    def made(cases: Any, folder: pathlib.Path, name: str, servers: int) -> Any:
        folder.mkdir(exist_ok=True)
        with (folder / name).open("a") as file:
            for job in (job for case in cases for job in case):
                for control, own in job.controls:
                    near = 30.0 - sum(
                        abs(getattr(own, field) - value) for field, value in wanted.items()
                    )
                    near -= 5.0 * (
                        own.blend_start < 0.4 and own.cfg < 7.5
                    )  # the best cfg shows at the end alone
                    found = line(job.kind, own) | {"case": job.case, "method": job.method}
                    found["control"] = control_of(control)
                    found |= {"edit_success": True, "background_psnr": 30.0, "truth_psnr": near}
                    file.write(json.dumps(found) + "\n")
        return argparse.Namespace(failed=0)

    monkeypatch.setattr(tuning, "make", made)
    monkeypatch.setattr(tuning, "MADE", tmp_path)
    *_, last = (step["color"] for step in tuning.search(["color"], 2, 1) if step)
    found = tuning.best(last)["settings"]
    assert {name: found[name] for name in wanted} == wanted


def test_failed_jobs_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "make", lambda *_: argparse.Namespace(failed=2))
    with pytest.raises(ServerError, match="2 jobs failed"):
        next(tuning.search(["color"], 1, 1))


def test_what_is_written_is_read_again() -> None:
    tried = [trial(1.0, 25.0), trial(0.95, 26.0, cfg=2.0)]
    written = {
        "color": {"best": tried[1], "tried": tried},
        "shape": {"best": tried[0], "tried": tried[:1]},
    }
    text = tuning._text(written)
    assert json.loads(text) == written
    assert sum('"n": 20' in each for each in text.splitlines()) == 2 + 3  # a line for every trial


def test_the_best_of_all_is_written_and_other_kinds_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    tried = [trial(1.0, 26.0, cfg=2.0), trial(1.0, 25.0, cfg=3.0), trial(1.0, 24.0, cfg=5.0)]
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps({"shape": {"best": tried[0], "tried": tried[:1]}}))
    monkeypatch.setattr(tuning, "TUNED_FILE", path)
    monkeypatch.setattr(
        tuning, "search", lambda *_: iter([{"color": tried[:2]}, {}, {"color": tried[2:]}])
    )
    monkeypatch.setattr("sys.argv", ["tuning", "--kinds", "color"])
    assert tuning.run() == 0
    written = json.loads(path.read_text())
    assert written["color"] == {"best": tried[0], "tried": tried}
    assert written["shape"]["best"] == tried[0]


# -- what was found
# ----------------------------------------------------------------------------------------


@EACH
def test_tuned_settings_are_the_best_of_what_was_tried(kind: str) -> None:
    found = json.loads(TUNED_FILE.read_text())[kind]
    assert found["best"] == tuning.best(found["tried"]) and found["best"]["n"] >= 20
    assert KINDS[kind].tuned == Settings(**found["best"]["settings"])
    assert len({one["settings"]["cfg"] for one in found["tried"]}) == len(tuning.CHANGES["cfg"])


@EACH
def test_tuned_edits_are_made_of_every_case(kind: str) -> None:
    for case in quality.plan(
        quality.options(["--kinds", kind, "--per-kind", "3", "--others", "1"])
    ):
        tuned = [job for job in case if job.controls and job.controls[0][1] == KINDS[kind].tuned]
        assert {name for job in tuned for name, _ in job.controls} >= {"none", "p2p_blend", PASTED}
        assert {job.method for job in tuned} == {"direct"}


def test_tuned_edits_are_left_out_like_all_others() -> None:
    kind, tuned = ["--kinds", "color", "--per-kind", "1"], KINDS["color"].tuned
    plans = [
        ["--steps", "7"],
        ["--methods", "ddim"],
        ["--controls", "masactrl"],
        ["--controls", "none"],
    ]
    made = [
        [one for job in case for one in job.controls]
        for case in quality.plan(quality.options(kind))
    ]
    assert sum(own == tuned for _, own in made[0]) == 3
    for extra, count in zip(plans, (0, 0, 0, 1), strict=True):
        (case,) = quality.plan(quality.options([*kind, *extra]))
        assert sum(own == tuned for job in case for _, own in job.controls) == count


def test_rigid_kinds_are_tuned() -> None:
    assert set(RIGID_KINDS) <= set(json.loads(TUNED_FILE.read_text())) == set(tuning.SUITED)


def test_kinds_without_tuned_settings_have_no_such_edits() -> None:
    (case,) = quality.plan(quality.options(["--kinds", "position", "--per-kind", "1"]))
    assert KINDS["position"].tuned is None
    assert {one.cfg for job in case for _, one in job.controls} == {7.5, quality.GENTLE_CFG}


@EACH
def test_lines_count_under_their_cfg_or_as_tuned_or_not_at_all(kind: str) -> None:
    own, tuned = KINDS[kind].settings, KINDS[kind].tuned
    assert tuned is not None
    assert cfgs_of(line(kind, own)) == (own.cfg,)
    assert cfgs_of(line(kind, dataclasses.replace(own, cfg=4.0, steps=3))) == (4.0,)
    assert TUNED in cfgs_of(line(kind, tuned))
    outdated = dataclasses.replace(tuned, blend_start=0.9)
    assert cfgs_of(line(kind, outdated)) == ()
    assert cfgs_of({"kind": kind, "settings": {}}) == (None,)


def test_tuned_to_another_cfg_alone_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dataclasses.replace(KINDS["color"].settings, cfg=2.0)
    monkeypatch.setattr(
        "bench.cases._tuned", lambda: {"color": {"best": {"settings": dataclasses.asdict(own)}}}
    )
    assert cfgs_of(line("color", own)) == (2.0, TUNED)
    other = dataclasses.replace(own, threshold=0.9)
    assert cfgs_of(line("color", other)) == ()
