"""Heat maps over pictures, and pictures under labels."""

from __future__ import annotations

import torch

from .fonts import drawable


def overlay(picture: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """A heat map [H, W] in colours over a dimmed grey picture [H, W, 3]."""
    grey, heat = picture.mean(-1, keepdim=True), heat.to(picture)
    # the root lets faint heat be seen, while the picture is dimmed by the heat itself
    strength = heat[..., None]
    return 0.45 * grey * (1.0 - 0.7 * strength) + 0.75 * heat_colours(heat) * strength.sqrt()


_STOPS = (
    (0.02, 0.01, 0.10),
    (0.34, 0.06, 0.43),
    (0.74, 0.21, 0.33),
    (0.98, 0.56, 0.04),
    (0.99, 1.0, 0.64),
)


def heat_colours(heat: torch.Tensor) -> torch.Tensor:
    """A map [H, W] from 0 to 1 as colours [H, W, 3], from dark violet to light yellow."""
    stops = torch.tensor(_STOPS).to(heat)
    place = heat.clamp(0.0, 1.0) * (len(stops) - 1)
    below = place.floor().long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[below], stops[below + 1], (place - below)[..., None])


def labelled_grid(pictures: torch.Tensor, labels: list[str], columns: int = 4) -> torch.Tensor:
    """A sheet [1, h, w, 3] of pictures [n, H, W, 3] in rows of at most `columns`, each under its
    label.

    A label that no font of this machine can draw is its number among the labels, in brackets.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = pictures.shape[1:3]
    line = max(14, height // 12)
    across = min(columns, len(pictures))
    sheet = Image.new(
        "RGB", (across * width, -(-len(pictures) // across) * (height + line)), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(index, across)
        x, y = column * width, row * (height + line)
        text, font = drawable(label, labels.index(label) + 1, line * 0.75)
        pen.text((x + width / 2, y + line / 2), text, fill="#1f2328", font=font, anchor="mm")
        pixels = (picture.clamp(0, 1).cpu().numpy() * 255.0).round().astype(np.uint8)
        sheet.paste(Image.fromarray(pixels), (x, y + line))
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255.0)[None]
