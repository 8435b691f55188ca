"""What the stress bench draws, and what it makes of every end of a job."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.stress import (
    BAD,
    BAD_CONTROL,
    PICTURE,
    SHARES,
    Job,
    Outcome,
    draw,
    fault,
    random_edit,
    report,
    table,
)
from tools.client import Interrupted, JobFailed, Result


def upload(picture: np.ndarray, name: str) -> str:
    return name


def jobs(count: int = 60, seed: int = 0) -> list[Job]:
    return draw(count, seed, upload)  # type: ignore[arg-type]


def drawn(color: str = "red", size: int = 4) -> Result:
    return Result("p1", images={PICTURE: [Image.new("RGB", (size, size), color)]})


def job(kind: str = "edit", **more: Any) -> Job:
    return Job(0, kind, {}, **more)


ALONE = {job().digest: Outcome(job(), drawn()).pixels or b""}
NAMED = JobFailed("a word is missing", "7", "PivotLocalBlend")
STOPPED = Interrupted("interrupted", "8", "PivotEditSampler")


def test_a_seed_gives_the_same_jobs_and_another_seed_others() -> None:
    digests = [one.digest for one in jobs()]
    assert digests == [one.digest for one in jobs()]
    assert not set(digests) & {one.digest for one in jobs(seed=1)}


def test_all_kinds_come_and_some_graphs_come_again() -> None:
    found = jobs(200)
    assert {one.kind for one in found} == set(SHARES)
    assert {one.refuser for one in found if one.kind == "bad"} == set(BAD)
    assert all(one.stop_at > 0 for one in found if one.kind == "interrupt")
    good = [one.digest for one in found if one.kind != "bad"]
    assert len(set(good)) < len(good)
    assert all(one.graph[PICTURE]["class_type"] == "SaveImage" for one in found)


@pytest.mark.parametrize("refuser", BAD)
def test_a_bad_job_differs_at_the_node_that_must_refuse_it(refuser: str) -> None:
    def edit() -> Any:
        return random_edit(random.Random(0), upload, (4, 4), "direct", BAD_CONTROL)  # type: ignore[arg-type]

    good, bad = edit(), edit()
    BAD[refuser](bad)
    differ = {bad[name]["class_type"] for name in good if repr(good[name]) != repr(bad[name])}
    assert differ == {refuser}


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome(job(), drawn()), ""),
        (Outcome(job(), drawn("blue")), "differs"),
        (Outcome(job(), drawn(size=5)), "differs"),
        (Outcome(job(), NAMED), "failed: node 7"),
        (Outcome(job(), STOPPED), "was interrupted"),
        (Outcome(job(), None), "has no result"),
        (Outcome(job("interrupt", stop_at=3), STOPPED), ""),
        (Outcome(job("interrupt", stop_at=3), drawn()), ""),
        (Outcome(job("interrupt", stop_at=3), drawn("blue")), "differs"),
        (Outcome(job("delete"), None), ""),
        (Outcome(job("delete"), drawn("blue")), "differs"),
        (Outcome(job("bad", refuser="PivotLocalBlend"), NAMED), ""),
        (Outcome(job("bad", refuser="LoadImage"), NAMED), "LoadImage should refuse it; came: node"),
        (Outcome(job("bad", refuser="PivotLocalBlend"), JobFailed("refused")), "came: refused"),
        (Outcome(job("bad", refuser="PivotLocalBlend"), drawn()), "ran, though PivotLocalBlend"),
        (Outcome(job("bad", refuser="PivotLocalBlend"), STOPPED), "was interrupted"),
    ],
)
def test_every_end_of_a_job_is_judged(outcome: Outcome, said: str) -> None:
    found = fault(outcome, ALONE)
    assert said in found
    assert bool(said) == bool(found)


def test_a_report_counts_and_names_what_is_wrong() -> None:
    plain = Job(1, "plain", {})
    outcomes = [
        Outcome(job(), drawn("blue")),
        Outcome(plain, drawn()),
        Outcome(Job(2, "bad", {}, "PivotLocalBlend"), NAMED),
    ]
    found = report(outcomes, ALONE)
    assert found["counts"] == {"bad, refused": 1, "edit, finished": 1, "plain, finished": 1}
    assert (found["finished"], found["equal"], found["plain_equal"]) == (2, 1, 1)
    assert found["faults"] == {0: "differs from its run alone"}
    memory = {"before": 500.0, "after": None}
    text = table(found | {"host": "0.0", "seed": 3, "seconds": 9.0, "memory_mb": memory})
    assert "equal to their runs alone: 1 of 2" in text
    assert "job 0: differs from its run alone" in text
    assert "MB: before 500\n" in text
