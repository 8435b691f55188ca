"""Latents back to pictures, and pictures side by side."""

from __future__ import annotations

from typing import Any

import torch

from ...core.errors import check_finite
from ...core.pictures import check_rows, corner_of, cut, paste, rows, size_of

COMPARE = "Decode and Compare"


def decode(vae: Any, latent: dict[str, Any]) -> torch.Tensor:
    """IMAGE [B, H, W, 3] of a LATENT. Raises PivotError if the VAE gives NaN."""
    return check_finite(vae.decode(latent["samples"]), "the decoded picture", "VAE decode")


def check_comparable(
    image: torch.Tensor, edited: dict[str, Any], reconstructed: dict[str, Any]
) -> None:
    """Raise PivotError, before anything is decoded, unless edits are of these pictures."""
    counts = {"pictures": len(image), "reconstructions": len(reconstructed["samples"])}
    check_rows(len(edited["samples"]), COMPARE, **counts)


def comparison(
    vae: Any,
    image: torch.Tensor,
    reconstructed: torch.Tensor,
    edited: torch.Tensor,
    gap: int = 8,
) -> torch.Tensor:
    """Source, reconstruction and edit [B, H, W, 3] side by side on white, a row for every edit.

    Of the source the part that was encoded is shown. All have the edit's size and device.
    """
    height, width = size_of(edited)
    columns: list[torch.Tensor] = []
    for picture in (encoded(vae, image, size_of(edited)), reconstructed, edited):
        column = rows(_sized(picture.to(edited.device), height, width), len(edited))
        columns += [column, torch.ones_like(column[:, :, :1]).expand(-1, -1, gap, -1)]
    return torch.cat(columns[:-1], dim=2)


def encoded(vae: Any, image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The part of an IMAGE that a VAE has encoded to a size; all of it if that is of another."""
    corner = corner_of(size, size_of(image), factor_of(vae))
    return image if corner is None else cut(image, corner, size)


def factor_of(vae: Any) -> int:
    """Pixels along one side of a latent's position, to which a VAE crops pictures."""
    return int(vae.spacial_compression_encode()) if vae.crop_input else 1


def paste_edit(
    vae: Any,
    image: torch.Tensor,
    edited: torch.Tensor,
    feather: int,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edits within their pictures, and the masks they are pasted by (core/pictures.py)."""
    return paste(image, edited, factor_of(vae), mask, feather)


def _sized(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pictures in three channels at a size, centred and cropped."""
    from comfy.utils import common_upscale

    coloured = picture[..., :3].expand(-1, -1, -1, 3).movedim(-1, 1)
    return common_upscale(coloured, width, height, "lanczos", "center").movedim(1, -1)
