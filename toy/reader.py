"""Reads a scene's words back from its pixels, to judge generated and edited pictures.

Analysis by synthesis with the renderer's own functions; nothing is learned and nothing is random:

1. *landscape*: a library of landscapes compared by a capped difference (so that the object costs
   the same everywhere), the best refined by Gauss-Newton on horizon and phase, with a gain per
   channel for light and tint;
2. *silhouette*: for each likely colour, how much better every pixel is explained by an object of
   that colour (body or rim) than by the landscape, lit or in shadow; these maps are correlated with
   the outlines of all shapes;
3. *paint*: least squares over all colours, patterns and pattern phases inside the silhouette;
4. silhouettes that are nearly as good as the best are painted and rendered too, and the picture
  decides.

A word is None where the picture does not support one. All five are None if no landscape fits;
pattern, color, shape and position are None if no object explains enough of what the landscape
leaves over.

`python -m toy.reader [--count 1000]` prints the reader's accuracy on held-out renders, clean and
degraded.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence

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

HELD_OUT = 10_000_000  # training draws seeds below this number, judging draws seeds from it on

# All differences are of colours in [0, 1].
CAP = 0.1  # a pixel further from a landscape than this counts as "something else stands here"
GAIN = (
    0.82,
    1.15,
)  # light is 0.92 to 1.04 in the renderer, and a picture may be tinted a little more
SHADOW = 0.6  # the deepest shadow, as a factor of the landscape
TOLERANCE = 0.14  # Euclidean distance at which a pixel counts as not explained at all
RIVAL = 0.75  # silhouettes with this share of the best one's evidence are rendered and compared

# Measured: an autoencoder's pictures at 26 dB reach 0.051, noise and plain colours start at 0.058.
MAX_LANDSCAPE_DIFFERENCE = 0.055
# ... which is the difference that this share of the pixels stays below: objects cover less
USUAL = 0.65
# Measured: empty landscapes offer no silhouette at all, soft clouds explain nothing,
# and the worst scene out of an autoencoder at 26 dB explains 0.088.
MIN_EXPLAINED = 0.06  # share of the landscape's error that the object takes away

Evidence = tuple[np.ndarray, np.ndarray]  # for the body and for the rim


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a picture shows. A word is None where the picture does not support one.

    `margins` says, for each kind that was read, how clearly its word beat the runner-up: 0 is a
    tie, 1 certainty. `explained` is the share of the landscape's error that the object takes away,
    and `fit` the whole scene as understood, numbers included, if there is an object.
    """

    pattern: str | None = None
    color: str | None = None
    shape: str | None = None
    position: str | None = None
    background: str | None = None
    margins: dict[str, float] = dataclasses.field(default_factory=dict, compare=False)
    explained: float = dataclasses.field(default=0.0, compare=False)
    fit: Scene | None = dataclasses.field(default=None, compare=False)

    def agreement(self, scene: Scene) -> dict[str, bool]:
        """For every kind of word, whether the picture shows the scene's word."""
        return {kind: getattr(self, kind) == getattr(scene, kind) for kind in WORDS}

    def matches(self, scene: Scene, kinds: Iterable[str] | None = None) -> bool:
        """Whether the picture shows the scene's words of these kinds (default all); ValueError if
        unknown."""
        wanted = tuple(WORDS if kinds is None else kinds)
        unknown = [kind for kind in wanted if kind not in WORDS]
        if unknown:
            raise ValueError(f"expected kinds among {tuple(WORDS)}, got {unknown}")
        agreement = self.agreement(scene)
        return all(agreement[kind] for kind in wanted)


def read(picture: np.ndarray) -> Reading:
    """The words that a picture shows: float [128, 128, 3] in [0, 1] -> Reading; ValueError
    otherwise."""
    picture = _checked(picture)
    landscape = _find_landscape(picture)
    if landscape.usual > MAX_LANDSCAPE_DIFFERENCE:
        return Reading()
    pixels, view = picture / landscape.gain, landscape.picture
    fits = [_fit(pixels, landscape, at) for at in _candidates(pixels, view)]
    empty = _picture_error(pixels, view)
    best = min(fits, key=lambda fit: fit.error, default=None)
    if best is None or best.error > (1.0 - MIN_EXPLAINED) * empty:
        return Reading(background=landscape.name, margins={"background": landscape.margin})
    others = [fit.error for fit in fits if fit.scene.shape != best.scene.shape]
    margins = best.margins | {
        "shape": _margin(best.error, min(others, default=empty)),
        "background": landscape.margin,
    }
    words = {kind: getattr(best.scene, kind) for kind in WORDS}
    return Reading(**words, margins=margins, explained=1.0 - best.error / empty, fit=best.scene)


def _checked(picture: np.ndarray) -> np.ndarray:
    """The picture as float32 if it is one."""
    picture = np.asarray(picture)
    if picture.shape != (SIZE, SIZE, 3) or not np.issubdtype(picture.dtype, np.floating):
        raise ValueError(
            f"expected a float picture of shape {(SIZE, SIZE, 3)} with values in [0, 1], got "
            f"{picture.dtype} "
            f"of shape {picture.shape}; resize it and divide bytes by 255"
        )
    low, high = float(picture.min()), float(picture.max())
    if not (low >= -0.01 and high <= 1.01):  # also false for NaN
        raise ValueError(
            f"expected a picture with values in [0, 1], got values from {low:.3g} to {high:.3g}"
        )
    return np.asarray(np.clip(picture, 0.0, 1.0), dtype=np.float32)


def _shrink(picture: np.ndarray, factor: int) -> np.ndarray:
    """Block means: [H, W, ...] -> [H / factor, W / factor, ...]."""
    height, width, *rest = picture.shape
    blocks = picture.reshape(height // factor, factor, width // factor, factor, *rest)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))


def _margin(best: float, other: float) -> float:
    """How much smaller the best error is than the runner-up's, in [0, 1]."""
    return float(np.clip(1.0 - best / max(other, 1e-9), 0.0, 1.0))


# -- landscape
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Landscape:
    name: str
    horizon: float
    phase: float
    gain: np.ndarray  # [3], what the picture is brighter than the landscape in neutral light
    error: float = 1.0  # mean capped difference
    usual: float = 1.0  # the difference that `USUAL` of the pixels stay below
    margin: float = 0.0

    @property
    def picture(self) -> np.ndarray:
        return render_background(self.name, self.horizon, self.phase, 1.0)


@functools.lru_cache(maxsize=1)
def _library() -> tuple[list[tuple[str, float, float]], np.ndarray, np.ndarray]:
    """Landscapes over a grid of horizon and phase: keys, float32 [n, 16, 16, 3] and [n, 32, 32,
    3]."""
    keys = [
        (name, horizon, phase / 24)
        for name in BACKGROUNDS
        for horizon in (74.0, 76.5, 79.0, 81.5, 84.0)
        for phase in range(24)
    ]
    fine = np.stack([_shrink(render_background(*key, 1.0), 4) for key in keys])
    return keys, np.stack([_shrink(view, 2) for view in fine]), fine


def _capped(small: np.ndarray, gain: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Capped difference of a picture [h, w, 3] from each landscape [n, h, w, 3]: [n, pixels]."""
    difference = np.abs(small - gain * views).mean(axis=-1)
    return np.asarray(np.minimum(difference, CAP).reshape(len(views), -1))


def _nearest_landscape(small: np.ndarray) -> _Landscape:
    """The library's best landscape for a picture shrunk to [32, 32, 3].

    Its name is decided at a coarse scale, its horizon and phase at a finer one. The gain comes from
    the top of the sky, which no object reaches.
    """
    keys, coarse, fine = _library()
    smaller = _shrink(small, 2)
    gains = np.clip(smaller[:3].mean(axis=(0, 1)) / coarse[:, :3].mean(axis=(1, 2)), *GAIN)[
        :, None, None
    ]
    error = _capped(smaller, gains, coarse).mean(axis=-1)
    name = keys[int(np.argmin(error))][0]
    own = np.array([k for k, key in enumerate(keys) if key[0] == name])
    margin = _margin(float(error.min()), float(np.delete(error, own).min()))
    best = own[int(np.argmin(_capped(small, gains[own], fine[own]).mean(axis=-1)))]
    name, horizon, phase = keys[best]
    return _measured(small, _Landscape(name, horizon, phase, gains[best, 0, 0], margin=margin))


def _measured(small: np.ndarray, at: _Landscape) -> _Landscape:
    """The same landscape with its gain and errors measured over the pixels that it explains."""
    view = _shrink(at.picture, SIZE // len(small))
    kept = np.abs(small - at.gain * view).mean(axis=-1) < CAP
    if kept.any():
        gain = (small * view)[kept].sum(axis=0) / (view * view)[kept].sum(axis=0)
        at = dataclasses.replace(at, gain=np.clip(gain, *GAIN))
    capped = _capped(small, at.gain, view[None])[0]
    return dataclasses.replace(
        at, error=float(capped.mean()), usual=float(np.quantile(capped, USUAL))
    )


def _find_landscape(picture: np.ndarray, rounds: int = 4) -> _Landscape:
    """The library's best landscape, refined by Gauss-Newton at a scale where edges are smooth."""
    small = _shrink(picture, 4)
    best = _nearest_landscape(small)
    for _ in range(rounds):
        moved = _gauss_newton(small, best)
        if moved.error >= best.error - 1e-5:
            break
        best = moved
    return best


def _gauss_newton(small: np.ndarray, at: _Landscape) -> _Landscape:
    """One step on horizon (pixels) and phase (1/48 turns) over the pixels that are nearly
    explained."""
    views = [
        _shrink(render_background(at.name, at.horizon + h, at.phase + p / 48, 1.0), 4) * at.gain
        for h, p in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
    ]
    residual = small - views[0]
    kept = (
        np.abs(residual).mean(axis=-1) < 2.0 * CAP
    )  # an edge out of place must be allowed to pull
    system = np.stack([(view - views[0])[kept].ravel() for view in views[1:]], axis=1)
    move = np.linalg.solve(system.T @ system + 1e-4 * np.eye(2), system.T @ residual[kept].ravel())
    horizon, phase = np.array([at.horizon, at.phase]) + np.clip(move, -2.0, 2.0) / (1.0, 48.0)
    return _measured(
        small, dataclasses.replace(at, horizon=float(horizon), phase=float(phase % 1.0))
    )


# -- silhouette
# --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Silhouette:
    shape: str
    size: float
    angle: float
    x: float  # centre, pixels
    y: float
    evidence: float  # summed over the silhouette, at the scale of `_FINE`


@dataclasses.dataclass(frozen=True)
class _Templates:
    poses: list[tuple[str, float, float]]  # shape, size, angle
    body: np.ndarray  # conjugate spectra, complex64 [n, side, side / 2 + 1]
    rim: np.ndarray


_COARSE = (32, (27.0,), (0.0,))  # side, sizes, angles
_FINE = (64, (23.5, 25.5, 27.5, 29.5), (-0.2, -0.1, 0.0, 0.1, 0.2))


@functools.lru_cache(maxsize=2)
def _templates(side: int, sizes: tuple[float, ...], angles: tuple[float, ...]) -> _Templates:
    """Spectra of silhouettes on a side x side picture; a circle has one angle."""
    poses = [
        (s, z, a) for s in SHAPES for z in sizes for a in (angles if s != "circle" else (0.0,))
    ]
    covers = [_coverages(*pose, side) for pose in poses]
    body, rim = (np.stack(part) for part in zip(*covers, strict=True))
    spectra = (np.conj(np.fft.rfft2(part)).astype(np.complex64) for part in (body, rim))
    body_spectra, rim_spectra = spectra
    return _Templates(poses, body_spectra, rim_spectra)


@functools.lru_cache(maxsize=2)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixels of a side x side picture, in pixels of the full one."""
    row, column = np.mgrid[0:side, 0:side].astype(np.float32)
    return (column + 0.5) * (SIZE / side), (row + 0.5) * (SIZE / side)


def _rotate(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Places relative to the centre -> u, v in the frame of an object turned by `angle`
    (radians)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def _coverages(shape: str, size: float, angle: float, side: int) -> Evidence:
    """Coverage of the body without its rim, and of the rim, for an object centred on the corner [0,
    0]."""
    x, y = (axis - SIZE / 2 for axis in _grid(SIZE))
    distance = shape_distance(shape, *_rotate(x, y, angle), size)
    cover, rim = np.clip(0.5 - distance, 0.0, 1.0), np.clip(distance / 1.5 + 2.0, 0.0, 1.0)
    both = (_shrink(part, SIZE // side) for part in (cover * (1.0 - rim), cover * rim))
    body, edge = (np.roll(part, (-side // 2, -side // 2), axis=(0, 1)) for part in both)
    return body, edge


def _mark_color(color: str) -> np.ndarray:
    """The colour of stripes and dots, [3]."""
    base = np.asarray(PALETTE[color], dtype=np.float32)
    return base * 0.62 if color in LIGHT_COLORS else base + (1.0 - base) * 0.62


def _to_ray(pixels: np.ndarray, color: np.ndarray, low: float, high: float) -> np.ndarray:
    """Distance [...] of pixels [..., 3] from a colour [..., 3] at its best brightness in [low,
    high]."""
    brightness = (pixels * color).sum(axis=-1) / np.maximum((color * color).sum(axis=-1), 1e-6)
    return np.asarray(
        np.linalg.norm(pixels - np.clip(brightness, low, high)[..., None] * color, axis=-1)
    )


def _evidence(pixels: np.ndarray, landscape: np.ndarray, color: str) -> Evidence:
    """How much better than the landscape body and rim of an object explain each pixel: [H, W] in
    [-1, 1].

    A shadow is no object: it is the landscape at a brightness between `SHADOW` and 1. Where a white
    object stands before snow both explain the body equally well; the dark rim then decides.
    """
    base, mark = np.asarray(PALETTE[color], dtype=np.float32), _mark_color(color)
    outside = np.minimum(_to_ray(pixels, landscape, SHADOW, 1.0), TOLERANCE)
    paints = (base, mark, 0.5 * (base + mark))  # the last for pixels on a mark's edge
    body = np.min([_to_ray(pixels, paint, 0.87, 1.13) for paint in paints], axis=0)
    rim = np.linalg.norm(pixels - 0.42 * base, axis=-1)
    for_body, for_rim = (
        (outside - np.minimum(part, TOLERANCE)) / TOLERANCE for part in (body, rim)
    )
    return for_body, for_rim


def _centres(side: int) -> tuple[slice, slice]:
    """Rows and columns where an object's centre may be: the renderer's range and about 10 pixels
    more."""
    scale = side / SIZE
    return slice(int(54 * scale), int(90 * scale) + 1), slice(int(20 * scale), int(108 * scale) + 1)


def _correlate(evidence: Evidence, templates: _Templates) -> np.ndarray:
    """Evidence summed over every silhouette at every allowed centre: [n, rows, columns]."""
    side = len(evidence[0])
    body, rim = (np.fft.rfft2(part).astype(np.complex64) for part in evidence)
    score = np.fft.irfft2(templates.body * body + templates.rim * rim, s=(side, side))
    rows, columns = _centres(side)
    return score[:, rows, columns]


def _likely_colors(pixels: np.ndarray, landscape: np.ndarray, count: int = 2) -> list[str]:
    """The colours whose best silhouette gathers most evidence, at a coarse scale."""
    small, view = _shrink(pixels, 4), _shrink(landscape, 4)
    templates = _templates(*_COARSE)
    scores = {c: float(_correlate(_evidence(small, view, c), templates).max()) for c in COLORS}
    return sorted(COLORS, key=lambda color: -scores[color])[:count]


def _silhouettes(pixels: np.ndarray, landscape: np.ndarray, color: str) -> list[_Silhouette]:
    """The best silhouette of every shape for an object of this colour."""
    factor, templates = SIZE // _FINE[0], _templates(*_FINE)
    scores = _correlate(
        _evidence(_shrink(pixels, factor), _shrink(landscape, factor), color), templates
    )
    most = scores.max(axis=(1, 2))
    found = []
    for shape in SHAPES:
        own = [k for k, pose in enumerate(templates.poses) if pose[0] == shape]
        k = own[int(np.argmax(most[own]))]
        found.append(_Silhouette(*templates.poses[k], *_peak(scores[k]), float(most[k])))
    return found


def _peak(score: np.ndarray) -> tuple[float, float]:
    """Where a map over `_centres` is largest: x, y in pixels of the picture, between its grid
    points."""
    side = _FINE[0]
    rows, columns = _centres(side)
    row, column = (int(k) for k in np.unravel_index(int(np.argmax(score)), score.shape))
    x = columns.start + column + _vertex(score[row], column)
    y = rows.start + row + _vertex(score[:, column], row)
    return float(x * SIZE / side), float(y * SIZE / side)


def _vertex(line: np.ndarray, at: int) -> float:
    """The offset in [-0.5, 0.5] of the top of the parabola through the largest value and its
    neighbours."""
    if not 0 < at < len(line) - 1:
        return 0.0
    left, middle, right = (float(value) for value in line[at - 1 : at + 2])
    bend = left - 2.0 * middle + right
    return 0.0 if bend >= 0.0 else float(np.clip(0.5 * (left - right) / bend, -0.5, 0.5))


def _candidates(pixels: np.ndarray, landscape: np.ndarray) -> list[_Silhouette]:
    """The best silhouette of each shape that has nearly as much evidence as the best of all: 0 to
    4."""
    colors = _likely_colors(pixels, landscape)
    found = [at for color in colors for at in _silhouettes(pixels, landscape, color)]
    found.sort(key=lambda at: at.evidence)
    best = {at.shape: at for at in found}
    return [
        at
        for at in best.values()
        if at.evidence > 0.0 and at.evidence >= RIVAL * found[-1].evidence
    ]


# -- paint
# -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Paint:
    color: str
    pattern: str
    phase: float
    angle: float
    margins: dict[str, float]


def _stripes(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    along = ((u + v) / np.float32(np.sqrt(2.0)) / STRIPE_PERIOD + phase) % 1.0
    return np.asarray(np.clip((0.25 - np.abs(along - 0.5)) * STRIPE_PERIOD / 1.5 + 0.5, 0.0, 1.0))


def _dots(u: np.ndarray, v: np.ndarray, phase: float) -> np.ndarray:
    cell_u, cell_v = ((w + DOT_PERIOD * phase) % DOT_PERIOD - DOT_PERIOD / 2 for w in (u, v))
    return np.clip((DOT_RADIUS - np.hypot(cell_u, cell_v)) / 1.5 + 0.5, 0.0, 1.0)


def _marks(
    u: np.ndarray, v: np.ndarray, phases: int = 20
) -> tuple[list[tuple[str, float]], np.ndarray]:
    """Every pattern at every phase, seen at points u, v [n]: keys, and coverage of the marks [m,
    n]."""
    keys, marks = [("plain", 0.0)], [np.zeros_like(u)]
    for k in range(phases):
        keys += [("striped", k / phases), ("dotted", k / phases)]
        marks += [_stripes(u, v, k / phases), _dots(u, v, k / phases)]
    return keys, np.stack(marks).astype(np.float32)


def _interior(small: np.ndarray, at: _Silhouette) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The body's pixels [n, 3] within the rim, and their places u, v [n] in the object's own
    frame."""
    x, y = _grid(len(small))
    u, v = _rotate(x - np.float32(at.x), y - np.float32(at.y), at.angle)
    inside = shape_distance(at.shape, u, v, at.size) < -4.0
    return small[inside], u[inside], v[inside]


def _paint_errors(small: np.ndarray, at: _Silhouette) -> tuple[list[tuple[str, float]], np.ndarray]:
    """Mean squared error of every pattern and phase (keys) in every colour: [m, colours].

    With c the colour, d = mark - c, s the shading and k the coverage of the marks, the model is s
    (c + k d). Its squared error is quadratic in k, so all hypotheses together are two matrix
    products.
    """
    seen, u, v = _interior(small, at)
    keys, marks = _marks(u, v)
    shade = 1.0 - 0.12 * np.clip((u + v) / at.size, -1.0, 1.0)
    base = np.asarray([PALETTE[color] for color in COLORS], dtype=np.float32)
    delta = np.stack([_mark_color(color) for color in COLORS]) - base
    rest = seen[:, None] - shade[:, None, None] * base  # [n, colours, 3]
    constant = (rest**2).sum(axis=(0, 2))
    linear = shade[:, None] * (rest * delta).sum(axis=-1)
    square = (shade**2)[:, None] * (delta**2).sum(axis=-1)
    return keys, (constant - 2.0 * marks @ linear + marks**2 @ square) / max(len(seen), 1)


def _find_paint(pixels: np.ndarray, at: _Silhouette) -> _Paint:
    """The best colour, pattern, phase and angle: the pattern tells a circle's angle, the outline
    does not."""
    turns = _FINE[2] if at.shape == "circle" else (at.angle - 0.05, at.angle, at.angle + 0.05)
    small = _shrink(pixels, 2)
    tried = [_paint_errors(small, dataclasses.replace(at, angle=turn)) for turn in turns]
    keys, errors = tried[0][0], np.stack([error for _, error in tried])  # [turns, m, colours]
    turn, row, column = (int(k) for k in np.unravel_index(int(np.argmin(errors)), errors.shape))
    pattern, phase = keys[row]
    others = [k for k, key in enumerate(keys) if key[0] != pattern]
    best = float(errors.min())
    margins = {
        "color": _margin(best, float(np.delete(errors, column, axis=2).min())),
        "pattern": _margin(best, float(errors[:, others, column].min())),
    }
    return _Paint(COLORS[column], pattern, phase, turns[turn], margins)


# -- the whole scene
# ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Fit:
    scene: Scene
    error: float
    margins: dict[str, float]


def _fit(pixels: np.ndarray, landscape: _Landscape, at: _Silhouette) -> _Fit:
    """The scene with this silhouette, its best paint, and how far its picture is from the given
    one."""
    paint = _find_paint(pixels, at)
    near, next_near, *_ = sorted(CENTER_X, key=lambda name: abs(CENTER_X[name] - at.x))
    scene = Scene(
        pattern=paint.pattern,
        color=paint.color,
        shape=at.shape,
        position=near,
        background=landscape.name,
        dx=at.x - CENTER_X[near],
        y=at.y,
        size=at.size,
        angle=paint.angle,
        pattern_phase=paint.phase,
        horizon=landscape.horizon,
        background_phase=landscape.phase,
    )
    error = _picture_error(pixels, scene.render())
    position = _margin(abs(CENTER_X[near] - at.x), abs(CENTER_X[next_near] - at.x))
    scene = dataclasses.replace(scene, light=float(landscape.gain.mean()))
    return _Fit(scene, error, paint.margins | {"position": position})


def _picture_error(pixels: np.ndarray, fit: np.ndarray) -> float:
    """Mean absolute difference, at half the size because outlines are fitted to about a pixel."""
    return float(np.abs(_shrink(pixels, 2) - _shrink(fit, 2)).mean())


# -- the reader's own accuracy
# -----------------------------------------------------------------------------

Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of [H, W, C]; sigma in pixels."""
    reach = int(4 * sigma + 1)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for axis in (0, 1):
        length = picture.shape[axis]
        padded = np.pad(
            picture, [(reach, reach) if a == axis else (0, 0) for a in range(3)], mode="edge"
        )
        picture = sum(
            weight * padded.take(range(k, k + length), axis=axis)
            for k, weight in enumerate(weights / weights.sum())
        )
    return picture.astype(np.float32)


def _noise(picture: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return np.clip(picture + draw.normal(0.0, 0.03, picture.shape), 0.0, 1.0).astype(np.float32)


def _blocks(picture: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Blur, noise, and every 8 x 8 block drawn 30 % towards its mean, as a coarse compression
    does."""
    worn = _noise(blur(picture, 1.0), draw)
    means = _shrink(worn, 8).repeat(8, axis=0).repeat(8, axis=1)
    return 0.7 * worn + 0.3 * means


def _tint(picture: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return np.clip(picture * draw.uniform(0.95, 1.05, 3), 0.0, 1.0).astype(np.float32)


DEGRADATIONS: dict[str, Degradation] = {
    "clean": lambda picture, draw: picture,
    "blur 1.0": lambda picture, draw: blur(picture, 1.0),
    "blur 1.5": lambda picture, draw: blur(picture, 1.5),
    "noise 0.03": _noise,
    "blur+noise+blocks": _blocks,
    "tint 5%": _tint,
}


def accuracy(degrade: Degradation, seeds: Sequence[int]) -> dict[str, float]:
    """Share of degraded renders read rightly, for each kind of word and for "all" words at once."""
    right = dict.fromkeys((*WORDS, "all"), 0)
    for seed in seeds:
        scene = Scene.sample(seed)
        reading = read(degrade(scene.render(), np.random.default_rng(seed)))
        for kind, agrees in reading.agreement(scene).items():
            right[kind] += agrees
        right["all"] += reading.matches(scene)
    return {kind: count / len(seeds) for kind, count in right.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print accuracy in per cent and CPU milliseconds a picture (rendering included) for each
    degradation."""
    parser = argparse.ArgumentParser(prog="python -m toy.reader", description=main.__doc__)
    parser.add_argument("--count", type=int, default=1000, help="held-out scenes for each row")
    seeds = range(HELD_OUT, HELD_OUT + parser.parse_args(arguments).count)
    read(Scene.sample(HELD_OUT).render())  # builds the libraries
    print(f"{'':18}" + "".join(f"{kind:>12}" for kind in (*WORDS, "all", "ms")), flush=True)
    for name, degrade in DEGRADATIONS.items():
        began = time.process_time()
        shares = accuracy(degrade, seeds)
        spent = 1000.0 * (time.process_time() - began) / len(seeds)
        row = "".join(f"{100 * share:12.2f}" for share in shares.values())
        print(f"{name:18}{row}{spent:12.1f}", flush=True)


if __name__ == "__main__":
    main()
