"""The memory hook sees what is allocated, however deep in an operator, and sees it go."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.memory import MemoryHook, attention_maps

HEADS, TOKENS, WIDTH = 2, 256, 8


def test_peak_rises_and_live_falls() -> None:
    with MemoryHook() as hook:
        kept = torch.zeros(1000)
        before = hook.live
        planted = torch.zeros(64, 1024)
        assert hook.live == before + planted.nbytes
        del planted
        assert hook.live == before == kept.nbytes
    assert hook.peak == 4 * (1000 + 64 * 1024)
    assert hook.largest == 64 * 1024 and (64, 1024) in hook.shapes


def test_weights_views_and_writing_in_place_are_not_counted() -> None:
    weight = torch.ones(100, 100)
    with MemoryHook() as hook:
        view = weight.t()[:10].reshape(-1, 5)
        view.mul_(2.0)
        assert hook.live == view.nbytes  # the one copy that reshape had to make
        weight.add_(1.0)
    assert hook.peak == view.nbytes and hook.largest == view.numel()


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize(
    ("backend", "maps"), [(SDPBackend.MATH, True), (SDPBackend.FLASH_ATTENTION, False)]
)
def test_maps_are_seen_inside_torchs_own_attention(
    inference: bool, backend: SDPBackend, maps: bool
) -> None:
    with torch.inference_mode(inference), sdpa_kernel(backend):
        q, k, v = (torch.randn(1, HEADS, TOKENS, WIDTH) for _ in range(3))
        with MemoryHook() as hook:
            torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert bool(attention_maps(hook.shapes, HEADS, TOKENS, TOKENS)) == maps
    assert (hook.peak >= 4 * HEADS * TOKENS * TOKENS) == maps


def test_results_stay_the_same() -> None:
    x = torch.randn(4, 8)
    layer = torch.nn.Linear(8, 8)
    with torch.inference_mode():
        plain = layer(x)
        with MemoryHook():
            assert torch.equal(layer(x), plain)


@pytest.mark.parametrize(
    ("shape", "keys", "expected"),
    [
        ((4, 2, 256, 256), 256, True),
        ((256, 256), 256, True),
        ((8 * 256, 256), 256, True),
        ((4, 1280, 256), 256, False),
        ((4, 256, 1280), 256, False),
        ((4, 256, 77), 256, False),
        ((4, 256, 77), 77, True),
        ((8 * 256, 77), 77, True),
        ((2, 77, 77), 77, False),
        ((2, 77, 1280), 77, False),
        ((), 256, False),
    ],
)
def test_which_shapes_are_maps(shape: tuple[int, ...], keys: int, expected: bool) -> None:
    assert bool(attention_maps([shape], 8, 256, keys)) == expected
