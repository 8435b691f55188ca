"""Pictures as files have them, as arrays, and how close two are."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def plain(picture: Image.Image) -> Image.Image:
    """Any picture upright in 8 bits: RGB, or RGBA where parts are transparent.

    Pillow's own conversion clips greys of 16 bits to white and drops transparency. Floats count
    from 0 to 1. Raises ValueError for values that have no known range.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        return _grey(picture)
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        return seen if seen.getextrema()[3] != (255, 255) else seen.convert("RGB")
    return picture.convert("RGB")


def on_white(picture: Image.Image) -> Image.Image:
    """Any picture in 8 bits RGB, what is transparent on white: as pages show it."""
    seen = plain(picture)
    if seen.mode == "RGB":
        return seen
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _grey(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits or of floats."""
    values = np.asarray(picture).astype(np.float64)
    top = 1.0 if picture.mode == "F" else 65535.0
    if not (values.min() >= 0.0 and values.max() <= top):
        raise ValueError(
            f"expected a grey picture of 16 bits, or of floats from 0 to 1; its mode is "
            f"{picture.mode}, its values {values.min():g} to {values.max():g}"
        )
    grey = Image.fromarray((values * (255.0 / top)).round().astype(np.uint8))
    hidden = picture.info.get("transparency")
    if not isinstance(hidden, int):
        return grey.convert("RGB")
    seen = grey.convert("RGBA")
    seen.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return seen


def to_array(picture: Image.Image) -> np.ndarray:
    """Float32 [H, W, 3] in [0, 1], what is transparent on white."""
    return np.asarray(on_white(picture), dtype=np.float32) / 255.0


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
