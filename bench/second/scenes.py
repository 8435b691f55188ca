"""The second world: a sign on a wall, drawn from a seed, for judging what was not tuned for it.

It shares no word of content with the toy world (toy/scenes.py): other shapes, colors, places and
backgrounds, flat and textured; sizes are named; captions are built otherwise. Methods' defaults
must find the object here, too.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np

SIZE = 128
SHAPES = ("cross", "ring", "heart", "diamond", "arrow")
COLORS = ("orange", "teal", "black", "brown", "lime", "violet")
SIZES = ("small", "large")
HEIGHTS = ("top", "middle", "bottom")
BACKGROUNDS = ("paper", "slate", "bricks", "planks", "tiles", "gravel")
WORDS = {
    "size": SIZES,
    "color": COLORS,
    "shape": SHAPES,
    "height": HEIGHTS,
    "background": BACKGROUNDS,
}
PALETTE = {
    "orange": (0.95, 0.47, 0.08),
    "teal": (0.05, 0.55, 0.52),
    "black": (0.06, 0.06, 0.08),
    "brown": (0.42, 0.24, 0.11),
    "lime": (0.66, 0.90, 0.15),
    "violet": (0.56, 0.28, 0.86),
}
CENTER_Y = {"top": 38.0, "middle": 64.0, "bottom": 90.0}
HALF_WIDTH = {"small": (22.0, 25.0), "large": (30.0, 34.0)}

_ROW, _COLUMN = (grid.astype(np.float32) + 0.5 for grid in np.mgrid[0:SIZE, 0:SIZE])


def _rgb(*value: float) -> np.ndarray:
    return np.asarray(value, dtype=np.float32)


def _blend(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return below + (above - below) * alpha[..., None]


def _flat(*value: float) -> np.ndarray:
    return np.broadcast_to(_rgb(*value), (SIZE, SIZE, 3)).copy()


# -- backgrounds: each a function of a phase in [0, 1) and a period in pixels


def _paper(phase: float, period: float) -> np.ndarray:
    return _flat(0.93, 0.90 - 0.04 * phase, 0.82 - 0.06 * phase)


def _slate(phase: float, period: float) -> np.ndarray:
    return _flat(0.30, 0.34 + 0.03 * phase, 0.40 + 0.05 * phase)


def _bricks(phase: float, period: float) -> np.ndarray:
    course = np.floor((_ROW + period * phase) / period)
    along = (_COLUMN + period * (phase + course % 2.0)) % (2.0 * period)
    across = (_ROW + period * phase) % period
    joint = np.minimum(np.minimum(along, 2.0 * period - along), np.minimum(across, period - across))
    clay = _flat(0.66, 0.27, 0.20)
    return _blend(_flat(0.80, 0.76, 0.72), clay, np.clip(joint - 0.8, 0.0, 1.0))


def _planks(phase: float, period: float) -> np.ndarray:
    grain = 0.5 + 0.5 * np.sin(
        2.0 * np.pi * (_ROW / 5.0 + 0.4 * np.sin(_COLUMN / 17.0 + 6 * phase))
    )
    board = (_ROW + period * phase) % (1.6 * period)
    wood = _blend(_flat(0.76, 0.58, 0.36), _flat(0.66, 0.47, 0.27), grain)
    return _blend(_flat(0.28, 0.19, 0.11), wood, np.clip(board - 0.8, 0.0, 1.0))


def _tiles(phase: float, period: float) -> np.ndarray:
    u, v = (_COLUMN / period + phase) % 2.0, (_ROW / period + 2.0 * phase) % 2.0
    soft = np.clip((np.minimum(np.abs(u - 1.0), 1.0 - np.abs(u - 1.0))) * period, 0.0, 1.0)
    dark = ((u < 1.0) ^ (v < 1.0)).astype(np.float32)
    return _blend(_flat(0.86, 0.90, 0.94), _flat(0.48, 0.62, 0.78), dark * soft)


def _gravel(phase: float, period: float) -> np.ndarray:
    """Bumps from a few plane waves of unlike directions."""
    height = np.zeros_like(_ROW)
    for index in range(5):
        angle = 1.1 + 2.4 * index + phase
        wave = np.cos(angle) * _COLUMN + np.sin(angle) * _ROW
        height += np.sin(2.0 * np.pi * wave / (0.55 * period + index) + 7.0 * phase * (index + 1))
    light = np.clip(0.5 + 0.17 * height, 0.0, 1.0)
    return _blend(_flat(0.36, 0.33, 0.31), _flat(0.70, 0.68, 0.64), light)


_BACKGROUND = {
    "paper": _paper,
    "slate": _slate,
    "bricks": _bricks,
    "planks": _planks,
    "tiles": _tiles,
    "gravel": _gravel,
}


# -- shapes: signed distances in pixels, negative inside, u to the right and v downwards


def _cross(u: np.ndarray, v: np.ndarray, size: float) -> np.ndarray:
    wide = np.maximum(np.abs(u) - size, np.abs(v) - 0.44 * size)
    high = np.maximum(np.abs(v) - size, np.abs(u) - 0.44 * size)
    return np.minimum(wide, high)


def _ring(u: np.ndarray, v: np.ndarray, size: float) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.66 * size) - 0.36 * size


def _heart(u: np.ndarray, v: np.ndarray, size: float) -> np.ndarray:
    lobes = np.hypot(np.abs(u) - 0.46 * size, v + 0.34 * size) - 0.56 * size
    point = np.maximum((np.abs(u) + v) * 0.7071 - 0.62 * size, -v - 0.2 * size)
    return np.minimum(lobes, point)


def _diamond(u: np.ndarray, v: np.ndarray, size: float) -> np.ndarray:
    return (np.abs(u) / 0.85 + np.abs(v)) * 0.65 - 0.72 * size


def _arrow(u: np.ndarray, v: np.ndarray, size: float) -> np.ndarray:
    head = np.maximum((u + np.abs(v)) * 0.7071 - 0.71 * size, -u)
    shaft = np.maximum(np.abs(v) - 0.44 * size, np.maximum(u - 0.1 * size, -u - size))
    return np.minimum(head, shaft)


_SHAPE = {"cross": _cross, "ring": _ring, "heart": _heart, "diamond": _diamond, "arrow": _arrow}


@dataclasses.dataclass(frozen=True)
class SecondScene:
    """One scene. Words in `WORDS`; the numbers are what no word names and every edit must keep."""

    size: str
    color: str
    shape: str
    height: str
    background: str
    half_width: float = 0.5
    """Between the least and the greatest of its size, from 0 to 1."""
    x: float = 64.0
    dy: float = 0.0
    angle: float = 0.0
    phase: float = 0.0
    period: float = 18.0
    light: float = 1.0

    @classmethod
    def sample(cls, seed: int) -> SecondScene:
        """The scene of a seed; every value is drawn uniformly."""
        draw = random.Random(f"second scene {seed}")
        words = {kind: draw.choice(values) for kind, values in WORDS.items()}
        return cls(
            **words,
            half_width=draw.random(),
            x=draw.uniform(44.0, 84.0),
            dy=draw.uniform(-5.0, 5.0),
            angle=draw.uniform(-0.25, 0.25),
            phase=draw.random(),
            period=draw.uniform(15.0, 21.0),
            light=draw.uniform(0.94, 1.03),
        )

    @property
    def caption(self) -> str:
        """For example "bricks with a large teal heart near the top"."""
        return (
            f"{self.background} with a {self.size} {self.color} {self.shape} near the {self.height}"
        )

    def change(self, **words: str) -> SecondScene:
        """The true edit: the same scene with the given words changed and every number kept."""
        for kind, word in words.items():
            if word not in WORDS.get(kind, ()):
                raise ValueError(
                    f"expected {kind} to be one of {WORDS.get(kind, tuple(WORDS))}, got {word!r}"
                )
        return dataclasses.replace(self, **words)

    def _distance(self) -> np.ndarray:
        x, y = _COLUMN - self.x, _ROW - (CENTER_Y[self.height] + self.dy)
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        least, greatest = HALF_WIDTH[self.size]
        size = least + self.half_width * (greatest - least)
        return _SHAPE[self.shape](cos * x + sin * y, cos * y - sin * x, size)

    def object_mask(self) -> np.ndarray:
        """Coverage of the object, float32 [SIZE, SIZE] in [0, 1]."""
        return np.clip(0.5 - self._distance(), 0.0, 1.0).astype(np.float32)

    def render(self) -> np.ndarray:
        """The picture: float32 [SIZE, SIZE, 3] in [0, 1]."""
        picture = _BACKGROUND[self.background](self.phase, self.period)
        distance = self._distance()
        color = _rgb(*PALETTE[self.color])
        body = _blend(_flat(*color), _flat(*(0.5 + 0.5 * color)), np.clip(distance / 2 + 2, 0, 1))
        picture = _blend(picture, body, np.clip(0.5 - distance, 0.0, 1.0))
        return np.clip(picture * self.light, 0.0, 1.0).astype(np.float32)
