"""Captioned scenes whose true edit is known: one object standing in a landscape, drawn from a seed.

A `Scene` is a handful of words (pattern, color, shape, position, background) and a few numbers that
no word names (size, angle, phases, light). The picture is a smooth function of both, anti-aliased
from signed distances, so changing one word redraws *the same scene* with everything else identical:
the true edit that real photographs never have.
"""

from __future__ import annotations

import dataclasses
import random
import re

import numpy as np

SIZE = 128
SHAPES = ("circle", "square", "triangle", "star")
COLORS = ("red", "yellow", "green", "cyan", "blue", "purple", "pink", "white")
PATTERNS = ("plain", "striped", "dotted")
POSITIONS = ("left", "center", "right")
BACKGROUNDS = ("meadow", "desert", "beach", "lake", "sunset", "glacier")
WORDS = {
    "pattern": PATTERNS,
    "color": COLORS,
    "shape": SHAPES,
    "position": POSITIONS,
    "background": BACKGROUNDS,
}

EXAMPLE = (
    "a striped red star at the left of a meadow",
    10_000_001,
)  # the shipped workflow's picture, held out

PALETTE = {
    "red": (0.86, 0.13, 0.15),
    "yellow": (0.98, 0.83, 0.12),
    "green": (0.07, 0.52, 0.20),
    "cyan": (0.12, 0.80, 0.86),
    "blue": (0.13, 0.24, 0.80),
    "purple": (0.50, 0.14, 0.66),
    "pink": (0.99, 0.50, 0.71),
    "white": (0.96, 0.96, 0.96),
}
LIGHT_COLORS = ("yellow", "cyan", "pink", "white")
CENTER_X = {"left": 34.0, "center": 64.0, "right": 94.0}
STRIPE_PERIOD = 15.0
DOT_PERIOD = 15.0
DOT_RADIUS = 4.4

_ROW, _COLUMN = (grid.astype(np.float32) + 0.5 for grid in np.mgrid[0:SIZE, 0:SIZE])


def _rgb(*value: float) -> np.ndarray:
    return np.asarray(value, dtype=np.float32)


def _blend(below: np.ndarray, above: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return below + (above - below) * alpha[..., None]


def _ramp(top: np.ndarray, bottom: np.ndarray, start: float, end: float) -> np.ndarray:
    """A vertical gradient from `top` at height `start` to `bottom` at `end` (fractions of the
    picture)."""
    return _blend(top, bottom, np.clip((_ROW / SIZE - start) / (end - start), 0.0, 1.0))


def _below(height: np.ndarray | float, softness: float = 1.0) -> np.ndarray:
    """Coverage of the ground whose upper edge lies at `height` (pixels), anti-aliased over
    `softness`."""
    return np.clip((_ROW - height) / softness + 0.5, 0.0, 1.0)


def _wave(phase: float, count: float) -> np.ndarray:
    return np.sin(2.0 * np.pi * (count * _COLUMN / SIZE + phase))


# -- backgrounds: each a function of the horizon (pixels) and a phase in [0, 1)
# ---------------------------


def _meadow(horizon: float, phase: float) -> np.ndarray:
    sky = _ramp(_rgb(0.45, 0.72, 0.95), _rgb(0.86, 0.94, 0.98), 0.0, 0.6)
    far = _blend(sky, _rgb(0.55, 0.76, 0.42), _below(horizon - 8 + 6 * _wave(phase, 1.0)))
    near = _ramp(_rgb(0.45, 0.70, 0.27), _rgb(0.27, 0.52, 0.17), 0.6, 1.0)
    return _blend(far, near, _below(horizon + 12 + 5 * _wave(phase + 0.4, 0.8)))


def _desert(horizon: float, phase: float) -> np.ndarray:
    sky = _ramp(_rgb(0.97, 0.78, 0.52), _rgb(0.99, 0.92, 0.76), 0.0, 0.6)
    far = _blend(sky, _rgb(0.87, 0.62, 0.37), _below(horizon - 4 + 7 * _wave(phase, 0.7)))
    near = _ramp(_rgb(0.80, 0.52, 0.28), _rgb(0.62, 0.36, 0.18), 0.6, 1.0)
    return _blend(far, near, _below(horizon + 16 + 6 * _wave(phase + 0.3, 1.0)))


def _beach(horizon: float, phase: float) -> np.ndarray:
    sky = _ramp(_rgb(0.32, 0.62, 0.93), _rgb(0.72, 0.88, 0.98), 0.0, 0.55)
    sea = _ramp(_rgb(0.05, 0.42, 0.62), _rgb(0.22, 0.72, 0.76), 0.5, 0.78)
    shore = _blend(sky, sea, _below(horizon - 8))
    sand = _ramp(_rgb(0.97, 0.90, 0.70), _rgb(0.90, 0.77, 0.52), 0.7, 1.0)
    edge = horizon + 18 + 4 * _wave(phase, 0.6)
    foam = _blend(shore, _rgb(0.97, 0.99, 1.0), _below(edge - 3, 3.0))
    return _blend(foam, sand, _below(edge + 1, 3.0))


def _lake(horizon: float, phase: float) -> np.ndarray:
    sky = _ramp(_rgb(0.62, 0.68, 0.74), _rgb(0.86, 0.87, 0.86), 0.0, 0.55)
    ridge = _blend(sky, _rgb(0.42, 0.50, 0.56), _below(horizon - 26 + 9 * _wave(phase, 0.8)))
    woods = _blend(
        ridge, _rgb(0.20, 0.32, 0.34), _below(horizon - 10 + 5 * _wave(phase + 0.5, 1.3))
    )
    water = _ramp(_rgb(0.36, 0.47, 0.53), _rgb(0.13, 0.22, 0.29), 0.6, 1.0)
    return _blend(woods, water, _below(horizon + 2, 2.0))


def _sunset(horizon: float, phase: float) -> np.ndarray:
    sky = _ramp(_rgb(0.34, 0.18, 0.46), _rgb(0.99, 0.58, 0.30), 0.0, 0.62)
    sun_x = SIZE * (0.2 + 0.6 * phase)
    distance = np.hypot(_COLUMN - sun_x, _ROW - (horizon - 6))
    glow = _blend(sky, _rgb(1.0, 0.80, 0.45), 0.6 * np.exp(-distance / 26.0))
    disc = _blend(glow, _rgb(1.0, 0.93, 0.66), np.clip(11.0 - distance + 0.5, 0.0, 1.0))
    sea = _ramp(_rgb(0.60, 0.27, 0.38), _rgb(0.17, 0.09, 0.27), 0.6, 1.0)
    return _blend(disc, sea, _below(horizon + 4))


def _glacier(horizon: float, phase: float) -> np.ndarray:
    sky = _ramp(_rgb(0.56, 0.62, 0.86), _rgb(0.88, 0.88, 0.97), 0.0, 0.55)
    slope = np.abs((2.0 * _COLUMN / SIZE + phase) % 1.0 - 0.5) * 2.0
    peaks = _blend(sky, _rgb(0.70, 0.80, 0.93), _below(horizon - 30 + 24 * slope, 1.5))
    snow = _ramp(_rgb(0.97, 0.98, 1.0), _rgb(0.76, 0.84, 0.94), 0.6, 1.0)
    return _blend(peaks, snow, _below(horizon + 4 + 4 * _wave(phase, 1.0), 2.0))


_BACKGROUND = {
    "meadow": _meadow,
    "desert": _desert,
    "beach": _beach,
    "lake": _lake,
    "sunset": _sunset,
    "glacier": _glacier,
}


def render_background(name: str, horizon: float, phase: float, light: float) -> np.ndarray:
    """The landscape alone: float32 [SIZE, SIZE, 3] in [0, 1]. `horizon` in pixels, `phase` in [0,
    1)."""
    return np.clip(_BACKGROUND[name](horizon, phase) * light, 0.0, 1.0)


# -- shapes: signed distances in pixels, negative inside, for unit-area-like sizes
# --------------------------


def _regular(u: np.ndarray, v: np.ndarray, apothem: float, sides: int) -> np.ndarray:
    normals = [2.0 * np.pi * k / sides + np.pi / 2.0 for k in range(sides)]
    return np.max([u * np.cos(a) + v * np.sin(a) for a in normals], axis=0) - apothem


def _star(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """A five-pointed star with its tip up, as the outside of the edges between tips and notches."""
    sector = np.pi / 5.0
    angle = np.abs((np.arctan2(u, -v) + sector) % (2.0 * sector) - sector)
    distance = np.hypot(u, v)
    tip = np.array([radius, 0.0])
    notch = 0.48 * radius * np.array([np.cos(sector), np.sin(sector)])
    edge = notch - tip
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return (distance * np.cos(angle) - tip[0]) * normal[0] + (
        distance * np.sin(angle) - tip[1]
    ) * normal[1]


def shape_distance(shape: str, u: np.ndarray, v: np.ndarray, size: float) -> np.ndarray:
    """Signed distance (pixels, negative inside) of points (u right, v down) to a shape of
    half-width `size`."""
    if shape == "circle":
        return np.hypot(u, v) - 0.94 * size
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.86 * size
    if shape == "triangle":
        return _regular(u, v - 0.16 * size, 0.58 * size, 3)
    return _star(u, v, 1.22 * size)


# -- the scene
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scene:
    """One scene. Words in `WORDS`; the numbers are what no word names and every edit must keep."""

    pattern: str
    color: str
    shape: str
    position: str
    background: str
    dx: float = 0.0
    y: float = 72.0
    size: float = 27.0
    angle: float = 0.0
    pattern_phase: float = 0.0
    horizon: float = 78.0
    background_phase: float = 0.0
    light: float = 1.0
    say_plain: bool = True

    @classmethod
    def sample(cls, seed: int) -> Scene:
        """The scene of a seed; every value is drawn uniformly, so held-out seeds are held-out
        scenes."""
        draw = random.Random(f"scene {seed}")
        words = {kind: draw.choice(values) for kind, values in WORDS.items()}
        return cls(
            **words,
            dx=draw.uniform(-4.0, 4.0),
            y=draw.uniform(64.0, 80.0),
            size=draw.uniform(24.0, 30.0),
            angle=draw.uniform(-0.2, 0.2),
            pattern_phase=draw.random(),
            horizon=draw.uniform(74.0, 84.0),
            background_phase=draw.random(),
            light=draw.uniform(0.92, 1.04),
            say_plain=draw.random() < 0.5,
        )

    @property
    def caption(self) -> str:
        """For example "a striped red star at the left of a meadow". A plain pattern may go
        unsaid."""
        pattern = "" if self.pattern == "plain" and not self.say_plain else f"{self.pattern} "
        return f"a {pattern}{self.color} {self.shape} at the {self.position} of a {self.background}"

    def change(self, **words: str) -> Scene:
        """The true edit: the same scene with the given words changed and every number kept.

        Raises ValueError for a kind or a word that does not exist.
        """
        for kind, word in words.items():
            if word not in WORDS.get(kind, ()):
                raise ValueError(
                    f"expected {kind} to be one of {WORDS.get(kind, tuple(WORDS))}, got {word!r}"
                )
        return dataclasses.replace(self, **words)

    def _local(self) -> tuple[np.ndarray, np.ndarray]:
        x, y = _COLUMN - (CENTER_X[self.position] + self.dx), _ROW - self.y
        cos, sin = np.float32(np.cos(self.angle)), np.float32(np.sin(self.angle))
        return cos * x + sin * y, cos * y - sin * x

    def object_mask(self) -> np.ndarray:
        """Coverage of the object, float32 [SIZE, SIZE] in [0, 1]."""
        return np.clip(
            0.5 - shape_distance(self.shape, *self._local(), self.size), 0.0, 1.0
        ).astype(np.float32)

    def mask(self, word: str) -> np.ndarray:
        """Where a word of the caption lives in the picture, float32 [SIZE, SIZE]; ValueError if it
        is absent."""
        kinds = [kind for kind in WORDS if getattr(self, kind) == word]
        if not kinds:
            raise ValueError(f"expected one of the scene's words in {self.caption!r}, got {word!r}")
        mask = self.object_mask()
        return 1.0 - mask if kinds == ["background"] else mask

    def _marks(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Coverage of the pattern's marks in the object's own frame."""
        if self.pattern == "striped":
            along = ((u + v) / np.float32(np.sqrt(2.0)) / STRIPE_PERIOD + self.pattern_phase) % 1.0
            return np.clip((0.25 - np.abs(along - 0.5)) * STRIPE_PERIOD / 1.5 + 0.5, 0.0, 1.0)
        if self.pattern == "dotted":
            shift = DOT_PERIOD * self.pattern_phase
            cell_u = (u + shift) % DOT_PERIOD - DOT_PERIOD / 2
            cell_v = (v + shift) % DOT_PERIOD - DOT_PERIOD / 2
            return np.clip((DOT_RADIUS - np.hypot(cell_u, cell_v)) / 1.5 + 0.5, 0.0, 1.0)
        return np.zeros_like(u)

    def render(self) -> np.ndarray:
        """The picture: float32 [SIZE, SIZE, 3] in [0, 1]."""
        picture = _BACKGROUND[self.background](self.horizon, self.background_phase)
        u, v = self._local()
        distance = shape_distance(self.shape, u, v, self.size)
        shadow = shape_distance(self.shape, u - 3.0, v - 4.0, self.size)
        picture = _blend(picture, 0.45 * picture, 0.7 * np.clip(0.5 - shadow / 7.0, 0.0, 1.0))
        color = _rgb(*PALETTE[self.color])
        light = self.color in LIGHT_COLORS
        mark = color * 0.62 if light else color + (1.0 - color) * 0.62
        body = _blend(np.broadcast_to(color, picture.shape), mark, self._marks(u, v))
        shade = 1.0 - 0.12 * np.clip((u + v) / self.size, -1.0, 1.0)
        body = np.clip(body * shade[..., None], 0.0, 1.0)
        rim = np.clip(distance / 1.5 + 2.0, 0.0, 1.0)
        body = _blend(body, 0.42 * color, rim)
        picture = _blend(picture, body, np.clip(0.5 - distance, 0.0, 1.0))
        return np.clip(picture * self.light, 0.0, 1.0).astype(np.float32)


def scene_from_caption(caption: str, seed: int = 0) -> Scene:
    """A scene with the words of a caption and the unnamed numbers of `seed`; ValueError if a word
    is missing."""
    said = set(re.findall(r"[a-z]+", caption.lower()))
    words: dict[str, str] = {}
    for kind, values in WORDS.items():
        found = [value for value in values if value in said]
        if len(found) > 1 or (not found and kind != "pattern"):
            raise ValueError(
                f"expected exactly one {kind} of {values} in {caption!r}, found {found or 'none'}"
            )
        words[kind] = found[0] if found else "plain"
    return dataclasses.replace(Scene.sample(seed), say_plain="plain" in said, **words)


UNCHANGED = 2 / 255
"""A pixel that differs less from the true edit counts as one the edit must keep."""


def kept(scene: Scene, truth: Scene) -> np.ndarray:
    """Weights [H, W] of the pixels that an edit from `scene` to `truth` must leave alone.

    Outside the object before and after; inside the object if the background's word was changed.
    Pixels that the true edit changes all the same (the object's shadow) do not count.
    """
    before, after = scene.object_mask(), truth.object_mask()
    moved = scene.background != truth.background
    region = np.minimum(before, after) if moved else 1.0 - np.maximum(before, after)
    return region * (np.abs(scene.render() - truth.render()).max(-1) <= UNCHANGED)
