"""What DDIM Inversion's menu offers, and what becomes of its entry `auto`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unets
from pivot_edit.inversion import INVERTERS
from pivot_edit.nodes.inversion import PivotDDIMInversion

SOURCE, NEGATIVE = (unets.conditioning("SD15", seed) for seed in range(2))


@pytest.fixture(scope="module")
def model() -> Any:
    return unets.build("SD15")


def inverted(model: Any, cfg: float, **method: str) -> Any:
    """Trajectory, psnr and report of the node after four steps."""
    texts = {"source": SOURCE, "negative": NEGATIVE}
    options = {"evaluation": "reference", "check_reconstruction": False, "cfg": cfg, **method}
    return PivotDDIMInversion.execute(
        model, unets.latent(), steps=4, levels="reference", **texts, **options
    ).args


def test_the_menu_has_every_method_and_auto_last_and_begins_with_ddim() -> None:
    (menu,) = [each for each in PivotDDIMInversion.define_schema().inputs if each.id == "method"]
    assert menu.options == [*INVERTERS, "auto"] and menu.default == "ddim"
    assert all(f"{name}: " in menu.tooltip for name in menu.options)


@pytest.mark.parametrize(("cfg", "name"), [(1.0, "ddim"), (3.0, "uni")])
def test_auto_is_the_method_that_it_resolves_to(model: Any, cfg: float, name: str) -> None:
    trajectory, _, report = inverted(model, cfg, method="auto")
    assert trajectory.method == name and f"4 steps, {name}, latent" in report
    assert torch.equal(trajectory.latents, inverted(model, cfg, method=name)[0].latents)


def test_a_saved_graph_without_the_choice_runs_ddim_at_every_cfg(model: Any) -> None:
    assert [inverted(model, cfg)[0].method for cfg in (1.0, 3.0)] == ["ddim", "ddim"]
