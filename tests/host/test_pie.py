"""PIE-Bench's runner against a real ComfyUI: killed in the middle, gone on with, measured and
reported."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from bench.pie import __main__ as command
from bench.pie import toyset
from bench.pie.dataset import MAPPING
from tools import install
from tools.client import Client
from tools.server import Server

pytestmark = [pytest.mark.server, pytest.mark.once("oldest")]
STEPS = ["--steps", "6", "--cfg", "3"]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in this process leaves its signals alone."""
    monkeypatch.setattr(command, "stop_on_signals", lambda: None)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Four drawn cases; a node refuses the third, whose source prompt is empty."""
    toyset.write(tmp_path / "data", 4)
    entries = json.loads((tmp_path / "data" / MAPPING).read_text())
    entries["000000000002"]["original_prompt"] = ""
    (tmp_path / "data" / MAPPING).write_text(json.dumps(entries))
    return tmp_path / "data"


def kill_after_first(arguments: list[str]) -> None:
    """Run the command as a program and kill it outright when its first case is done."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.pie", *arguments],
        cwd=install.ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        assert any(line.startswith("1/4") for line in process.stdout)
        process.kill()
    process.wait()


def test_a_killed_run_goes_on_and_is_measured(
    server: Server, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder), "--out", str(tmp_path / "out"), *STEPS, "--url", server.url]
    kill_after_first(arguments)
    place = tmp_path / "out" / "toy" / "direct-p2p_blend"
    first = place / "000000000000.png"
    stamp, done = first.stat().st_mtime_ns, (place / "cases.jsonl").read_text().count("\n")
    assert 1 <= done < 4
    assert command.main([*arguments, "--metrics", "psnr", "mse", "ssim"]) == 0
    assert first.stat().st_mtime_ns == stamp, "a finished case was made again"
    said = capsys.readouterr().out
    assert f"4 cases, {4 - done} of them to be edited" in said
    report = json.loads((place / "report.json").read_text())
    check_report(report)
    with Client(server.url) as client:
        assert report["comfyui"] == [client.system_stats()["system"]["comfyui_version"]]
    assert "| all | 3 |" in said and "* excluded in all: 1 of 4 cases" in said
    assert command.main([*arguments, "--metrics", "mse"]) == 0
    assert "4 cases, 0 of them to be edited" in capsys.readouterr().out
    assert command.main([*arguments, "--cfg", "4"]) == 1
    assert "holds pictures made with cfg 3.0, now 4.0" in capsys.readouterr().err


def check_report(report: dict) -> None:
    """Three cases, one excluded with its reason, and figures of edits that kept the background."""
    assert set(report["cases"]) == {"000000000000", "000000000001", "000000000003"}
    assert "a source prompt" in report["excluded"]["000000000002"]
    assert report["asked"] == 4 and set(report["results"]) == {"all", "0", "1", "6"}
    assert (
        report["settings"]["checkpoint"] == "toy"
        and len(report["settings"]["checkpoint_sha256"]) == 64
    )
    assert "structure" in report["not_measured"]
    if "psnr" not in report["not_measured"]:
        columns = report["results"]["all"]["columns"]
        assert columns["psnr_masked"]["n"] == 3 and 22.0 < columns["psnr_masked"]["mean"] < 45.0
        assert columns["ssim_masked"]["mean"] > 0.9


def test_its_own_server_makes_the_same_pictures(
    server: Server, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No noise is drawn: another process makes the same bytes. And another method and control
    run."""
    chosen = [str(folder), *STEPS, "--ids", "000000000001", "--metrics", "mse"]
    chosen += ["--method", "negative_prompt", "--control", "proxmasactrl"]
    assert command.main([*chosen, "--out", str(tmp_path / "one"), "--url", server.url]) == 0
    assert command.main([*chosen, "--out", str(tmp_path / "two")]) == 0
    made = [
        tmp_path / out / "toy" / "negative_prompt-proxmasactrl" / "000000000001.png"
        for out in ("one", "two")
    ]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert "starting ComfyUI" in capsys.readouterr().out
    assert (
        command.main(
            [*chosen, "--out", str(tmp_path / "two"), "--url", server.url, "--checkpoint", "sd14"]
        )
        == 1
    )
    assert "error: no checkpoint sd14; the server offers" in capsys.readouterr().err
