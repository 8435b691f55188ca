"""Texts that go on behind their prompts (ConditioningConcat, BREAK, long prompts beside short
ones), with every control on a real UNet: what is appended is no repeat of the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unets
from pivot_edit.attention.masactrl import AutoMask
from pivot_edit.host.tasks.editing import edit
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.inversion import Ddim
from test_controls import blend, masa, recorded
from test_editing import p2p

CFG, STEPS = 5.0, 4
WORDS = {("source", 0): (77, ((4,),)), ("target", 0): (77, ((4,),))}


@pytest.fixture(scope="module")
def model() -> Any:
    return unets.build("SD15", shallow=True)


def text(*seeds: int) -> Any:
    """A conditioning, with others appended to it by the host's own node."""
    import nodes

    whole = unets.conditioning("SD15", seeds[0])
    for seed in seeds[1:]:
        (whole,) = nodes.ConditioningConcat().concat(whole, unets.conditioning("SD15", seed))
    return whole


def run(
    model: Any, controlled: Any, source: Any, target: Any, negative: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """(edited, reconstructed)."""
    with torch.inference_mode():
        trajectory = invert_latent(
            model, unets.latent(16, 24), source, STEPS, "reference", Ddim(), False
        )[0]
        edited, back, *_ = edit(controlled, trajectory, source, target, negative, CFG, "none")
    return edited["samples"], back["samples"]


CONTROLS = {
    "replace": lambda model: p2p(model, -1, "replace", cross=(0, 1)),
    "refine": lambda model: p2p(model, -1, "refine", cross=(0, 1)),
    "blend": blend,
    "masks of words": lambda model: masa(model, start=0.0, auto=AutoMask(WORDS, (1, 2, 4), 0.5)),
}


@pytest.mark.parametrize("name", ["replace", "refine", "blend"])
@pytest.mark.parametrize("negative", [(9,), (9, 8)])
def test_with_equal_texts_the_target_is_the_source(model, name, negative) -> None:
    seeds = (0, 5)
    edited, back = run(model, CONTROLS[name](model), text(*seeds), text(*seeds), text(*negative))
    assert float((edited - back).abs().max()) == 0.0


@pytest.mark.parametrize("mode", ["replace", "refine"])
def test_what_is_appended_to_the_target_changes_the_edit_as_it_does_without_control(
    model, mode
) -> None:
    """As much as in plain sampling, where it is the only difference."""
    source, negative = text(0, 5), text(9)
    effects = []
    for one in (model, p2p(model, -1, mode, cross=(0.0, 0.5), self_=(0, 0))):
        same, other = (run(model, one, source, text(0, last), negative)[0] for last in (5, 6))
        effects.append(float((same - other).square().mean().sqrt()))
    assert effects[1] > 0.2 * effects[0]


def test_a_text_appended_to_the_target_alone_is_read(model) -> None:
    """Nothing of the source stands there: it is new, as a new word of refine is."""
    controlled = p2p(model, -1, "refine", cross=(0, 1), self_=(0, 0))
    plain, more = (
        run(model, controlled, text(0), text(*seeds), text(9)) for seeds in ((0,), (0, 6))
    )
    assert torch.equal(plain[0], plain[1])
    assert float((more[0] - plain[0]).abs().max()) > 1e-2


def test_repeats_record_the_prompts_columns_and_appended_text_its_own(model) -> None:
    for seeds, columns in (((0,), 77), ((0, 5), 154)):
        watched, recorder = recorded(model)
        edited, back = run(model, watched, text(*seeds), text(*seeds), text(9, 8))
        assert recorder.results.get(edited[0]).shape[-1] == columns
        assert recorder.results.get(back[0]).shape[-1] == columns


@pytest.mark.parametrize("name", CONTROLS)
def test_a_short_prompt_beside_a_long_one_is_edited_as_alone(model, name) -> None:
    """The host repeats it to the negative's length, which changes rounding only."""
    controlled = CONTROLS[name](model)
    short, long = (
        run(model, controlled, text(0), text(1), text(*seeds))[0] for seeds in ((9,), (9, 9))
    )
    torch.testing.assert_close(short, long, rtol=1e-3, atol=1e-3 * float(short.abs().max()))
