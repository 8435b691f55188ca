"""How close pictures are, and which part of a drawn scene an edit must keep: one judge for the demo and the benches."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from bench.cases import Edit
from toy.scenes import Scene

UNCHANGED = 2 / 255  # a pixel that differs less from the true edit counts as one the edit must keep


def to_array(picture: Image.Image) -> np.ndarray:
    """Float32 [H, W, 3] in [0, 1]."""
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0


def to_image(picture: np.ndarray) -> Image.Image:
    """The 8-bit picture of a float array [H, W, 3] in [0, 1]."""
    return Image.fromarray((picture * 255.0).round().astype(np.uint8))


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio in dB, of the pixels weighted by `where` [H, W] (default: all alike); at most 100."""
    error = np.square(one.astype(np.float64) - other).mean(-1)
    return float(-10.0 * np.log10(max(np.average(error, weights=where), 1e-10)))


def kept(scene: Scene, truth: Scene) -> np.ndarray:
    """Weights [H, W] of the pixels that an edit from `scene` to `truth` must leave alone.

    Outside the object before and after; inside the object if the background's word was changed. Pixels that
    the true edit changes all the same (the object's shadow) do not count.
    """
    before, after = scene.object_mask(), truth.object_mask()
    moved = scene.background != truth.background
    region = np.minimum(before, after) if moved else 1.0 - np.maximum(before, after)
    return region * (np.abs(scene.render() - truth.render()).max(-1) <= UNCHANGED)


@dataclasses.dataclass(frozen=True)
class Judged:
    """What was found in an edited picture.

    wrong: the kinds of words that were not read as the target says; background: dB over what the edit must keep, as the
    mean over those pixels and, as the field's benchmark does, over the whole picture with all others black in both; dB
    and structural similarity to the true edit; dB to the source.
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
    """Structural similarity of two pictures [H, W, 3] in [0, 1] (Wang et al. 2004: Gaussian windows, sigma 1.5)."""
    import torch

    from bench.pie.metrics import torchmetrics

    both = (torch.from_numpy(np.moveaxis(picture, -1, 0)[None].astype(np.float64)) for picture in (one, other))
    return float(torchmetrics().functional.image.structural_similarity_index_measure(*both, data_range=1.0))
