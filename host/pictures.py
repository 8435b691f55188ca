"""Latents back to pictures, pictures side by side, and heat maps over them."""

from __future__ import annotations

from typing import Any

import torch

from ..core.errors import check_finite


def decode(vae: Any, latent: dict[str, Any]) -> torch.Tensor:
    """IMAGE [B, H, W, 3] of a LATENT; PivotError if the VAE gives NaN."""
    return check_finite(vae.decode(latent["samples"]), "the decoded picture", "VAE decode")


def comparison(*pictures: torch.Tensor, gap: int = 8) -> torch.Tensor:
    """Pictures [B, H, W, 3] side by side on white, all at the last one's size, centred and cropped alike."""
    from comfy.utils import common_upscale

    height, width = pictures[-1].shape[1:3]
    batch = max(len(picture) for picture in pictures)
    columns = []
    for picture in pictures:
        fitted = common_upscale(picture[..., :3].movedim(-1, 1), width, height, "lanczos", "center").movedim(1, -1)
        fitted = fitted.expand(batch, -1, -1, -1) if len(fitted) == 1 else fitted[:batch]
        columns += [fitted, torch.ones(batch, height, gap, 3, dtype=fitted.dtype, device=fitted.device)]
    return torch.cat(columns[:-1], dim=2)


def overlay(picture: torch.Tensor, heat: torch.Tensor) -> torch.Tensor:
    """A heat map [H, W] in colours over a dimmed grey picture [H, W, 3]."""
    grey, heat = picture.mean(-1, keepdim=True), heat.to(picture)
    strength = heat[..., None]
    return 0.45 * grey * (1.0 - 0.7 * strength) + 0.75 * heat_colours(heat) * strength.sqrt()


_STOPS = ((0.02, 0.01, 0.10), (0.34, 0.06, 0.43), (0.74, 0.21, 0.33), (0.98, 0.56, 0.04), (0.99, 1.0, 0.64))


def heat_colours(heat: torch.Tensor) -> torch.Tensor:
    """[H, W] from 0 to 1 as colours [H, W, 3], dark violet to light yellow."""
    stops = torch.tensor(_STOPS).to(heat)
    place = heat.clamp(0.0, 1.0) * (len(stops) - 1)
    below = place.floor().long().clamp(max=len(stops) - 2)
    return torch.lerp(stops[below], stops[below + 1], (place - below)[..., None])


def labelled_grid(pictures: torch.Tensor, labels: list[str], columns: int = 4) -> torch.Tensor:
    """Pictures [n, H, W, 3] in rows of at most `columns`, each under its label: [1, h, w, 3]."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    height, width = pictures.shape[1:3]
    line = max(14, height // 12)
    font = ImageFont.load_default(size=line * 0.75)
    across = min(columns, len(pictures))
    sheet = Image.new("RGB", (across * width, -(-len(pictures) // across) * (height + line)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(index, across)
        x, y = column * width, row * (height + line)
        pen.text((x + width / 2, y + line / 2), label, fill="#1f2328", font=font, anchor="mm")
        pixels = (picture.clamp(0, 1).cpu().numpy() * 255.0).round().astype(np.uint8)
        sheet.paste(Image.fromarray(pixels), (x, y + line))
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255.0)[None]
