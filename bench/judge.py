"""How close pictures are, and which part of a drawn scene an edit must keep: one judge for the demo
and the benches."""

from __future__ import annotations

import dataclasses

import numpy as np

from bench.cases import Edit
from tools.pictures import psnr
from toy.scenes import kept


@dataclasses.dataclass(frozen=True)
class Judged:
    """What was found in an edited picture.

    wrong: the kinds of words that were not read as the target says; background: dB over what the
    edit must keep, as the mean over those pixels and, as the field's benchmark does, over the whole
    picture with all others black in both; dB and structural similarity to the true edit; dB to the
    source.
    """

    wrong: tuple[str, ...]
    background_psnr: float
    background_psnr_zeroed: float
    truth_psnr: float
    truth_ssim: float
    source_psnr: float

    @property
    def success(self) -> bool:
        """Whether every word of the target is read back."""
        return not self.wrong


def judge(edit: Edit, picture: np.ndarray) -> Judged:
    """An edited picture, float [H, W, 3] in [0, 1], against what the edit should give."""
    from toy.reader import read

    truth, source = edit.truth.render(), edit.scene.render()
    where = kept(edit.scene, edit.truth)
    agreement = read(picture).agreement(edit.truth)
    return Judged(
        tuple(kind for kind, right in agreement.items() if not right),
        psnr(picture, source, where),
        psnr(picture * where[..., None], source * where[..., None]),
        psnr(picture, truth),
        ssim(picture, truth),
        psnr(picture, source),
    )


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two pictures [H, W, 3] in [0, 1] (Wang et al. 2004: Gaussian
    windows, sigma 1.5)."""
    import torch

    from bench.pie.metrics import torchmetrics

    both = (
        torch.from_numpy(np.moveaxis(picture, -1, 0)[None].astype(np.float64))
        for picture in (one, other)
    )
    return float(
        torchmetrics().functional.image.structural_similarity_index_measure(*both, data_range=1.0)
    )
