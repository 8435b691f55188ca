"""Plug-and-Play on real UNets: equal to its injection written by hand into the host's network."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unets
from pivot_edit.core.errors import PivotError
from pivot_edit.features import PlugAndPlay
from pivot_edit.host.tasks.controls import controlled
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.host.text.conditioning import stack_rows
from pivot_edit.inversion import Ddim
from test_controls import NEGATIVE, SIZE, SOURCE, TARGET, differ, ksampler, run


@pytest.fixture(scope="module")
def model() -> Any:
    return unets.build("SD15", shallow=True)


@pytest.fixture(scope="module")
def texts() -> list[Any]:
    return [unets.conditioning("SD15", seed) for seed in range(4)]


@pytest.fixture(scope="module")
def pivot(model: Any, texts: list[Any]) -> Any:
    with torch.inference_mode():
        return invert_latent(
            model, unets.latent(*SIZE), texts[SOURCE], 4, "reference", Ddim(), False
        )[0]


def by_hand(model: Any) -> tuple[Any, Any]:
    """The model with queries and keys of every second row replaced by its neighbour's, and the
    handle of a hook that does the same with the hidden state of output block 4."""
    from comfy.ldm.modules.attention import optimized_attention

    def order(rows: int) -> list[int]:
        return [row - row % 2 for row in range(rows)]

    def patch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: Any) -> torch.Tensor:
        chosen = order(len(q))
        return optimized_attention(q[chosen], k[chosen], v, extra["n_heads"])

    clone = model.clone()
    for number in range(4, 12):
        clone.set_model_attn1_replace(patch, "output", number)
    block = clone.model.diffusion_model.output_blocks[4][0]
    hook = block.out_layers[-1].register_forward_hook(
        lambda module, given, out: out[order(len(out))]
    )
    return clone, hook


def test_it_is_the_injection_written_by_hand(model, texts) -> None:
    rows = stack_rows(texts[SOURCE], texts[TARGET])
    ours = ksampler(controlled(model, PlugAndPlay(1.0, 1.0))[0], rows, texts[NEGATIVE], 2)
    noise = ksampler(controlled(model, PlugAndPlay(0.0, 0.0))[0], rows, texts[NEGATIVE], 2)
    patched, hook = by_hand(controlled(model, PlugAndPlay(0.0, 0.0))[0])
    try:
        expected = ksampler(patched, rows, texts[NEGATIVE], 2)
    finally:
        hook.remove()
    assert torch.equal(ours, expected)
    assert torch.equal(ours[0], noise[0]) and differ(ours[1], noise[1])


def test_features_alone_and_attention_alone_both_act(model, texts, pivot) -> None:
    plain = run(model, pivot, texts)[0]
    edits = [
        run(controlled(model, PlugAndPlay(*ends))[0], pivot, texts)[0]
        for ends in ((0.8, 0.0), (0.0, 0.5), (0.8, 0.5))
    ]
    assert all(differ(edit, plain) for edit in edits)
    assert differ(edits[0], edits[1]) and differ(edits[2], edits[0])


@pytest.mark.parametrize("correction", ["direct", "none", "negative_prompt"])
def test_fractions_of_nothing_are_no_control(model, texts, pivot, correction) -> None:
    """Oracle 35."""
    closed = controlled(model, PlugAndPlay(0.0, 0.0))[0]
    plain, controlled_run = (run(each, pivot, texts, correction) for each in (model, closed))
    assert torch.equal(plain[0], controlled_run[0]) and torch.equal(plain[1], controlled_run[1])


def test_the_source_prompt_under_full_injection_gives_the_source(model, texts, pivot) -> None:
    """Oracle 35, at a cfg that would drift: the target is the source row, bit for bit."""
    same = {"target": texts[SOURCE]}
    edited, back, *_ = run(
        controlled(model, PlugAndPlay(1.0, 1.0))[0], pivot, texts, "none", **same
    )
    assert torch.equal(edited, back)


def test_no_hook_outlives_a_run_or_an_error(model, texts, pivot, monkeypatch) -> None:
    import pivot_edit.features.plug_and_play as file

    def hooks() -> int:
        return sum(len(m._forward_hooks) for m in model.model.diffusion_model.modules())

    styled = controlled(model, PlugAndPlay())[0]
    run(styled, pivot, texts)
    assert hooks() == 0

    def broken(*args: Any) -> None:
        raise PivotError("a test", "its error", "Nothing.")

    monkeypatch.setattr(file.PlugAndPlay, "feature", broken)
    with pytest.raises(PivotError):
        run(styled, pivot, texts)
    assert hooks() == 0
