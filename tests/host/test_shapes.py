"""Rows, sizes and precisions on real UNets: nothing assumes squares, one size, one row order or
fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unets
from pivot_edit.attention import PromptToPrompt
from pivot_edit.core.control import Row
from pivot_edit.host.run.patching import add_controller
from pivot_edit.host.run.runs import RUN, Run, controllers_of
from pivot_edit.host.tasks.editing import edit
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.inversion import Ddim
from test_editing import pair

SIZES = {
    "SD15": [(64, 96), (13, 19)],
    "SD20": [(48, 48), (9, 17)],
    "SDXL": [(52, 76), (15, 11)],
}


def p2p(model: Any) -> Any:
    return add_controller(model, PromptToPrompt((pair().align("replace"),), (0, 1), (0, 1)))


def one_step(
    kind: str, height: int, width: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    model = unets.build(kind, dtype=dtype, shallow=True)  # sizes and rows know no depth
    source, target, negative = (unets.conditioning(kind, seed) for seed in range(3))
    latent = unets.latent(height, width)
    pivot = invert_latent(model, latent, source, 1, "reference", Ddim(), False)[0]
    edited, back, *_ = edit(p2p(model), pivot, source, target, negative, 5.0, "direct")
    assert edited["samples"].shape == latent["samples"].shape
    torch.testing.assert_close(back["samples"], latent["samples"], rtol=1e-5, atol=1e-5)
    return edited["samples"]


@pytest.mark.parametrize(
    ("kind", "height", "width"), [(kind, *size) for kind in SIZES for size in SIZES[kind]]
)
def test_every_size_edits(kind: str, height: int, width: int) -> None:
    assert torch.isfinite(one_step(kind, height, width)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_edit(dtype: torch.dtype) -> None:
    assert torch.isfinite(one_step("SD15", 16, 16, dtype)).all()


def test_rows_are_found_through_cond_or_uncond() -> None:
    """The same UNet call with its chunks the other way round gives the same rows the other way
    round, bitwise."""
    model = p2p(unets.build("SD15"))
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    texts = {index: torch.randn(2, 77, 64, generator=generator) for index in (0, 1)}
    levels = torch.tensor([3.0, 1.0, 0.0])
    rows = (Row("source", True), Row("target", True, 0))
    options = {
        **model.model_options["transformer_options"],
        RUN: Run(controllers_of(model.model_options), rows, (16, 16), levels),
    }
    wrappers = {kind: dict(keys) for kind, keys in model.wrappers.items()}

    def run(order: list[int]) -> dict[int, torch.Tensor]:
        sigma = torch.full((4,), 3.0)
        call = {
            **options,
            "cond_or_uncond": order,
            "sigmas": sigma,
            "sample_sigmas": levels,
            "wrappers": wrappers,
        }
        context = torch.cat([texts[index] for index in order])
        out = model.model.apply_model(
            torch.cat([x, x]), sigma, c_crossattn=context, transformer_options=call
        )
        return dict(zip(order, out.chunk(2), strict=True))

    usual, turned = run([1, 0]), run([0, 1])
    assert torch.equal(usual[0], turned[0]) and torch.equal(usual[1], turned[1])
    assert not torch.allclose(usual[0][1], usual[1][1], atol=1e-4)
