"""A small part of `make bench-quality` by a real server: every kind of figure, and a run that is
killed goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from bench import jobs
from bench.cases import KINDS
from bench.jobs import Job, Made, Workers, make
from bench.methods import CONTROLS
from bench.summary import LIMITS, find, read_lines, rows_of
from bench.sweeps import SWEEPS, lines_at, settings_of
from tools import install
from tools.pack import digest
from tools.server import Server

pytestmark = [pytest.mark.server, pytest.mark.once("newest")]
STEPS = 3


@pytest.fixture
def shared(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take the server of all tests; those of servers' lives have their own."""
    monkeypatch.setattr(jobs, "Server", lambda: contextlib.nullcontext(server))


def small(kind: str, method: str, *controls: str, index: int = 0) -> Job:
    settings = dataclasses.replace(KINDS[kind].settings, steps=STEPS)
    return Job(kind, index, method, tuple((name, settings) for name in controls))


@pytest.mark.usefixtures("shared")
def test_rows_of_every_control_and_limit(tmp_path: pathlib.Path) -> None:
    cases = [
        [
            Job("color", 0, "autoencoder"),
            small("color", "direct", *CONTROLS),
            small("color", "ddim", "none"),
        ],
        [Job("position", 0, "autoencoder"), small("position", "fixed_point", "masactrl")],
        [Job("background", 0, "autoencoder"), small("background", "null_text_fast", "p2p_blend")],
    ]
    made = make(cases, tmp_path, "cases.jsonl", servers=1)
    versions = made.versions
    assert versions["device"] and versions["comfyui_version"] in install.host_path().name
    lines = read_lines(tmp_path / "cases.jsonl")
    assert len(lines) == 3 * len(LIMITS) + len(CONTROLS) + 3
    assert {line["pack"] for line in lines} == {digest()}
    for line in lines:
        with Image.open(tmp_path / line["picture"]) as picture:
            assert picture.size == (128, 128)
    rows = rows_of(lines)
    true = find(rows, "autoencoder", "true edit", "color", None)
    assert true["edit_success"] == 1.0 and true["truth_psnr"] > 30.0
    plain, blended = (find(rows, "direct", control, "color") for control in ("none", "p2p_blend"))
    assert blended["background_psnr"] > plain["background_psnr"]
    assert plain["rows_per_step"] == 2.0 and 2.0 < blended["rows_per_step"] <= 3.0
    assert find(rows, "fixed_point", "masactrl", "position")["prepare_rows"] == STEPS * 12
    assert find(rows, "null_text_fast", "p2p_blend", "background")["prepare_rows"] > STEPS
    assert all(row["seconds"] > 0.0 for row in rows if row["cfg"] is not None)
    assert pasted_and_blended_are_one_run(lines)
    pasted = find(rows, "direct", "p2p_blend_paste", "color")
    assert pasted["background_psnr"] > blended["background_psnr"]
    assert pasted["truth_psnr"] == pytest.approx(blended["truth_psnr"], abs=3.0)
    back = find(rows, "direct", "reconstruction", "color")
    assert back["source_psnr"] == pytest.approx(back["ceiling_psnr"], abs=6.0)
    assert back["source_psnr"] > plain["source_psnr"] + 5.0
    assert made.failed == 0 and make(cases, tmp_path, "cases.jsonl", servers=1) == Made()


def pasted_and_blended_are_one_run(lines: list[Any]) -> bool:
    times = {line["control"]: line["seconds"] for line in lines if line["method"] == "direct"}
    return bool(times["p2p_blend"] == times["p2p_blend_paste"] != times["p2p"])


def test_servers_end_with_the_run(
    server: Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle, and by an error of a worker: nothing stays behind, and the error is
    told."""
    monkeypatch.setattr("tools.server.RUN", tmp_path / "run")
    with contextlib.closing(Workers([[small("color", "direct", "none")]], 1).run()) as results:
        next(results)
        assert list((tmp_path / "run").glob("server-*"))
    assert not list((tmp_path / "run").glob("server-*"))
    ends: list[None] = []

    @contextlib.contextmanager
    def lent() -> Iterator[Server]:
        try:
            yield server
        finally:
            ends.append(None)

    monkeypatch.setattr(jobs, "Server", lent)
    broken = Job("color", 0, "no such method", small("color", "direct", "none").controls)
    with pytest.raises(KeyError, match="no such method"):
        make([[broken]], tmp_path, "cases.jsonl", servers=1)
    assert ends == [None]


@pytest.mark.usefixtures("shared")
def test_failed_jobs_are_counted_and_made_by_the_next_run(tmp_path: pathlib.Path) -> None:
    good, bad = (small("color", "direct", "p2p", index=i) for i in range(2))
    bad = dataclasses.replace(
        bad, controls=tuple((n, dataclasses.replace(s, mode="no mode")) for n, s in bad.controls)
    )
    assert make([[bad], [good]], tmp_path, "cases.jsonl", servers=1).failed == 1
    assert [line["case"] for line in read_lines(tmp_path / "cases.jsonl")] == ["color-000"]


FOUR = [[small("color", "direct", "none", index=i)] for i in range(4)]
RUN = """
import pathlib, sys
from bench.jobs import make
from test_quality_bench import FOUR
make(FOUR, pathlib.Path(sys.argv[1]), "cases.jsonl", 1)
"""


@pytest.mark.usefixtures("shared")
def test_a_killed_run_goes_on(tmp_path: pathlib.Path) -> None:
    """A program with a server of its own is killed; the same call goes on from its lines."""
    code = f"import sys; sys.path[:0] = ['tests/host', {str(install.host_path())!r}]\n{RUN}"
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=install.ROOT)
    path, deadline = tmp_path / "cases.jsonl", time.monotonic() + 200.0
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    first = path.read_text()
    assert 1 <= first.count("\n") < 4
    path.write_text(first + '{"case": "color-00')  # as if killed within a line
    assert make(FOUR, tmp_path, "cases.jsonl", 1).failed == 0
    assert path.read_text().startswith(first)
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert sorted(line["case"] for line in lines) == [f"color-{i:03d}" for i in range(4)]


@pytest.mark.usefixtures("shared")
def test_sweeps_find_their_pictures(tmp_path: pathlib.Path) -> None:
    sweep = dataclasses.replace(
        SWEEPS[0], values=(0.0, 1.0), base=(*SWEEPS[0].base, ("steps", STEPS))
    )
    controls = tuple(
        (f"{sweep.control}@{value}", settings_of(sweep, value)) for value in sweep.values
    )
    make([[Job(sweep.kind, 0, sweep.method, controls)]], tmp_path, "sweeps.jsonl", servers=1)
    lines = read_lines(tmp_path / "sweeps.jsonl")
    found = [lines_at(sweep, value, lines) for value in sweep.values]
    assert [len(at) for at in found] == [1, 1]
    pictures = [(tmp_path / at[0]["picture"]).read_bytes() for at in found]
    assert pictures[0] != pictures[1]
