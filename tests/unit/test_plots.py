"""Plots: ticks are round numbers, and lines pass where their numbers say."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import ImageColor

from pivot_edit.show.plots import _COLOURS, Axis, line_plot, linear_axis, log_axis

LEFT, RIGHT, TOP, BOTTOM = 84, 696, 68, 344


def strokes(picture: torch.Tensor, index: int = 0) -> dict[int, float]:
    """Column -> mean row of the pixels of a series' own colour, inside of the frame."""
    colour = torch.tensor(ImageColor.getrgb(_COLOURS[index])) / 255.0
    near = ((picture[0] - colour).abs().amax(-1) < 0.12).float()
    near[: TOP - 5] = 0.0  # the legend
    rows = torch.arange(len(near)).float()[:, None]
    counts = near.sum(0)
    means = (near * rows).sum(0) / counts.clamp_min(1)
    return {column: float(means[column]) for column in range(LEFT, RIGHT + 1) if counts[column] > 0}


def plot(*series: list[float], log: bool = False) -> torch.Tensor:
    return line_plot(
        {f"series {i}": values for i, values in enumerate(series)}, "Title", "x", "y", log
    )


def test_it_is_a_white_picture_of_its_size() -> None:
    picture = line_plot({"a": [1.0, 2.0]}, "Title", "x", "y", size=(640, 360))
    assert picture.shape == (1, 360, 640, 3) and picture.dtype == torch.float32
    assert float(picture.min()) >= 0.0 and float(picture.max()) == 1.0
    assert float((picture == 1.0).all(-1).float().mean()) > 0.85


def test_a_straight_line_is_straight_and_goes_from_corner_to_corner() -> None:
    drawn = strokes(plot([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert min(drawn) <= LEFT + 1 and max(drawn) >= RIGHT - 1
    for column, row in drawn.items():
        expected = BOTTOM - (column - LEFT) / (RIGHT - LEFT) * (BOTTOM - TOP)
        assert row == pytest.approx(expected, abs=1.5)


def test_a_line_passes_its_points() -> None:
    values = [2.0, 8.0, 0.0, 5.0, 10.0]
    drawn = strokes(plot(values))
    for index, value in enumerate(values):
        column = round(LEFT + index / 4 * (RIGHT - LEFT))
        at = next(drawn[near] for near in (column, column - 1, column + 1) if near in drawn)
        assert at == pytest.approx(BOTTOM - value / 10.0 * (BOTTOM - TOP), abs=5.0)


def test_powers_of_ten_are_a_straight_line_on_a_logarithmic_axis() -> None:
    drawn = strokes(plot([10.0**-i for i in range(6)], log=True))
    for column, row in drawn.items():
        assert row == pytest.approx(
            TOP + (column - LEFT) / (RIGHT - LEFT) * (BOTTOM - TOP), abs=1.5
        )
    bent = strokes(plot([10.0**-i for i in range(6)]))
    middle = (LEFT + RIGHT) // 2
    assert bent[middle] > BOTTOM - 10 > drawn[middle] + 50


def test_series_have_colours_of_their_own_and_share_their_axes() -> None:
    picture = plot([1.0, 1.0], [3.0, 3.0], [5.0, 5.0])
    rows = [strokes(picture, index)[400] for index in range(3)]
    assert rows == sorted(rows, reverse=True)
    assert rows[1] == pytest.approx((rows[0] + rows[2]) / 2, abs=0.5)


def test_lines_on_one_another_are_both_seen() -> None:
    picture = plot([1.0, 3.0, 2.0], [1.0, 3.0, 2.0])
    assert len(strokes(picture, 0)) > 150 and len(strokes(picture, 1)) > 500


def test_the_legend_shows_every_series() -> None:
    bare, two = plot([1.0, 2.0]), plot([1.0, 2.0], [])
    assert not torch.equal(bare[:, 38:56], two[:, 38:56])
    colour = torch.tensor(ImageColor.getrgb(_COLOURS[1])) / 255.0
    assert bool(((two[0, 38:56] - colour).abs().amax(-1) < 0.1).any())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_what_no_axis_can_show_is_left_out(value: float) -> None:
    drawn = strokes(plot([1e-3, value, 1e-1], log=True))
    assert drawn == strokes(plot([1e-3, 1e-2, 1e-1], log=True))


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [math.nan]])
def test_a_series_with_nothing_to_show_leaves_the_frame(values: list[float]) -> None:
    assert not strokes(plot(values, log=True))


def test_one_value_is_a_dot() -> None:
    drawn = strokes(plot([3.0]))
    assert 3 <= len(drawn) <= 9
    assert sum(drawn) / len(drawn) == pytest.approx((LEFT + RIGHT) / 2, abs=1.0)


def test_a_constant_lies_in_the_middle() -> None:
    assert strokes(plot([2.0, 2.0, 2.0]))[300] == pytest.approx((TOP + BOTTOM) / 2, abs=1.0)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 6.0, (0, 1, 2, 3, 4, 5, 6)),
        (1.0, 8.0, (0, 2, 4, 6, 8)),
        (0.013, 0.052, (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)),
        (-3.0, 240.0, (-50, 0, 50, 100, 150, 200, 250)),
        (5.0, 5.0, (4.4, 4.6, 4.8, 5.0, 5.2, 5.4, 5.6)),
    ],
)
def test_ticks_are_round_and_enclose_the_values(
    low: float, high: float, ticks: tuple[float, ...]
) -> None:
    axis = linear_axis(low, high, 0.0, 100.0)
    assert axis.ticks == pytest.approx(ticks)
    assert (axis.low, axis.high) == (axis.ticks[0], axis.ticks[-1])
    assert axis.place(axis.low) == 0.0 and axis.place(axis.high) == pytest.approx(100.0)


def test_whole_numbers_are_ticked_from_the_first_to_the_last() -> None:
    assert linear_axis(1, 50, 0.0, 1.0, whole=True).ticks == (10, 20, 30, 40, 50)
    assert linear_axis(1, 4, 0.0, 1.0, whole=True).ticks == (1, 2, 3, 4)
    assert linear_axis(1, 1, 0.0, 1.0, whole=True).ticks == (1,)


@pytest.mark.parametrize(
    ("low", "high", "first", "last", "count"),
    [
        (2e-5, 7e-2, 1e-5, 1e-1, 5),
        (1e-3, 1e-1, 1e-3, 1e-1, 3),
        (3.0, 4.0, 1.0, 10.0, 2),
        (1e-12, 1.0, 1e-12, 1.0, 7),
    ],
)
def test_logarithmic_ticks_are_powers_of_ten(
    low: float, high: float, first: float, last: float, count: int
) -> None:
    axis = log_axis(low, high, 0.0, 1.0)
    assert (axis.low, axis.high) == (pytest.approx(first), pytest.approx(last))
    assert len(axis.ticks) == count and all(
        math.log10(tick) == pytest.approx(round(math.log10(tick))) for tick in axis.ticks
    )


def test_an_axis_places_its_values() -> None:
    assert Axis(0.0, 10.0, 100.0, 0.0, ()).place(2.5) == 75.0
    assert Axis(1e-4, 1.0, 0.0, 40.0, (), log=True).place(1e-3) == pytest.approx(10.0)
