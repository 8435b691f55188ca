"""How close pictures are, and which part of a drawn scene an edit must keep: one judge for the demo and the benches."""

from __future__ import annotations

import numpy as np
from PIL import Image

from toy.scenes import Scene

UNCHANGED = 2 / 255  # a pixel that differs less from the true edit counts as one the edit must keep


def to_array(picture: Image.Image) -> np.ndarray:
    """Float32 [H, W, 3] in [0, 1]."""
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0


def to_image(picture: np.ndarray) -> Image.Image:
    """The 8-bit picture of a float array [H, W, 3] in [0, 1]."""
    return Image.fromarray((picture * 255.0).round().astype(np.uint8))


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, of the pixels weighted by `where` [H, W] (default: all alike); at most 100."""
    error = np.square(one.astype(np.float64) - other).mean(-1)
    return float(-10.0 * np.log10(max(np.average(error, weights=where), 1e-10)))


def kept(scene: Scene, truth: Scene) -> np.ndarray:
    """Weights [H, W] of the pixels that an edit from `scene` to `truth` must leave alone.

    Outside the object before and after; inside the object if the background's word was changed. Pixels that
    the true edit changes all the same (the object's shadow) do not count.
    """
    before, after = scene.object_mask(), truth.object_mask()
    moved = scene.background != truth.background
    region = np.minimum(before, after) if moved else 1.0 - np.maximum(before, after)
    return region * (np.abs(scene.render() - truth.render()).max(-1) <= UNCHANGED)
