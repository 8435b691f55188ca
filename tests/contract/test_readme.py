"""README's tables are what the registries and the measured figures say."""

from __future__ import annotations

from bench import readme


def test_readme_is_up_to_date() -> None:
    text = readme.README.read_text()
    assert readme.filled(text) == text, "run python -m bench.readme"


def test_every_method_names_its_paper() -> None:
    table = readme.methods()
    for name in ("prompt_to_prompt", "direct", "negative_prompt", "ddim"):
        assert f"{name}`" in table
    assert table.count("https://arxiv.org/abs/") == table.count("\n") - 1
