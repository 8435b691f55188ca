"""Layers by name, and the scale at which word maps are read."""

from __future__ import annotations

import pytest
from calls import SD1, SDXL
from hypothesis import given
from hypothesis import strategies as st
from reference import few

from pivot_edit.attention.masactrl import decoder_layers
from pivot_edit.core.errors import PivotError
from pivot_edit.core.layers import Layer, map_scale, select_layers


def named(layers: frozenset[Layer]) -> list[str]:
    """Names with depths, in order."""
    return sorted(f"{layer.name}.{layer.depth}" for layer in layers)


def test_the_models_of_these_tests_have_as_many_layers_as_the_real_ones() -> None:
    assert len(set(SD1)) == len(SD1) == 16 and len(set(SDXL)) == len(SDXL) == 70


# choosing


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("mid", ["mid.0.0.0"]),
        ("down.1.0", ["down.1.0.0"]),
        ("down.1.0.0", ["down.1.0.0"]),
        ("down.1.0, up.2", ["down.1.0.0", "up.2.0.0", "up.2.1.0", "up.2.2.0"]),
        ("up.2-3.1", ["up.2.1.0", "up.3.1.0"]),
        ("up.2.1-2", ["up.2.1.0", "up.2.2.0"]),
        ("up.1-3.2-9.0-5", ["up.1.2.0", "up.2.2.0", "up.3.2.0"]),
        ("down.0-0", ["down.0.0.0", "down.0.1.0"]),
    ],
)
def test_an_item_is_a_stage_then_levels_numbers_and_depths(text: str, chosen: list[str]) -> None:
    assert named(select_layers(text, SD1)) == chosen


def test_a_stage_alone_is_all_of_it() -> None:
    for stage in ("down", "mid", "up"):
        assert select_layers(stage, SDXL) == {layer for layer in SDXL if layer.stage == stage}


def test_depths_choose_blocks_within_an_attention() -> None:
    assert named(select_layers("up.0.2.0-4", SDXL)) == [f"up.0.2.{depth}" for depth in range(5)]
    assert named(select_layers("mid.0.0.9", SDXL)) == ["mid.0.0.9"]
    assert named(select_layers("down.1-2.1.1", SDXL)) == ["down.1.1.1", "down.2.1.1"]


@pytest.mark.parametrize("text", ["all", "ALL", " all ", "none, all", "up, all"])
def test_all_is_every_layer(text: str) -> None:
    assert select_layers(text, SDXL) == set(SDXL)


@pytest.mark.parametrize("text", ["none", "None", "", "  ", " ,; \n", "none none"])
def test_none_and_nothing_are_no_layer(text: str) -> None:
    assert select_layers(text, SDXL) == frozenset()


@pytest.mark.parametrize(
    "text", ["up.1,mid", "UP.1 Mid", "mid;up.1", " up.1\n\tmid ,", "up.1, up.1.0, mid, none"]
)
def test_case_order_repeats_and_separators_do_not_matter(text: str) -> None:
    assert named(select_layers(text, SD1)) == ["mid.0.0.0", "up.1.0.0", "up.1.1.0", "up.1.2.0"]


@few
@given(st.sets(st.sampled_from(SDXL)))
def test_any_choice_can_be_written(wanted: set[Layer]) -> None:
    text = ", ".join(f"{layer.name}.{layer.depth}" for layer in wanted)
    assert select_layers(text, SDXL) == wanted


@pytest.mark.parametrize(
    "item",
    [
        "up2",
        "up.",
        "up.1-",
        "up.-1",
        "up.1.0.0.0",
        "input.1",
        "up.x",
        "1",
        "al",
        "up.1+2",
        "up." + "9" * 5000,
    ],
)
def test_an_item_that_cannot_be_read_is_an_error_that_names_the_layers(item: str) -> None:
    with pytest.raises(PivotError) as caught:
        select_layers(f"mid, {item}", SDXL, "MasaCtrl")
    assert caught.value.got == repr(item) and "such as up.2-3" in caught.value.expected
    assert str(caught.value).endswith(
        "in MasaCtrl. It has: down.1.0, down.1.1, down.2.0, down.2.1, mid.0.0, up.0.0, up.0.1, "
        "up.0.2, up.1.0, "
        "up.1.1, up.1.2; also all, none."
    )


@pytest.mark.parametrize("item", ["up.0", "mid.1", "down.3", "up.1.3", "up.1.0.1", "up.3-2"])
def test_an_item_that_names_no_layer_of_this_model_is_an_error_that_names_those_there_are(
    item: str,
) -> None:
    with pytest.raises(
        PivotError, match=r"layers that this model has.*It has: down\.0\.0, .*mid\.0\.0, up\.1\.0"
    ) as e:
        select_layers(f"{item}, mid", SD1)
    assert e.value.got == repr(item)


# the layers of MasaCtrl


def test_masactrl_acts_in_the_layers_of_its_paper() -> None:
    """Layers 10 to 15 of SD1.x's 16 in the order in which they run, and layers 64 to 69 of SDXL's
    70."""
    assert decoder_layers(SD1) == set(SD1[10:]) == select_layers("up.2-3", SD1)
    assert decoder_layers(SDXL) == set(SDXL[64:]) == select_layers("up.1", SDXL)


# the scale of word maps


@pytest.mark.parametrize(
    ("latent", "scale"),
    [
        ((64, 64), 4),
        ((128, 128), 4),
        ((64, 96), 4),
        ((96, 64), 4),
        ((48, 64), 4),
        ((47, 64), 2),
        ((64, 47), 2),
        ((32, 32), 2),
        ((24, 200), 2),
        ((23, 200), 1),
        ((16, 16), 1),
        ((8, 8), 1),
    ],
)
def test_maps_are_read_at_a_quarter_or_finer_where_that_is_too_coarse(
    latent: tuple[int, int], scale: int
) -> None:
    assert map_scale(latent, (1, 2, 4, 8)) == map_scale(latent, {8, 4, 2, 1}) == scale


@pytest.mark.parametrize(
    ("latent", "scales", "scale"),
    [
        ((128, 128), (2, 4), 4),
        ((32, 32), (2, 4), 2),
        ((16, 16), (2, 4), 2),
        ((64, 64), (1, 2, 8), 2),
        ((64, 64), (8, 16), 8),
        ((32, 32), (1, 4), 1),
        ((8, 8), (4, 8), 4),
    ],
)
def test_a_scale_that_the_model_lacks_falls_back_to_one_that_it_has(
    latent: tuple[int, int], scales: tuple[int, ...], scale: int
) -> None:
    assert map_scale(latent, scales) == scale
