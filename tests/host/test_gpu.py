"""Starts the tests of `tests/gpu` in a process of their own: a backend of torch stays where it was
registered, and torch cannot checkpoint beside it."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).absolute().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_mixes_devices_on_a_pretended_gpu(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-o", f"cache_dir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]
