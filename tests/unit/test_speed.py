"""The speed benches' own logic: which figures come from which run, and what the clock and the GPU's
memory are read around."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from bench import seconds, speed

OLD = {
    "figure": "a, x",
    "value": 1.0,
    "target": 1.05,
    "reference": "",
    "device": "old CPU",
    "run": "monday",
}


def figure(name: str, value: float, **changes: Any) -> speed.Figure:
    return {**OLD, "figure": name, "value": value, "device": "CPU", "run": "tuesday", **changes}


def test_figures_measured_again_take_the_place_of_the_old_ones() -> None:
    old = [OLD, {**OLD, "figure": "b, x"}]
    made = speed.merged(old, [figure("c, x", 3.0), figure("a, x", 2.0)])
    assert [(each["figure"], each["value"], each["run"]) for each in made] == [
        ("a, x", 2.0, "tuesday"),
        ("b, x", 1.0, "monday"),
        ("c, x", 3.0, "tuesday"),
    ]


def test_the_earlier_run_is_the_last_one_or_else_the_one_that_is_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "OUT", tmp_path / "out.json")
    monkeypatch.setattr(speed, "KEPT", tmp_path / "kept.json")
    assert speed.earlier() == []
    speed.KEPT.write_text(
        json.dumps([{name: value for name, value in OLD.items() if name != "run"}])
    )
    assert speed.earlier() == [{**OLD, "run": "earlier, not noted"}]
    speed.OUT.write_text(json.dumps([OLD]))
    assert speed.earlier() == [OLD]


@pytest.mark.parametrize(
    ("arguments", "expected"), [(["--only", "new"], ["a, x", "n, x"]), ([], ["n, x", "o, x"])]
)
def test_only_measures_its_parts_beside_the_earlier_run(
    arguments: list[str],
    expected: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    def part(name: str) -> Any:
        return lambda: [
            {key: value for key, value in figure(name, 2.0, target=None).items() if key != "run"}
        ]

    monkeypatch.setattr(speed, "OUT", tmp_path / "deep" / "out.json")
    monkeypatch.setattr(speed, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(speed, "PARTS", {"new": part("n, x"), "other": part("o, x")})
    monkeypatch.setattr(speed, "import_comfy", lambda **options: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    speed.KEPT.write_text(json.dumps([OLD]))
    speed.main(arguments)
    made = json.loads(speed.OUT.read_text())
    assert [each["figure"] for each in made] == expected
    assert all((each["run"] == "monday") == (each["figure"] == "a, x") for each in made)
    assert "| n, x | 2 |  |" in capsys.readouterr().out


def test_a_figure_without_target_has_an_empty_cell() -> None:
    lines = speed.table(
        [OLD, figure("b, x", 2.5, target=None, reference="1.5 elsewhere")]
    ).splitlines()
    assert lines[2:] == [
        "| a, x | 1 | <= 1.05 |  | monday |",
        "| b, x | 2.5 |  | 1.5 elsewhere | tuesday |",
    ]


def test_without_a_gpu_one_line_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(seconds, "OUT", tmp_path / "seconds.json")
    assert seconds.main([]) == 0
    told = capsys.readouterr().out
    assert told.count("\n") == 1 and "GPU" in told
    assert not seconds.OUT.exists()


def test_small_models_run_on_the_cpu_and_leave_the_gpus_figures(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(seconds, "OUT", tmp_path / "seconds.json")
    monkeypatch.setattr(seconds, "import_comfy", lambda **options: asked.update(options))
    monkeypatch.setattr(seconds, "write", lambda *call: asked.update(call=call))
    assert seconds.main(["--model", "small", "--steps", "4"]) == 0
    settings, steps, turns, path = asked["call"]
    assert (steps, turns, path.name) == (4, seconds.TURNS, "seconds_small.json")
    assert {setting.device for setting in settings} == {"cpu"} and "--cpu" in asked["flags"]


def test_full_models_run_on_the_gpu(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(seconds, "OUT", tmp_path / "seconds.json")
    monkeypatch.setattr(seconds, "import_comfy", lambda **options: asked.update(options))
    monkeypatch.setattr(seconds, "write", lambda *call: asked.update(call=call))
    assert seconds.main([]) == 0
    settings, steps, _, path = asked["call"]
    assert (steps, path) == (50, seconds.OUT) and "--cpu" not in asked["flags"]
    found = [
        (setting.kind, 8 * setting.side, setting.device, setting.dtype) for setting in settings
    ]
    assert found == [("SD15", 512, "cuda", torch.float16), ("SDXL", 1024, "cuda", torch.float16)]


class Gpu:
    """A GPU in name: logs what is asked of it; every run takes as long as the next of `lasting`
    says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lasting: list[float]) -> None:
        self.log: list[str] = []
        self.now, self.pending, self.lasting = 0.0, 0.0, list(lasting)
        self.held = self.most = 5 * 2**30
        monkeypatch.setattr(torch.cuda, "synchronize", self._synchronize)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", self._reset)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: self.most)
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)

    def call(self) -> None:
        """Queues work, as CUDA does: time goes by when one waits for it."""
        self.pending += self.lasting.pop(0)
        self.most = max(self.most, self.held + 2**30)

    def _synchronize(self) -> None:
        self.now, self.pending = self.now + self.pending, 0.0

    def _reset(self) -> None:
        self.most = self.held


def test_on_a_gpu_the_clock_waits_and_earlier_memory_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = Gpu(monkeypatch, [2.0, 7.0, 3.0])
    gpu.most = 60 * 2**30  # an earlier method's
    gpu.pending = 100.0  # and its last work
    assert seconds.timed(gpu.call, "cuda", 3) == (3.0, 6 * 2**30)


def test_on_the_cpu_memory_is_seen_by_the_hook() -> None:
    took, peak = seconds.timed(lambda: torch.zeros(1000) + 1.0, "cpu", 2)
    assert 0.0 <= took < 1.0 and peak == 8000


def test_a_method_that_does_not_fit_says_why() -> None:
    row = seconds.failed(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 9 GiB"))
    assert row["seconds"] is None and row["peak_gib"] is None
    assert row["note"] == "OutOfMemoryError: CUDA out of memory."
