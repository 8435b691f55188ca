"""Tables in README and in docs/ are what the registries and the measured figures say."""

from __future__ import annotations

import json
import re

import pytest

from bench import benchmarks, null_text, readme
from bench.cases import KINDS, TUNED_FILE
from bench.methods import Settings


@pytest.mark.parametrize("document", [readme, benchmarks, null_text])
def test_tables_are_up_to_date(document) -> None:
    text = document.DOCUMENT.read_text()
    assert document.filled(text) == text, f"run python -m {document.__name__}"


def test_every_picture_of_the_benchmarks_is_there() -> None:
    text = benchmarks.DOCUMENT.read_text()
    named = re.findall(r"\]\((images/[^)]+)\)", text)
    assert len(named) == 4 + len(benchmarks.SWEEPS)
    for name in named:
        assert (benchmarks.DOCUMENT.parent / name).stat().st_size > 10_000


def test_tuned_figures_are_of_the_settings_that_are_tuned() -> None:
    rows = [
        row
        for row in json.loads((readme.FIGURES / "quality.json").read_text())
        if "settings" in row
    ]
    assert {row["kind"] for row in rows} == set(json.loads(TUNED_FILE.read_text()))
    assert all(Settings(**row["settings"]) == KINDS[row["kind"]].tuned for row in rows)


def test_every_method_names_its_paper() -> None:
    table = readme.methods()
    for name in ("prompt_to_prompt", "direct", "negative_prompt", "ddim"):
        assert f"{name}`" in table
    assert table.count("https://arxiv.org/abs/") == table.count("\n") - 1
