"""Pictures as arrays, and how close two are."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_array(picture: Image.Image) -> np.ndarray:
    """Float32 [H, W, 3] in [0, 1]."""
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0


def to_image(picture: np.ndarray) -> Image.Image:
    """The 8-bit picture of a float array [H, W, 3] in [0, 1]."""
    return Image.fromarray((picture * 255.0).round().astype(np.uint8))


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [0, 1], at most 100.

    where: weights of the pixels [H, W]; by default all count alike. Tensors have
    `core.quality.psnr`.
    """
    error = np.square(one.astype(np.float64) - other).mean(-1)
    return float(-10.0 * np.log10(max(np.average(error, weights=where), 1e-10)))
