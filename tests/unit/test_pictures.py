"""Edits pasted back into pictures: the exact place at every size, and every bit outside of it."""

from __future__ import annotations

import pytest
import torch

from pivot_edit.core.errors import PivotError
from pivot_edit.core.pictures import check_rows, corner_of, cut_mask, feathered, paste, rows

SIZES = [(131, 135), (128, 128), (133, 142), (64, 127), (97, 64)]
"""Height and width, odd and even rests alike."""


def pictures(count: int, size: tuple[int, int], channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, *size, channels, generator=torch.Generator().manual_seed(seed))


def middle(size: tuple[int, int], factor: int) -> tuple[slice, slice]:
    """What an encoder with this factor takes: whole positions, half of the rest before them."""
    starts = [side % factor // 2 for side in size]
    lengths = [side // factor * factor for side in size]
    down, across = (slice(at, at + n) for at, n in zip(starts, lengths, strict=True))
    return down, across


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("factor", [8, 16, 32])
@pytest.mark.parametrize("size", SIZES)
def test_an_edit_lands_where_it_was_encoded(size, factor: int, channels: int) -> None:
    whole = pictures(2, size, channels)
    down, across = middle(size, factor)
    edited = pictures(2, (down.stop - down.start, across.stop - across.start), 3, 1)
    result, mask = paste(whole, edited, factor)
    wanted = whole.expand(-1, -1, -1, 3).clone() if channels == 1 else whole.clone()
    wanted[:, down, across, :3] = edited
    assert torch.equal(result, wanted)
    assert mask.shape == (2, *size) and mask.sum() == edited[..., 0].numel()
    assert mask[:, down, across].min() == 1.0


@pytest.mark.parametrize(
    ("part", "whole", "factor", "corner"),
    [
        ((128, 128), (131, 135), 8, (1, 3)),
        ((128, 128), (129, 129), 8, (0, 0)),
        ((128, 96), (143, 127), 32, (7, 15)),
        ((128, 112), (143, 127), 16, (7, 7)),
        ((143, 127), (143, 127), 1, (0, 0)),
        ((128, 120), (135, 127), 8, (3, 3)),
        ((128, 120), (136, 127), 8, None),
        ((128, 128), (127, 128), 8, None),
        ((64, 64), (512, 512), 8, None),
    ],
)
def test_a_part_is_known_by_its_size(part, whole, factor, corner) -> None:
    assert corner_of(part, whole, factor) == corner


def test_a_mask_of_the_edit_and_one_of_the_picture_paste_alike() -> None:
    whole, edited = pictures(1, (131, 135)), pictures(1, (128, 128), seed=1)
    drawn = torch.rand(1, 131, 135, generator=torch.Generator().manual_seed(2))
    by_picture, shares = paste(whole, edited, 8, drawn)
    by_edit, _ = paste(whole, edited, 8, drawn[:, 1:129, 3:131])
    assert torch.equal(by_picture, by_edit)
    assert torch.equal(shares[:, 1:129, 3:131], drawn[:, 1:129, 3:131])
    assert shares[:, 0].max() == shares[:, :, :3].max() == shares[:, 129:].max() == 0.0
    inside = whole[:, 1:129, 3:131]
    wanted = inside + drawn[:, 1:129, 3:131, None] * (edited - inside)
    torch.testing.assert_close(by_picture[:, 1:129, 3:131], wanted)


def test_where_the_mask_is_0_or_1_every_bit_is_one_of_both() -> None:
    whole, edited = pictures(1, (131, 135)), pictures(1, (128, 128), seed=1)
    mask = (torch.rand(1, 128, 128, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    result, shares = paste(whole, edited, 8, mask)
    out = shares == 0.0
    assert torch.equal(result[out], whole[out])
    assert torch.equal(result[:, 1:129, 3:131][mask == 1.0], edited[mask == 1.0])


def test_several_edits_of_several_pictures_are_pasted_into_their_own() -> None:
    """Edits come target after target, each with all pictures."""
    whole, edited = pictures(2, (67, 66)), pictures(6, (64, 64), seed=1)
    masks = (torch.rand(6, 64, 64, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    result, shares = paste(whole, edited, 8, masks)
    assert result.shape == (6, 67, 66, 3) and shares.shape == (6, 67, 66)
    for i in range(6):
        alone, share = paste(whole[i % 2 : i % 2 + 1], edited[i : i + 1], 8, masks[i : i + 1])
        assert torch.equal(result[i], alone[0]) and torch.equal(shares[i], share[0])
    one_for_all = paste(whole[:1], edited, 8, masks[:1])[0]
    assert torch.equal(one_for_all[3], paste(whole[:1], edited[3:4], 8, masks[:1])[0][0])


def test_inputs_stay_as_they_are() -> None:
    whole, edited, mask = pictures(1, (66, 66)), pictures(1, (64, 64)), torch.ones(1, 64, 64)
    before = [each.clone() for each in (whole, edited, mask)]
    paste(whole, edited, 8, mask, 3)
    assert all(map(torch.equal, (whole, edited, mask), before))


def test_half_precision_and_bare_masks_are_taken() -> None:
    whole, edited = pictures(1, (66, 66)), pictures(1, (64, 64), seed=1).half()
    result, _ = paste(whole, edited, 8, torch.ones(64, 64))
    assert result.dtype == torch.float32
    assert torch.equal(result[:, 1:65, 1:65], edited.float())


def test_smaller_masks_in_proportion_are_scaled() -> None:
    whole, edited = pictures(1, (66, 130)), pictures(1, (64, 128), seed=1)
    mask = torch.zeros(1, 32, 64)
    mask[:, :, 32:] = 1.0
    _, shares = paste(whole, edited, 8, mask)
    assert shares[0, 1:65, 1:64].max() == 0.0 and shares[0, 1:65, 67:129].min() == 1.0


@pytest.mark.parametrize(
    ("whole", "edited", "mask", "message"),
    [
        ((1, 131, 135), (1, 120, 128), None, "one of 128x120 for a picture of 135x131 in Paste"),
        ((1, 1024, 1024), (1, 512, 512), None, "One that was scaled before is pasted into"),
        ((1, 64, 64), (1, 128, 128), None, "the image that went into VAE Encode"),
        ((2, 66, 66), (3, 64, 64), None, "pictures for 3 edit.*, but got 2 in Paste Edit"),
        ((1, 66, 66), (3, 64, 64), (2, 64, 64), "masks for 3 edit.*, but got 2 in Paste Edit"),
        ((1, 66, 66), (1, 64, 64), (1, 64, 128), "in proportion to 64x64 or 66x66, but got one of"),
        ((1, 130, 130), (1, 128, 128), (1, 64, 64), "the empty one of 64x64 that Load Image has"),
    ],
)
def test_what_does_not_fit_is_refused(whole, edited, mask, message: str) -> None:
    with pytest.raises(PivotError, match=message):
        paste(
            torch.rand(*whole, 3),
            torch.rand(*edited, 3),
            8,
            None if mask is None else torch.zeros(mask),
        )


def test_a_picture_of_nan_is_refused() -> None:
    with pytest.raises(PivotError, match="finite numbers in the edited picture"):
        paste(torch.rand(1, 64, 64, 3), torch.full((1, 64, 64, 3), torch.nan), 8)


def test_feathers_fade_inwards_and_thin_things_stay() -> None:
    mask = torch.zeros(1, 20, 20)
    mask[:, 4:15, 4:15] = 1.0
    mask[:, 18] = 1.0
    soft = feathered(mask, 3)
    assert torch.equal(feathered(mask, 0), mask)
    assert (soft[mask == 0.0] == 0.0).all()
    assert soft[0, 9, 3:16].tolist() == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0]
    )
    assert soft[0, 18].tolist() == pytest.approx([0.25] * 20)


def test_a_feather_does_not_fade_at_the_border_of_the_picture() -> None:
    """Only towards the strips that the encoder left out."""
    whole, edited = torch.zeros(1, 64, 71, 3), torch.ones(1, 64, 64, 3)
    result, _ = paste(whole, edited, 8, None, 2)
    assert result[0, 0, :7, 0].tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 1])
    assert result[0, :, 30].min() == 1.0


@pytest.mark.parametrize(
    ("drawn", "part"),
    [
        ((131, 135), (slice(1, 129), slice(3, 131))),
        ((128, 128), (slice(0, 128), slice(0, 128))),
        ((137, 128), (slice(None), slice(None))),
        ((16, 16), (slice(None), slice(None))),
    ],
)
def test_a_mask_drawn_on_the_picture_is_cut_as_the_picture_is(drawn, part) -> None:
    mask = torch.rand(drawn, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cut_mask(mask, (16, 16)), mask[part])


def test_rows_follow_the_edits() -> None:
    assert rows(torch.tensor([[0], [1]]), 6).flatten().tolist() == [0, 1, 0, 1, 0, 1]
    check_rows(6, "here", pictures=2, masks=6)
    with pytest.raises(PivotError, match="reconstructions for 6 edit.*, but got 4 in here"):
        check_rows(6, "here", pictures=1, reconstructions=4)
