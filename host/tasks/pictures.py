"""Latents back to pictures, and pictures side by side."""

from __future__ import annotations

from typing import Any

import torch

from ...core.errors import check_finite


def decode(vae: Any, latent: dict[str, Any]) -> torch.Tensor:
    """IMAGE [B, H, W, 3] of a LATENT. Raises PivotError if the VAE gives NaN."""
    return check_finite(vae.decode(latent["samples"]), "the decoded picture", "VAE decode")


def comparison(*pictures: torch.Tensor, gap: int = 8) -> torch.Tensor:
    """Pictures [B, H, W, 3] side by side on white, at the last one's size and on its device.

    All are centred and cropped alike.
    """
    from comfy.utils import common_upscale

    height, width = pictures[-1].shape[1:3]
    batch = max(len(picture) for picture in pictures)
    columns = []
    for picture in pictures:
        # under --gpu-only a loaded picture is on the CPU, a decoded one is not
        fitted = common_upscale(
            picture[..., :3].to(pictures[-1].device).movedim(-1, 1),
            width,
            height,
            "lanczos",
            "center",
        ).movedim(1, -1)
        fitted = fitted.expand(batch, -1, -1, -1) if len(fitted) == 1 else fitted[:batch]
        columns += [
            fitted,
            torch.ones(batch, height, gap, 3, dtype=fitted.dtype, device=fitted.device),
        ]
    return torch.cat(columns[:-1], dim=2)
