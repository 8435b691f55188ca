"""Pictures [B, H, W, channels]: what VAE Encode takes of one, and an edit pasted back into it."""

from __future__ import annotations

import torch

from .errors import PivotError, check_finite

PASTE = "Paste Edit"
_EMPTY = (64, 64)
"""The size of Load Image's mask of a picture without transparency."""
Size = tuple[int, int]


def corner_of(part: Size, whole: Size, factor: int) -> Size | None:
    """(top, left) of an encoded part (height, width) in its picture; None where it is of another.

    Encoders leave out what is over beyond whole positions of the latent, half of it on each side.
    A position has `factor` pixels along one side.
    """
    if part != tuple(side - side % factor for side in whole):
        return None
    return (whole[0] - part[0]) // 2, (whole[1] - part[1]) // 2


def size_of(picture: torch.Tensor) -> Size:
    """(height, width) of pictures."""
    return picture.shape[1], picture.shape[2]


def cut(picture: torch.Tensor, corner: Size, part: Size) -> torch.Tensor:
    """The part of pictures [B, H, W, ...] from a corner, a view."""
    return picture[:, corner[0] : corner[0] + part[0], corner[1] : corner[1] + part[1]]


def cut_mask(mask: torch.Tensor, latent: Size, factor: int = 8) -> torch.Tensor:
    """The part of a mask [H, W] that a latent shows, where it was drawn on the whole picture."""
    part = (factor * latent[0], factor * latent[1])
    corner = corner_of(part, (mask.shape[0], mask.shape[1]), factor)
    return mask if corner is None else cut(mask[None], corner, part)[0]


def check_rows(edits: int, where: str, **counts: int) -> None:
    """Raise PivotError unless edits come evenly: as many for each picture, target after target."""
    for name, count in counts.items():
        if count < 1 or edits % count:
            raise PivotError(
                f"{name} for {edits} edit(s): one, or as many as leave no rest",
                f"{count}",
                f"Connect the {name} of these very edits, in their order.",
                where,
            )


def rows(each: torch.Tensor, edits: int) -> torch.Tensor:
    """A copy with one row for every edit: of the first to the last picture, then so again."""
    return each.repeat(edits // len(each), *[1] * (each.ndim - 1))


def paste(
    image: torch.Tensor,
    edited: torch.Tensor,
    factor: int,
    mask: torch.Tensor | None = None,
    feather: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edits within their pictures [n, H, W, channels], and the masks [n, H, W] they are pasted by.

    Outside of the mask every bit is the picture's, and where the mask is 1 the edit's. The mask's
    edges fade over `feather` pixels, inwards. `factor` is the encoder's. Raises PivotError where
    sizes or numbers do not fit.
    """
    whole, part, count = size_of(image), size_of(edited), len(edited)
    corner = corner_of(part, whole, factor)
    if corner is None:
        raise PivotError(
            "an edit of the picture as this VAE encodes it, in whole positions of "
            f"{factor}x{factor} pixels",
            f"one of {_shape(part)} for a picture of {_shape(whole)}",
            "Connect the image that went into VAE Encode. One that was scaled before is pasted "
            "into the scaled one.",
            PASTE,
        )
    check_rows(count, PASTE, pictures=len(image))
    check_finite(edited, "the edited picture", PASTE)
    shares = feathered(_placed(mask, whole, part, corner, count).to(image.device), feather)
    result = rows(_coloured(image), count)
    inside = cut(result, corner, part)[..., :3]
    share = cut(shares, corner, part)[..., None].to(result.dtype)
    new = edited[..., :3].to(inside)
    mixed = torch.where(share >= 1.0, new, torch.lerp(inside, new, share.expand_as(inside)))
    inside.copy_(torch.where(share <= 0.0, inside, mixed))
    return result, shares


def _coloured(image: torch.Tensor) -> torch.Tensor:
    """Pictures of three channels or more."""
    return image if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, -1, 3)


def _shape(size: Size) -> str:
    """A size as people write it."""
    return f"{size[1]}x{size[0]}"


def _placed(
    mask: torch.Tensor | None, whole: Size, part: Size, corner: Size, count: int
) -> torch.Tensor:
    """The mask [count, H, W] over the whole picture, 0 beyond the part that was encoded."""
    result = torch.zeros(count, *whole)
    area = cut(result, corner, part)
    if mask is None:
        area.fill_(1.0)
        return result
    mask = mask.detach().float().cpu().reshape(-1, 1, *mask.shape[-2:]).clamp(0.0, 1.0)
    check_rows(count, PASTE, masks=len(mask))
    area.copy_(rows(_fitted(mask, whole, part, corner), count))
    return result


def _fitted(mask: torch.Tensor, whole: Size, part: Size, corner: Size) -> torch.Tensor:
    """Masks [B, 1, h, w] of the picture or of its encoded part, as [B, height, width] of the part.

    Masks of another size are scaled where they are in proportion.
    """
    size = (mask.shape[-2], mask.shape[-1])
    if size == _EMPTY and size not in (whole, part) and not mask.any():
        raise PivotError(
            f"a mask of {_shape(part)} or {_shape(whole)}",
            f"the empty one of {_shape(size)} that Load Image has without transparency",
            "Connect the mask of Edit Sampler, a drawn one, or none.",
            PASTE,
        )
    fit = next((one for one in (part, whole) if size == one), None) or next(
        (one for one in (part, whole) if _alike(size, one)), None
    )
    if fit is None:
        raise PivotError(
            f"a mask in proportion to {_shape(part)} or {_shape(whole)}",
            f"one of {_shape(size)}",
            "Connect the mask of Edit Sampler, or one drawn on the picture.",
            PASTE,
        )
    if size != fit:
        mask = torch.nn.functional.interpolate(mask, fit, mode="bilinear", antialias=True)
    return mask[:, 0] if fit == part else cut(mask[:, 0], corner, part)


def _alike(size: Size, other: Size) -> bool:
    """Whether two sizes are in one proportion, but for the rounding of a side."""
    return abs(size[0] * other[1] - size[1] * other[0]) < max(other)


def feathered(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """Masks [n, H, W] that fade to their edges within, over so many pixels.

    They fade towards what is left out, not towards the border of the picture.
    """
    # the mean of a mask shrunk 0 to n times: 0 stays 0, and what is thinner does not vanish
    total, shrunk = mask.clone(), mask[:, None]
    for _ in range(pixels):
        shrunk = -torch.nn.functional.max_pool2d(-shrunk, 3, 1, 1)
        total += shrunk[:, 0]
    return total / (pixels + 1)
