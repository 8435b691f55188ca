"""Structure distance (Tumanyan et al. 2022, arXiv 2201.00424, as PIE-Bench measures it): how alike
the keys of a DINO ViT's last block are to each other, at every pair of places, in two pictures.

Rules read in cure-lab/PnPInversion evaluation/matrics_calculator.py at f480116d: keys of layer 11
of ViT-B/8 (its last), heads joined, class token included; cosine of every pair; mean squared
difference; short side 224, bilinear without antialiasing (the torchvision 0.13.1 of that repository
resizes tensors so), ImageNet's mean and deviation taken off a picture of 0 to 255, not of 0 to 1: a
slip that every published figure contains.
"""

from __future__ import annotations

from typing import Any

import torch

SHORT, LONGEST = 224, 480
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resized(pictures: torch.Tensor, short: int = SHORT, longest: int = LONGEST) -> torch.Tensor:
    """[B, 3, H, W] with its short side made `short`, or less where the long side would pass
    `longest`."""
    height, width = pictures.shape[-2:]
    near, far = short, int(short * max(height, width) / min(height, width))
    if far > longest:
        near, far = int(longest * near / far), longest
    size = (near, far) if height <= width else (far, near)
    if size == (height, width):
        return pictures
    return torch.nn.functional.interpolate(
        pictures, size, mode="bilinear", align_corners=False, antialias=False
    )


def normalised(pictures: torch.Tensor, parity: bool = True) -> torch.Tensor:
    """ImageNet's normalisation of pictures in 0..255; parity: without bringing them to 0..1
    first."""
    mean, deviation = (
        torch.tensor(three, device=pictures.device)[:, None, None] for three in (MEAN, DEVIATION)
    )
    return ((pictures if parity else pictures / 255.0) - mean) / deviation


def last_keys(model: torch.nn.Module) -> torch.nn.Module:
    """The projection to keys of the last block of a transformers ViT; ValueError if there is
    none."""
    found = [
        part for name, part in model.named_modules() if name.rpartition(".")[2] in ("key", "k_proj")
    ]
    if not found:
        raise ValueError(f"expected a ViT with projections named key, got {type(model).__name__}")
    return found[-1]


def self_similarity(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """[B, T, T]: cosines between the last block's keys at all T places (class token first) of [B,
    3, H, W]."""
    seen: list[torch.Tensor] = []
    hook = last_keys(model).register_forward_hook(lambda part, given, keys: seen.append(keys))
    try:
        with torch.no_grad():
            model(pixels, interpolate_pos_encoding=True)
    finally:
        hook.remove()
    keys = seen[0]
    lengths = keys.norm(dim=2, keepdim=True)
    return (keys @ keys.mT) / (lengths @ lengths.mT).clamp(min=1e-8)


def distance(
    model: Any, one: torch.Tensor, other: torch.Tensor, parity: bool = True
) -> torch.Tensor:
    """[B] distances between pictures [B, 3, H, W] in 0..255; 0 for equal ones."""
    maps = [
        self_similarity(model, normalised(resized(pictures), parity)) for pictures in (one, other)
    ]
    return (maps[0] - maps[1]).square().mean(dim=(1, 2))
