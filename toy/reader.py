"""Reads a scene's words back from its pixels, to judge generated and edited pictures.

Analysis by synthesis with the renderer's own functions and no learned weights:

1. *background*: a library of landscapes compared by trimmed error (the object is what gets trimmed), the best one
   refined by Gauss-Newton on horizon and phase, and a gain per channel that takes light and tint away;
2. *object*: for every colour, how much better each pixel is explained by an object of that colour (body or rim)
   than by the landscape, lit or in shadow; these maps are correlated with the silhouettes of all shapes;
3. *color and pattern*: least squares over all colours, patterns and pattern phases inside the silhouette.

A word is None where the picture does not support one: no landscape fits, or no object explains enough of the
picture. `python -m toy.reader` prints the reader's accuracy on held-out renders, clean and degraded.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterable

import numpy as np

from toy.scenes import (
    BACKGROUNDS,
    CENTER_X,
    COLORS,
    DOT_PERIOD,
    DOT_RADIUS,
    LIGHT_COLORS,
    PALETTE,
    SHAPES,
    SIZE,
    STRIPE_PERIOD,
    WORDS,
    Scene,
    render_background,
    shape_distance,
)

HELD_OUT = 10_000_000
KEPT = 0.65  # the part of the picture that the landscape must explain; object and shadow cover up to a third
CAP = 0.1
GAIN = (0.82, 1.15)  # light is 0.92 to 1.04 in the renderer, and a generated picture may be tinted a little more
SHADOW = 0.6  # the deepest shadow, as a factor
TOLERANCE = 0.14  # colour distance (RGB, Euclidean) at which a pixel counts as not explained at all
MAX_LANDSCAPE_ERROR = 0.12
RIVAL = 0.75
MIN_OBJECT_SCORE = 0.2


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a picture shows. A word is None where the picture does not support one.

    `margins` says for each kind how clearly its word won against the runner-up (0 = a tie), and `fit` is the whole
    scene as understood, numbers included, when an object and a landscape were found.
    """

    pattern: str | None
    color: str | None
    shape: str | None
    position: str | None
    background: str | None
    margins: dict[str, float] = dataclasses.field(default_factory=dict, compare=False)
    fit: Scene | None = dataclasses.field(default=None, compare=False)

    def agreement(self, scene: Scene) -> dict[str, bool]:
        """For every kind of word, whether the picture shows the scene's word."""
        return {kind: getattr(self, kind) == getattr(scene, kind) for kind in WORDS}

    def matches(self, scene: Scene, kinds: Iterable[str] | None = None) -> bool:
        """Whether the picture shows the scene's words of these kinds (default: all); ValueError if no such kind."""
        kinds = tuple(WORDS if kinds is None else kinds)
        unknown = [kind for kind in kinds if kind not in WORDS]
        if unknown:
            raise ValueError(f"expected kinds of {tuple(WORDS)}, got {unknown}")
        agreement = self.agreement(scene)
        return all(agreement[kind] for kind in kinds)


@dataclasses.dataclass(frozen=True)
class _Landscape:
    name: str
    horizon: float
    phase: float
    gain: np.ndarray  # [3]
    error: float = 1.0  # mean capped difference over the whole picture
    usual: float = 1.0  # the difference that `KEPT` of the pixels stay below
    margin: float = 0.0

    @property
    def picture(self) -> np.ndarray:
        return render_background(self.name, self.horizon, self.phase, 1.0)


@dataclasses.dataclass(frozen=True)
class _Silhouette:
    shape: str
    size: float
    angle: float
    x: float
    y: float
    evidence: float
    area: float


def _shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    """Block means: [H, W, ...] -> [H / factor, W / factor, ...]."""
    height, width, *rest = picture.shape
    blocks = picture.reshape(height // factor, factor, width // factor, factor, *rest)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


# -- background --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _library() -> tuple[list[tuple[str, float, float]], np.ndarray, np.ndarray]:
    """Landscapes over a grid of horizon and phase: keys, float32 [n, 16, 16, 3] and the same at [n, 32, 32, 3]."""
    keys = [
        (name, horizon, phase / 24)
        for name in BACKGROUNDS
        for horizon in (74.0, 76.5, 79.0, 81.5, 84.0)
        for phase in range(24)
    ]
    fine = np.stack([_shrink(render_background(*key, 1.0), 4) for key in keys])
    return keys, np.stack([_shrink(view, 2) for view in fine]), fine


def _distances(small: np.ndarray, gain: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Mean absolute difference per pixel, capped so that an object counts the same everywhere: [n, pixels]."""
    distance = np.abs(small - gain * views).mean(axis=-1)
    return np.minimum(distance, CAP).reshape(len(views), -1)


def _nearest_landscape(small: np.ndarray) -> _Landscape:
    """The library's best landscape for a picture shrunk to [32, 32, 3].

    Its name is decided at a coarse scale, its horizon and phase at a finer one. The gain comes from the top of the
    sky, which no object reaches.
    """
    keys, coarse, fine = _library()
    smaller = _shrink(small, 2)
    gains = np.clip(smaller[:3].mean(axis=(0, 1)) / coarse[:, :3].mean(axis=(1, 2)), *GAIN)[:, None, None]
    error = _distances(smaller, gains, coarse).mean(axis=-1)
    name = keys[int(np.argmin(error))][0]
    own = np.array([k for k, key in enumerate(keys) if key[0] == name])
    margin = _margin(error.min(), np.delete(error, own).min())
    best = own[int(np.argmin(_distances(small, gains[own], fine[own]).mean(axis=-1)))]
    return _measured(small, _Landscape(*keys[best], gains[best, 0, 0], margin=margin))


def _measured(small: np.ndarray, at: _Landscape) -> _Landscape:
    """The same landscape with its gain and errors measured over the pixels that it explains."""
    view = _shrink(at.picture, SIZE // len(small))
    kept = np.abs(small - at.gain * view).mean(axis=-1) < CAP
    if kept.any():
        gain = (small * view)[kept].sum(axis=0) / (view * view)[kept].sum(axis=0)
        at = dataclasses.replace(at, gain=np.clip(gain, *GAIN))
    capped = _distances(small, at.gain, view[None])[0]
    usual = float(np.quantile(capped, KEPT))
    return dataclasses.replace(at, error=float(capped.mean()), usual=usual)


def _find_landscape(picture: np.ndarray, rounds: int = 4) -> _Landscape:
    """The library's best, refined by Gauss-Newton at a scale where edges are smooth."""
    small = _shrink(picture, 4)
    best = _nearest_landscape(small)
    for _ in range(rounds):
        moved = _gauss_newton(small, best)
        if moved.error >= best.error - 1e-5:
            break
        best = moved
    return best


def _gauss_newton(small: np.ndarray, at: _Landscape) -> _Landscape:
    """One step on horizon (pixels) and phase (in units of 1/48) over the pixels that are nearly explained."""
    views = [
        _shrink(render_background(at.name, at.horizon + h, at.phase + p / 48, 1.0), 4) * at.gain
        for h, p in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    ]
    residual = small - views[0]
    kept = np.abs(residual).mean(axis=-1) < 2.0 * CAP  # an edge out of place must be allowed to pull
    system = np.stack([(view - views[0])[kept].ravel() for view in views[1:]], axis=1)
    move = np.linalg.solve(system.T @ system + 1e-4 * np.eye(2), system.T @ residual[kept].ravel())
    horizon, phase = np.array([at.horizon, at.phase]) + np.clip(move, -2.0, 2.0) / (1.0, 48.0)
    return _measured(small, dataclasses.replace(at, horizon=float(horizon), phase=float(phase % 1.0)))


# -- object: evidence per pixel, then silhouettes ----------------------------------------------------------


def _mark_color(color: str) -> np.ndarray:
    base = np.asarray(PALETTE[color], dtype=np.float32)
    return base * 0.62 if color in LIGHT_COLORS else base + (1.0 - base) * 0.62


def _to_ray(pixels: np.ndarray, color: np.ndarray, low: float, high: float) -> np.ndarray:
    """Distance [...] of pixels [..., 3] to a colour [..., 3] at its best brightness in [low, high]."""
    brightness = (pixels * color).sum(axis=-1) / np.maximum((color * color).sum(axis=-1), 1e-6)
    return np.linalg.norm(pixels - np.clip(brightness, low, high)[..., None] * color, axis=-1)


def _evidence(pixels: np.ndarray, landscape: np.ndarray, color: str) -> tuple[np.ndarray, np.ndarray]:
    """How much better body and rim of a coloured object explain each pixel than the landscape: two [H, W] in [-1, 1].

    The shadow is no object: it is the landscape at a brightness between `SHADOW` and 1.
    """
    base, mark = np.asarray(PALETTE[color], dtype=np.float32), _mark_color(color)
    outside = np.minimum(_to_ray(pixels, landscape, SHADOW, 1.0), TOLERANCE)
    body = np.min([_to_ray(pixels, c, 0.87, 1.13) for c in (base, mark, 0.5 * (base + mark))], axis=0)
    rim = np.linalg.norm(pixels - 0.42 * base, axis=-1)
    return tuple((outside - np.minimum(inside, TOLERANCE)) / TOLERANCE for inside in (body, rim))


@dataclasses.dataclass(frozen=True)
class _Templates:
    poses: list[tuple[str, float, float]]  # shape, size, angle
    body: np.ndarray  # spectra, complex64 [n, H, W / 2 + 1]
    rim: np.ndarray
    area: np.ndarray  # [n], in pixels of the template


@functools.lru_cache(maxsize=2)
def _templates(side: int, sizes: tuple[float, ...], angles: tuple[float, ...]) -> _Templates:
    """Spectra of centred silhouettes on a side x side picture."""
    poses = [(s, z, a) for s in SHAPES for z in sizes for a in (angles if s != "circle" else (0.0,))]
    covers = [_coverages(*pose, side) for pose in poses]
    body, rim = (np.stack(part) for part in zip(*covers, strict=True))
    spectra = [np.conj(np.fft.rfft2(part)).astype(np.complex64) for part in (body, rim)]
    return _Templates(poses, *spectra, (body + rim).sum(axis=(1, 2)))


def _coverages(shape: str, size: float, angle: float, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of the body without its rim, and of the rim, for an object centred on the corner [0, 0]."""
    row, column = np.mgrid[0:SIZE, 0:SIZE] + 0.5 - SIZE / 2
    distance = shape_distance(shape, *_rotate(column, row, angle), size)
    cover, rim = np.clip(0.5 - distance, 0.0, 1.0), np.clip(distance / 1.5 + 2.0, 0.0, 1.0)
    both = [_shrink(part, SIZE // side) for part in (cover * (1.0 - rim), cover * rim)]
    body, edge = (np.roll(part, (-side // 2, -side // 2), axis=(0, 1)) for part in both)
    return body, edge


def _rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _correlate(evidence: tuple[np.ndarray, np.ndarray], templates: _Templates) -> np.ndarray:
    """Evidence summed over every silhouette at every place, float32 [n, rows, columns] of the allowed centres."""
    body, rim = (np.fft.rfft2(part).astype(np.complex64) for part in evidence)
    side = len(evidence[0])
    score = np.fft.irfft2(templates.body * body + templates.rim * rim, s=(side, side))
    rows, columns = _centres(side)
    return score[:, rows, columns]


def _centres(side: int) -> tuple[slice, slice]:
    """Where an object's centre may be: the renderer's range with a margin of 10 pixels."""
    scale = side / SIZE
    return slice(int(54 * scale), int(90 * scale) + 1), slice(int(20 * scale), int(108 * scale) + 1)


_COARSE = (32, (27.0,), (0.0,))
_FINE = (64, (23.5, 25.5, 27.5, 29.5), (-0.2, -0.1, 0.0, 0.1, 0.2))


def _likely_colors(pixels: np.ndarray, landscape: np.ndarray, count: int = 2) -> list[str]:
    """The colours whose best silhouette gathers most evidence, at a coarse scale."""
    small, view = _shrink(pixels, 4), _shrink(landscape, 4)
    templates = _templates(*_COARSE)
    scores = {c: float(_correlate(_evidence(small, view, c), templates).max()) for c in COLORS}
    return sorted(COLORS, key=lambda color: -scores[color])[:count]


def _silhouettes(pixels: np.ndarray, landscape: np.ndarray, color: str) -> list[_Silhouette]:
    """The best silhouette of every shape for an object of this colour."""
    side = _FINE[0]
    templates = _templates(*_FINE)
    evidence = _evidence(_shrink(pixels, SIZE // side), _shrink(landscape, SIZE // side), color)
    scores = _correlate(evidence, templates)
    each = scores.max(axis=(1, 2))
    found = []
    for wanted in SHAPES:
        rows = [k for k, pose in enumerate(templates.poses) if pose[0] == wanted]
        best = max(rows, key=lambda k: each[k])
        found.append(_Silhouette(*templates.poses[best], *_peak(scores[best]), float(each[best]), templates.area[best]))
    return found


def _peak(score: np.ndarray) -> tuple[float, float]:
    """Where [rows, columns] of allowed centres is largest, in pixels x, y of the picture, between grid points."""
    rows, columns = _centres(_FINE[0])
    row, column = np.unravel_index(int(np.argmax(score)), score.shape)
    x = columns.start + column + _vertex(score[row], int(column))
    y = rows.start + row + _vertex(score[:, column], int(row))
    scale = SIZE / _FINE[0]
    return float(x * scale), float(y * scale)


def _vertex(line: np.ndarray, at: int) -> float:
    """The offset in [-0.5, 0.5] of the top of the parabola through the largest value and its neighbours."""
    if not 0 < at < len(line) - 1:
        return 0.0
    left, middle, right = (float(value) for value in line[at - 1 : at + 2])
    bend = left - 2.0 * middle + right
    return 0.0 if bend >= 0.0 else float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))


# -- colour and pattern ------------------------------------------------------------------------------------


def _stripes(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    along = ((u + v) / np.sqrt(2.0) / STRIPE_PERIOD + phase) % 1.0
    return np.clip((0.25 - np.abs(along - 0.5)) * STRIPE_PERIOD / 1.5 + 0.5, 0.0, 1.0)


def _dots(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    cell_u, cell_v = ((w + DOT_PERIOD * phase) % DOT_PERIOD - DOT_PERIOD / 2 for w in (u, v))
    return np.clip((DOT_RADIUS - np.hypot(cell_u, cell_v)) / 1.5 + 0.5, 0.0, 1.0)


def _mark_library(u: np.ndarray, v: np.ndarray, phases: int = 20) -> tuple[list[tuple[str, float]], np.ndarray]:
    """Every pattern at every phase, seen at points u, v [n]: keys and coverages of the marks [m, n]."""
    keys, marks = [("plain", 0.0)], [np.zeros_like(u)]
    for k in range(phases):
        keys += [("striped", k / phases), ("dotted", k / phases)]
        marks += [_stripes(u, v, k / phases), _dots(u, v, k / phases)]
    return keys, np.stack(marks).astype(np.float32)


@functools.lru_cache(maxsize=2)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    row, column = np.mgrid[0:side, 0:side].astype(np.float32)
    return (row + np.float32(0.5)) * (SIZE / side), (column + np.float32(0.5)) * (SIZE / side)


def _interior(pixels: np.ndarray, at: _Silhouette) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The body's pixels [n, 3] within the rim, and their places u, v [n] in the object's own frame."""
    row, column = _grid(len(pixels))
    u, v = _rotate(column - np.float32(at.x), row - np.float32(at.y), at.angle)
    inside = shape_distance(at.shape, u, v, at.size) < -4.0
    return pixels[inside], u[inside], v[inside]


def _paint_errors(pixels: np.ndarray, at: _Silhouette) -> tuple[list[tuple[str, float]], np.ndarray]:
    """Mean squared error of every pattern and phase (keys) in every colour: [m, colours].

    With c the colour, d = mark - c, s the shading and m the coverage of the marks, the model is s (c + m d); the
    squared error is quadratic in m, so all hypotheses are two matrix products.
    """
    seen, u, v = _interior(pixels, at)
    keys, marks = _mark_library(u, v)
    shade = 1.0 - 0.12 * np.clip((u + v) / at.size, -1.0, 1.0)
    base = np.asarray([PALETTE[color] for color in COLORS], dtype=np.float32)
    delta = np.stack([_mark_color(color) for color in COLORS]) - base
    rest = seen[:, None] - shade[:, None, None] * base  # [n, colours, 3]
    constant = (rest**2).sum(axis=(0, 2))
    linear = shade[:, None] * (rest * delta).sum(axis=-1)
    square = (shade**2)[:, None] * (delta**2).sum(axis=-1)
    return keys, (constant - 2.0 * marks @ linear + marks**2 @ square) / max(len(seen), 1)


@dataclasses.dataclass(frozen=True)
class _Paint:
    color: str
    pattern: str
    phase: float
    angle: float
    margins: dict[str, float]


def _find_paint(pixels: np.ndarray, at: _Silhouette) -> _Paint:
    """The best colour, pattern and phase; the pattern also tells the angle, which a circle's outline does not."""
    turns = (-0.2, -0.1, 0.0, 0.1, 0.2) if at.shape == "circle" else (at.angle - 0.05, at.angle, at.angle + 0.05)
    small = _shrink(pixels, 2)
    tried = [_paint_errors(small, dataclasses.replace(at, angle=turn)) for turn in turns]
    keys, errors = tried[0][0], np.stack([errors for _, errors in tried])
    turn, row, column = (int(k) for k in np.unravel_index(int(np.argmin(errors)), errors.shape))
    pattern, phase = keys[row]
    other_pattern = [k for k, key in enumerate(keys) if key[0] != pattern]
    margins = {
        "color": _margin(errors.min(), np.delete(errors, column, axis=2).min()),
        "pattern": _margin(errors.min(), errors[:, other_pattern, column].min()),
    }
    return _Paint(COLORS[column], pattern, phase, turns[turn], margins)


def _margin(best: float, other: float) -> float:
    """How much smaller the best error is than the runner-up's, in [0, 1]."""
    return float(np.clip(1.0 - best / max(other, 1e-9), 0.0, 1.0))


# -- reading -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Fit:
    scene: Scene
    error: float  # of the whole picture
    density: float  # evidence per pixel of the silhouette
    margins: dict[str, float]


def read(picture: np.ndarray) -> Reading:
    """The words that a picture shows: float [128, 128, 3] in [0, 1] -> Reading; ValueError for anything else."""
    picture = _checked(picture)
    landscape = _find_landscape(picture)
    if landscape.usual > MAX_LANDSCAPE_ERROR:
        return Reading(None, None, None, None, None)
    pixels, view = picture / landscape.gain, landscape.picture
    fits = [_fit(pixels, landscape, at) for at in _candidates(pixels, view)]
    if not fits:
        return Reading(None, None, None, None, landscape.name, {'score':0.,'perr':0.,'lerr':landscape.usual})
    best = min(fits, key=lambda fit: fit.error)
    empty = _picture_error(pixels, view)
    words = {kind: getattr(best.scene, kind) for kind in WORDS}
    others = [fit.error for fit in fits if fit.scene.shape != best.scene.shape]
    margins = {**best.margins, "shape": _margin(best.error, min(others, default=empty)), "background": landscape.margin,
       "score": best.density, "perr": 1.0 - best.error / empty, "lerr": landscape.usual, "nc": len(fits)}
    return Reading(**words, margins=margins, fit=best.scene)


def _candidates(pixels: np.ndarray, landscape: np.ndarray) -> list[_Silhouette]:
    """Silhouettes with nearly as much evidence as the best; for the clear picture that is the best alone."""
    found = [at for color in _likely_colors(pixels, landscape) for at in _silhouettes(pixels, landscape, color)]
    best: dict[str, _Silhouette] = {}
    for at in sorted(found, key=lambda at: at.evidence):
        best[at.shape] = at
    most = max(max(at.evidence for at in found), 1e-6)
    return [at for at in best.values() if at.evidence >= RIVAL * most]


def _fit(pixels: np.ndarray, landscape: _Landscape, at: _Silhouette) -> _Fit:
    paint = _find_paint(pixels, at)
    position = min(CENTER_X, key=lambda name: abs(CENTER_X[name] - at.x))
    scene = Scene(
        paint.pattern, paint.color, at.shape, position, landscape.name, dx=at.x - CENTER_X[position], y=at.y,
        size=at.size, angle=paint.angle, pattern_phase=paint.phase, horizon=landscape.horizon,
        background_phase=landscape.phase)
    return _Fit(scene, _picture_error(pixels, scene.render()), at.evidence / at.area, paint.margins)


def _picture_error(pixels: np.ndarray, fit: np.ndarray) -> float:
    return float(np.abs(_shrink(pixels, 2) - _shrink(fit, 2)).mean())


def _checked(picture: np.ndarray) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.shape != (SIZE, SIZE, 3) or not np.issubdtype(picture.dtype, np.floating):
        raise ValueError(f"expected a float picture of shape {(SIZE, SIZE, 3)}, got {picture.dtype} {picture.shape}")
    if not np.isfinite(picture).all() or picture.min() < -0.01 or picture.max() > 1.01:
        raise ValueError(f"expected finite values in [0, 1], got {picture.min()} to {picture.max()}")
    return np.clip(picture, 0.0, 1.0).astype(np.float32)
