"""Line plots as pictures, with nothing but Pillow, which comes with ComfyUI."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

_COLOURS = ("#0969da", "#d1600a", "#1a7f37", "#8250df", "#bf3989")
_INK, _DIM, _GRID = "#1f2328", "#57606a", "#e4e7eb"
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 68, 56
_STROKE = 2.2
_FINE = 3
"""Drawn so many times larger and then made smaller, which smooths lines and text."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis, with values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear_axis(low: float, high: float, start: float, end: float, whole: bool = False) -> Axis:
    """An axis whose ticks are round numbers (1, 2 or 5 of a power of ten).

    It ends at ticks or, of `whole` numbers, at its first and last value.
    """
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    # a hair less, because 10 times a power of ten may round to just below its neighbour
    step = next(
        factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9)
    )
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [step * index for index in range(first, last + 1)]
    if whole:
        return Axis(low, high, start, end, tuple(tick for tick in ticks if low <= tick <= high))
    return Axis(ticks[0], ticks[-1], start, end, tuple(ticks))


def log_axis(low: float, high: float, start: float, end: float) -> Axis:
    """An axis from one power of ten to another with at most eight ticks."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    stride = -(-(last - first) // 7)
    ticks = tuple(10.0**power for power in range(first, last + 1, stride))
    return Axis(10.0**first, 10.0**last, start, end, ticks, log=True)


def line_plot(
    series: Mapping[str, Sequence[float]],
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    size: tuple[int, int] = (720, 400),
) -> torch.Tensor:
    """IMAGE [1, H, W, 3] of labelled series, whose values belong to 1, 2, 3, ...

    `size` is (width, height). With `log` the upright axis is logarithmic. What no axis can show
    (NaN, infinity, 0 of a logarithm) is left out.
    """
    width, height = size
    points = {label: _drawable(values, log) for label, values in series.items()}
    values = [y for drawn in points.values() for _, y in drawn] or [1.0]
    x_axis = linear_axis(1, max(1, *map(len, series.values())), _LEFT, width - _RIGHT, whole=True)
    y_axis = (log_axis if log else linear_axis)(min(values), max(values), height - _BOTTOM, _TOP)
    canvas = _Canvas(width, height)
    canvas.frame(x_axis, y_axis)
    for below, colour, drawn in zip(
        reversed(range(len(points))), _cycled(len(points)), points.values(), strict=True
    ):
        # thinner than those below it, so that lines on one another are all seen
        canvas.line(
            [(x_axis.place(x), y_axis.place(y)) for x, y in drawn], colour, _STROKE + 2.0 * below
        )
    canvas.text(((_LEFT + width - _RIGHT) / 2, 20), title, 17, _INK)
    canvas.text(((_LEFT + width - _RIGHT) / 2, height - 16), x_label, 14, _DIM)
    canvas.upright((18, (_TOP + height - _BOTTOM) / 2), y_label, 14)
    canvas.legend(list(points))
    return canvas.image()


def _drawable(values: Sequence[float], log: bool) -> list[tuple[int, float]]:
    """The points of a series that an axis can show."""
    return [(i, y) for i, y in enumerate(values, 1) if math.isfinite(y) and (y > 0.0 or not log)]


def _cycled(count: int) -> list[str]:
    """A colour for each of some series."""
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


class _Canvas:
    """A white sheet in pixels of the finished picture, drawn finer."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.sheet = Image.new("RGB", (width * _FINE, height * _FINE), "white")
        self.pen = ImageDraw.Draw(self.sheet)

    def frame(self, x_axis: Axis, y_axis: Axis) -> None:
        """Grid, ticks with their numbers, and the two axes."""
        left, right, bottom, top = x_axis.start, x_axis.end, y_axis.start, y_axis.end
        for tick in y_axis.ticks:
            y = y_axis.place(tick)
            self.line([(left, y), (right, y)], _GRID, 1)
            self.text((left - 8, y), _number(tick), 13, _DIM, "rm")
        for tick in x_axis.ticks:
            x = x_axis.place(tick)
            self.line([(x, bottom), (x, bottom + 5)], _DIM, 1)
            self.text((x, bottom + 16), _number(tick), 13, _DIM)
        self.line([(left, top), (left, bottom)], _DIM, 1)
        self.line([(left, bottom), (right, bottom)], _DIM, 1)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        """A line through points, or a dot where there is only one."""
        fine = [(x * _FINE, y * _FINE) for x, y in points]
        if len(fine) > 1:
            self.pen.line(fine, fill=colour, width=round(width * _FINE), joint="curve")
        elif fine:
            (x, y), dot = fine[0], 3 * _FINE
            self.pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=colour)

    def text(
        self, at: tuple[float, float], text: str, size: int, colour: str, anchor: str = "mm"
    ) -> None:
        """Text around a point."""
        font = ImageFont.load_default(size=size * _FINE)
        self.pen.text((at[0] * _FINE, at[1] * _FINE), text, fill=colour, font=font, anchor=anchor)

    def upright(self, at: tuple[float, float], text: str, size: int) -> None:
        """Text that reads upwards, around a point."""
        font = ImageFont.load_default(size=size * _FINE)
        box = (round(font.getlength(text)) + 2 * _FINE, 2 * size * _FINE)
        label = Image.new("L", box, 0)
        ImageDraw.Draw(label).text((box[0] / 2, box[1] / 2), text, fill=255, font=font, anchor="mm")
        turned = label.rotate(90, expand=True)
        corner = (round(at[0] * _FINE - turned.width / 2), round(at[1] * _FINE - turned.height / 2))
        self.sheet.paste(Image.new("RGB", turned.size, _DIM), corner, turned)

    def legend(self, labels: Sequence[str]) -> None:
        """A stroke in its colour and a name for each series, in a row below the title."""
        font = ImageFont.load_default(size=13 * _FINE)
        widths = [34 + font.getlength(label) / _FINE + 22 for label in labels]
        x = (_LEFT + self.width - _RIGHT - sum(widths) + 22) / 2
        for label, colour, width in zip(labels, _cycled(len(labels)), widths, strict=True):
            self.line([(x, 47), (x + 26, 47)], colour, _STROKE)
            self.text((x + 34, 47), label, 13, _INK, "lm")
            x += width

    def image(self) -> torch.Tensor:
        """The picture, IMAGE [1, H, W, 3]."""
        small = self.sheet.resize((self.width, self.height), Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(small).astype(np.float32) / 255.0)[None]


def _number(value: float) -> str:
    return (
        f"{value:.4g}"
        if 1e-3 <= abs(value) < 1e5 or value == 0.0
        else f"{value:.0e}".replace("e-0", "e-")
    )
