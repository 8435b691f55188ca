"""Folding and running fewer rows change nothing: the edit is the one that written-out maps on four
rows give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import prompt

import materialised
import unets
from pivot_edit.attention import PromptToPrompt
from pivot_edit.core.words import Alignment, PromptPair
from pivot_edit.host.run.guider import EditGuider
from pivot_edit.host.run.patching import add_controller
from pivot_edit.host.run.sampling import run_edit
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.inversion import Ddim

CFG = 5.0
WORDS = PromptPair(prompt("a red cat on a mat"), prompt("a red tiger-3 on a mat"))


@pytest.fixture(scope="module", params=["SD15", "SDXL"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return unets.build(kind)


@pytest.fixture(scope="module")
def texts(kind: str) -> dict[str, Any]:
    return {
        name: unets.conditioning(kind, seed)
        for seed, name in enumerate(("source", "target", "negative"))
    }


@pytest.fixture(scope="module")
def trajectory(model: Any, texts: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return invert_latent(
            model, unets.latent(16, 24), texts["source"], 5, "reference", Ddim(), False
        )[0]


def folded(
    model: Any,
    trajectory: Any,
    texts: dict[str, Any],
    correction: str,
    alignment: Alignment,
    economy: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edited and reconstructed samples of the pack's own way, cross .8, self .4."""
    patched = add_controller(model, PromptToPrompt((alignment,)))
    guider = EditGuider(patched, trajectory, **texts, cfg=CFG, correction=correction)
    guider.economy = economy
    result = run_edit(guider)
    return result.edited, result.reconstructed


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("economy", [True, False])
@pytest.mark.parametrize("correction", ["none", "direct"])
@pytest.mark.parametrize("mode", ["replace", "refine"])
def test_the_edit_is_that_of_written_out_maps(
    model, trajectory, texts, mode, correction, economy
) -> None:
    alignment = WORDS.align(mode)
    change = materialised.MapEdit(alignment.mapper, alignment.target_share, mode == "refine")
    pinned = correction == "direct"
    expected, source = materialised.edit(
        model, trajectory, **texts, cfg=CFG, pinned=pinned, change=change
    )
    edited, back = folded(model, trajectory, texts, correction, alignment, economy)
    assert close(edited, expected) and close(back, source)


@pytest.mark.parametrize("planted", [{"cross": 0.0}, {"self_": 0.0}, {"mapper": torch.eye(77)}])
def test_another_edit_would_be_noticed(model, trajectory, texts, planted) -> None:
    alignment = WORDS.align("replace")
    change = materialised.MapEdit(
        **{"mapper": alignment.mapper, "own": alignment.target_share, **planted}
    )
    other = materialised.edit(model, trajectory, **texts, cfg=CFG, pinned=True, change=change)[0]
    assert not close(folded(model, trajectory, texts, "direct", alignment, True)[0], other)
