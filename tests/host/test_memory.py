"""What control allocates beside plain sampling with the same rows: nothing to speak of, and no
attention map."""

from __future__ import annotations

from typing import Any

import pytest

import unets
from bench.memory import MemoryHook, attention_maps
from bench.speed import SameRows
from pivot_edit.attention import MasaCtrl, PromptToPrompt
from pivot_edit.attention.masactrl import decoder_layers
from pivot_edit.core.control import Controller
from pivot_edit.host.model.layers import layers_of
from pivot_edit.host.run.patching import add_controller
from pivot_edit.host.run.sampling import run_edit
from pivot_edit.host.tasks.editing import edit_guider
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.inversion import Ddim
from test_editing import pair

SIDE = 40  # 1600, 400 and 100 tokens: sizes that no other tensor has


@pytest.fixture(scope="module", params=["SD15", "SDXL"])
def model(request: pytest.FixtureRequest) -> Any:
    made = unets.build(request.param)
    made.kind = request.param
    return made


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own fused attention, as the host takes it on a GPU; its choice for a CPU cuts maps
    into slices."""
    from comfy.ldm.modules import attention

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    monkeypatch.setattr(attention, "optimized_attention_masked", attention.attention_pytorch)


def allocated(model: Any, controller: Controller) -> MemoryHook:
    source, target, negative = (unets.conditioning(model.kind, seed) for seed in range(3))
    pivot = invert_latent(model, unets.latent(SIDE, SIDE), source, 1, "reference", Ddim(), False)[0]
    guider = edit_guider(
        add_controller(model, controller), pivot, source, target, negative, 5.0, "direct"
    )
    with MemoryHook() as hook:
        run_edit(guider)
    return hook


@pytest.mark.parametrize("mode", ["replace", "refine", "masactrl"])
def test_control_costs_no_memory_and_builds_no_map(model, mode) -> None:
    """At most 5 % more at the peak than the same rows without control."""
    if mode == "masactrl":
        controller: Controller = MasaCtrl(decoder_layers(layers_of(model)), 0.0)
    else:
        controller = PromptToPrompt((pair().align(mode),), (0.0, 1.0), (0.0, 1.0), 1.0)
    plain, controlled = (
        allocated(model, SameRows("both" if mode == "masactrl" else "cond")),
        allocated(model, controller),
    )
    assert controlled.peak <= 1.05 * plain.peak
    for scale in {layer.scale for layer in layers_of(model)}:
        tokens = (SIDE // scale) ** 2
        assert not attention_maps(controlled.shapes, 1, tokens, tokens)
        assert not attention_maps(controlled.shapes, 1, tokens, 77)
