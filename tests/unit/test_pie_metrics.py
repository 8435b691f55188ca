"""PIE-Bench's figures on pictures whose values are known by hand, and what is said where weights
are missing."""

from __future__ import annotations

import math
import pathlib
import socket
import sys

import numpy as np
import pytest
import torch

from bench.pie import metrics
from bench.pie.metrics import COLUMNS, METRICS, Measures, Pair, Weights, quiet, untouched

PIXELS = ["psnr", "mse", "ssim"]


@pytest.fixture(scope="module")
def pixels() -> Measures:
    with quiet():
        pytest.importorskip("torchmetrics")
    return Measures(PIXELS, Weights())


def pair(inside: int = 200, outside: int = 110, edited: float = 0.5, size: int = 64) -> Pair:
    """A picture of 100 whose background became `outside` and the rest, a share of the columns,
    `inside`."""
    mask = np.zeros((size, size), dtype=bool)
    mask[:, : int(size * edited)] = True
    after = np.where(mask[..., None], inside, outside).astype(np.uint8).repeat(3, axis=2)
    return Pair(np.full((size, size, 3), 100, dtype=np.uint8), after, mask, "a cat")


def test_psnr_and_mse_have_their_values_by_hand(pixels: Measures) -> None:
    found = pixels(pair())
    assert found["mse_masked"] == pytest.approx((10 / 255) ** 2)
    assert found["psnr_masked"] == pytest.approx(20 * math.log10(255 / 10))  # 28.13 dB
    assert found["mse"] == pytest.approx(
        (10 / 255) ** 2 / 2, rel=1e-5
    )  # half of the picture is black in both
    assert found["psnr"] == pytest.approx(20 * math.log10(255 / 10) + 10 * math.log10(2), abs=1e-3)


def test_black_pixels_flatter_and_the_masked_mean_does_not(pixels: Measures) -> None:
    small, large = pixels(pair(edited=0.25)), pixels(pair(edited=0.75))
    assert large["psnr"] - small["psnr"] == pytest.approx(10 * math.log10(3), abs=1e-3)
    assert large["psnr_masked"] == pytest.approx(small["psnr_masked"])


def test_what_happens_in_the_edited_part_does_not_count(pixels: Measures) -> None:
    assert pixels(pair(inside=0)) == pixels(pair(inside=255))


def test_masked_ssim_has_its_value_by_hand(pixels: Measures) -> None:
    """Even pictures: (2 a b + c1) / (a^2 + b^2 + c1), c1 = 0.01^2; the rest is float32 rounding of
    variances."""
    one, other = 100 / 255, 200 / 255
    by_hand = (2 * one * other + 1e-4) / (one**2 + other**2 + 1e-4)  # 0.8000
    assert pixels(pair(outside=200))["ssim_masked"] == pytest.approx(by_hand, abs=1e-3)


def test_masked_ssim_sees_only_windows_without_edited_pixels() -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[16, 16] = True
    pure = untouched(mask)
    assert pure.sum() == 32 * 32 - 11 * 11 and not pure[11:22, 11:22].any() and pure[10].all()


def test_where_everything_changes_there_is_no_background(pixels: Measures) -> None:
    found = pixels(pair(edited=1.0))
    assert set(found) == {"psnr", "psnr_masked", "mse", "mse_masked", "ssim", "ssim_masked"}
    assert all(math.isnan(value) for value in found.values())


def test_equal_backgrounds_have_an_infinite_psnr(pixels: Measures) -> None:
    found = pixels(pair(outside=100))
    assert found["psnr"] == found["psnr_masked"] == math.inf and found["mse"] == 0.0
    assert found["ssim"] == pytest.approx(1.0)


def test_values_are_those_of_the_metrics_the_reference_runs(pixels: Measures) -> None:
    """One picture through torchmetrics' modules, fed as evaluation/matrics_calculator.py feeds
    them."""
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
    from torchmetrics.regression import MeanSquaredError

    draw = np.random.default_rng(0)
    before, after = (draw.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(2))
    mask = draw.random((64, 64)) < 0.4
    kept = 1.0 - mask[..., None]
    given = [
        torch.tensor(np.float32(picture / 255.0 * kept)).permute(2, 0, 1)[None]
        for picture in (before, after)
    ]
    found = pixels(Pair(before, after, mask, ""))
    assert found["psnr"] == pytest.approx(
        PeakSignalNoiseRatio(data_range=1.0)(*given).item(), rel=1e-5
    )
    assert found["ssim"] == pytest.approx(
        StructuralSimilarityIndexMeasure(data_range=1.0)(*given).item(), rel=1e-5
    )
    flat = [one[0].contiguous() for one in given]
    assert found["mse"] == pytest.approx(MeanSquaredError()(*flat).item(), rel=1e-5)


# -- networks, small and random, from the disk
# -------------------------------------------------------------


def test_lpips_takes_a_file_and_sees_only_the_background(tmp_path: pathlib.Path) -> None:
    with quiet():
        pytest.importorskip("torchmetrics")
        from torchvision.models import squeezenet1_1
    torch.manual_seed(0)
    torch.save(squeezenet1_1(weights=None).state_dict(), tmp_path / "mine.pth")
    before = torch.hub.get_dir()
    found = Measures(["lpips"], Weights(lpips=str(tmp_path / "mine.pth")))
    assert "lpips" not in found.missing and torch.hub.get_dir() == before
    assert found(pair(outside=100))["lpips"] == 0.0
    assert found(pair(outside=160))["lpips"] > found(pair(outside=110))["lpips"] > 0.0
    with metrics.squeezenet(str(tmp_path / "mine.pth")):
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        of_0_to_1 = LearnedPerceptualImagePatchSimilarity(net_type="squeeze", normalize=True)
    wanted = of_0_to_1(*metrics.zeroed(pair(outside=160))).item()
    assert found(pair(outside=160))["lpips"] == pytest.approx(wanted, rel=1e-5)
    assert math.isnan(found(pair(edited=1.0))["lpips"])


def tiny_clip(folder: pathlib.Path) -> str:
    """A random CLIP with the alphabet for words, saved as a folder."""
    import json

    with quiet():
        transformers = pytest.importorskip("transformers")
        config = transformers.CLIPConfig(
            text_config={
                "vocab_size": 60,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "bos_token_id": 52,
                "eos_token_id": 53,
                "pad_token_id": 53,
            },
            vision_config={
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 8,
            },
            projection_dim=8,
        )
        torch.manual_seed(0)
        transformers.CLIPModel(config).save_pretrained(folder)
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = [
            *letters,
            *(f"{letter}</w>" for letter in letters),
            "<|startoftext|>",
            "<|endoftext|>",
        ]
        (folder / "vocab.json").write_text(
            json.dumps({word: index for index, word in enumerate(words)})
        )
        (folder / "merges.txt").write_text("#version: 0.2\n")
        tokenizer = transformers.CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt")
        )
        pictures = transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        transformers.CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.mark.filterwarnings(
    "ignore"
)  # what transformers says of a processor that was never published
def test_clip_scores_the_whole_and_the_edited_part(tmp_path: pathlib.Path) -> None:
    with quiet():
        pytest.importorskip("torchmetrics")
    found = Measures(["clip"], Weights(clip=tiny_clip(tmp_path)))
    assert "clip_whole" not in found.missing
    one = found(pair(inside=200, outside=30))
    other = found(pair(inside=200, outside=250))
    assert set(one) == {"clip_whole", "clip_edited"}
    assert (
        one["clip_edited"] == pytest.approx(other["clip_edited"])
        and one["clip_whole"] != other["clip_whole"]
    )
    assert found(pair(edited=1.0))["clip_whole"] == pytest.approx(
        found(pair(edited=1.0))["clip_edited"]
    )


def test_structure_takes_a_folder(tmp_path: pathlib.Path) -> None:
    with quiet():
        transformers = pytest.importorskip("transformers")
        sizes = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
        transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=224)).save_pretrained(
            tmp_path
        )
    found = Measures(["structure"], Weights(dino=str(tmp_path)))
    same = pair(inside=100, outside=100)
    assert "structure" not in found.missing and found(same) == {"structure": 0.0}


# -- what is missing
# ---------------------------------------------------------------------------------------


def test_weights_that_cannot_be_had_are_said_for_each_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with quiet():
        pytest.importorskip("torchmetrics")

    def nobody(*where: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", nobody)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    found = Measures(list(METRICS), Weights(dino="nobody/dino", clip="nobody/clip"))
    lost = "nobody/{} is not in the cache and huggingface.co cannot be reached (no network)"
    assert found.missing["structure"] == f"OSError: {lost.format('dino')}"
    assert (
        found.missing["clip_whole"]
        == found.missing["clip_edited"]
        == f"OSError: {lost.format('clip')}"
    )
    assert found.missing["lpips"].endswith("download.pytorch.org cannot be reached (no network)")
    assert set(found(pair())) | set(found.missing) == set(COLUMNS)


def test_without_the_package_each_figure_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    found = Measures(["psnr", "mse", "ssim", "lpips", "clip"], Weights())
    for name in ("psnr", "mse_masked", "ssim", "lpips", "clip_whole"):
        assert "pip install -r tools/requirements-eval.txt" in found.missing[name]
    assert found.missing["structure"] == "not asked for" and found(pair()) == {}


def test_a_damaged_folder_is_said_without_asking_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with quiet():
        pytest.importorskip("transformers")
    monkeypatch.setattr(metrics, "reach", lambda *asked: pytest.fail("the network was asked"))
    assert (
        "no file named" in Measures(["structure"], Weights(dino=str(tmp_path))).missing["structure"]
    )
