"""The seven figures of PIE-Bench for one picture, by torchmetrics and transformers
(tools/requirements-eval.txt).

Rules as read in cure-lab/PnPInversion evaluation/ at f480116d: PSNR, MSE, SSIM and LPIPS (squeeze)
of both pictures with what is to change painted black, averaged over the whole picture, black
included; CLIP ViT-L/14 of the target prompt with the whole picture, and with all black but what is
to change. Beside each per-pixel figure stands the mean over the background alone (`_masked`), which
does not depend on how large the mask is.

A figure whose package or weights are missing is not measured, and says why; no stand-in is ever
used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bench.pie import structure

DINO, CLIP = "facebook/dino-vitb8", "openai/clip-vit-large-patch14"
WINDOW = (
    11  # pixels that one place of SSIM sees: a Gaussian of deviation 1.5, cut at 3.5 deviations
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A picture before and after, uint8 [H, W, 3]; mask: bool [H, W], True where it is to change;
    the target prompt."""

    source: np.ndarray
    edited: np.ndarray
    mask: np.ndarray
    prompt: str


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where networks come from: a name at Hugging Face or a folder; lpips: a file of torchvision's
    squeezenet1_1.
    parity: the reference's slip in the structure distance."""

    dino: str = DINO
    clip: str = CLIP
    lpips: str = ""
    parity: bool = True


@dataclasses.dataclass(frozen=True)
class Column:
    """A figure in the tables: shown times `scale`, as the papers do."""

    title: str
    scale: float = 1.0


COLUMNS = {
    "structure": Column("Structure x10^3 ↓", 1e3),
    "psnr": Column("PSNR ↑"),
    "lpips": Column("LPIPS x10^3 ↓", 1e3),
    "mse": Column("MSE x10^4 ↓", 1e4),
    "ssim": Column("SSIM x10^2 ↑", 1e2),
    "clip_whole": Column("CLIP whole ↑"),
    "clip_edited": Column("CLIP edited ↑"),
    "psnr_masked": Column("PSNR masked ↑"),
    "mse_masked": Column("MSE masked x10^4 ↓", 1e4),
    "ssim_masked": Column("SSIM masked x10^2 ↑", 1e2),
}
Values = dict[str, float]
Measure = Callable[[Pair], Values]
NAN = float("nan")


def zeroed(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """Both pictures [1, 3, H, W] in 0..1, black where the picture is to change: the field's way."""
    kept = ~pair.mask[..., None]
    before, after = (
        _tensor((picture / np.float32(255.0)) * kept) for picture in (pair.source, pair.edited)
    )
    return before, after


def _tensor(picture: np.ndarray) -> torch.Tensor:
    return (
        torch.from_numpy(picture.astype(np.float32))
        .permute(2, 0, 1)[None]
        .contiguous()
        .to(_device())
    )


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def on_background(measure: Callable[[Pair], Values], *names: str) -> Measure:
    """NaN for these columns where everything is to change: there is no background to compare."""
    return lambda pair: dict.fromkeys(names, NAN) if pair.mask.all() else measure(pair)


# -- the makers: each gives a function of one pair, or raises where something is missing
# -------------------


def make_structure(weights: Weights) -> Measure:
    with quiet():
        from transformers import ViTModel

    model = hub(
        lambda **options: ViTModel.from_pretrained(
            weights.dino, add_pooling_layer=False, **options
        ),
        weights.dino,
    )
    model.eval().to(_device())

    def measure(pair: Pair) -> Values:
        before, after = (_tensor(picture) for picture in (pair.source, pair.edited))
        return {"structure": float(structure.distance(model, before, after, weights.parity))}

    return measure


def make_psnr(weights: Weights) -> Measure:
    metric = torchmetrics().functional.image.peak_signal_noise_ratio

    def measure(pair: Pair) -> Values:
        error = background_error(pair)
        masked = -10.0 * np.log10(error) if error else float("inf")
        return {"psnr": float(metric(*zeroed(pair), data_range=1.0)), "psnr_masked": float(masked)}

    return on_background(measure, "psnr", "psnr_masked")


def make_mse(weights: Weights) -> Measure:
    metric = torchmetrics().functional.mean_squared_error

    def measure(pair: Pair) -> Values:
        return {"mse": float(metric(*zeroed(pair))), "mse_masked": background_error(pair)}

    return on_background(measure, "mse", "mse_masked")


def background_error(pair: Pair) -> float:
    """The mean squared error of the background's pixels, in 0..1."""
    difference = (pair.source.astype(np.float64) - pair.edited) / 255.0
    return float(np.square(difference)[~pair.mask].mean())


def make_ssim(weights: Weights) -> Measure:
    metric = torchmetrics().functional.image.structural_similarity_index_measure

    def measure(pair: Pair) -> Values:
        mean, everywhere = metric(*zeroed(pair), data_range=1.0, return_full_image=True)
        pure = untouched(pair.mask)
        masked = everywhere.mean(dim=1)[0].cpu().numpy()[pure].mean() if pure.any() else NAN
        return {"ssim": float(mean), "ssim_masked": float(masked)}

    return on_background(measure, "ssim", "ssim_masked")


def untouched(mask: np.ndarray) -> np.ndarray:
    """Bool [H, W]: places whose whole SSIM window lies in the background, so that no black edge
    counts as likeness."""
    edited = torch.from_numpy(mask)[None, None].float()
    return ~torch.nn.functional.max_pool2d(edited, WINDOW, 1, WINDOW // 2)[0, 0].bool().numpy()


def make_lpips(weights: Weights) -> Measure:
    torchmetrics()
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with squeezenet(weights.lpips):
        metric = LearnedPerceptualImagePatchSimilarity(net_type="squeeze").to(_device())

    def measure(pair: Pair) -> Values:
        before, after = zeroed(pair)
        with torch.no_grad():
            return {"lpips": float(metric(before * 2 - 1, after * 2 - 1))}

    return on_background(measure, "lpips")


def make_clip(weights: Weights) -> Measure:
    torchmetrics()
    from torchmetrics.multimodal import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    load = (CLIPModel.from_pretrained, CLIPProcessor.from_pretrained)
    parts = hub(lambda **options: tuple(one(weights.clip, **options) for one in load), weights.clip)
    metric = CLIPScore(lambda: parts).to(_device())

    def score(picture: np.ndarray, prompt: str) -> float:
        metric.reset()  # calling the metric itself would run the network twice
        with torch.no_grad():
            metric.update(torch.from_numpy(picture.copy()).permute(2, 0, 1).to(_device()), prompt)
        return float(metric.compute())

    def measure(pair: Pair) -> Values:
        alone = pair.edited * pair.mask[..., None].astype(np.uint8)
        return {
            "clip_whole": score(pair.edited, pair.prompt),
            "clip_edited": score(alone, pair.prompt),
        }

    return measure


METRICS: dict[str, tuple[Callable[[Weights], Measure], tuple[str, ...]]] = {
    "structure": (make_structure, ("structure",)),
    "psnr": (make_psnr, ("psnr", "psnr_masked")),
    "lpips": (make_lpips, ("lpips",)),
    "mse": (make_mse, ("mse", "mse_masked")),
    "ssim": (make_ssim, ("ssim", "ssim_masked")),
    "clip": (make_clip, ("clip_whole", "clip_edited")),
}


class Measures:
    """The chosen figures that can be measured here. missing: why the others cannot, by column."""

    def __init__(self, names: Sequence[str], weights: Weights) -> None:
        self._measures: list[Measure] = []
        self.missing = {column: "not asked for" for column in COLUMNS}
        for name in names:
            make, columns = METRICS[name]
            for column in columns:
                del self.missing[column]
            try:
                self._measures.append(make(weights))
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                self.missing |= dict.fromkeys(columns, first_line(error))

    def __call__(self, pair: Pair) -> Values:
        """Every figure of one picture; NaN where it has none."""
        return {name: value for measure in self._measures for name, value in measure(pair).items()}


def first_line(error: BaseException) -> str:
    """An error as one line, for a table's footnote."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


# -- where packages and weights come from
# ------------------------------------------------------------------


def torchmetrics() -> Any:
    """The package; ImportError says how to get it."""
    try:
        with quiet():
            import torchmetrics
            import torchmetrics.functional
            import torchmetrics.multimodal
    except ImportError as error:
        raise ImportError(f"{error}; pip install -r tools/requirements-eval.txt") from error
    return torchmetrics


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what packages say while they are imported: torchvision, that it lacks a codec nobody
    needs here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def hub(load: Callable[..., Any], name: str) -> Any:
    """What `load` gives for a folder or a name at Hugging Face: from the disk, else over the
    network.

    Raises OSError. Without a network that is said at once: the library itself would try for a
    minute.
    """
    try:
        return load(local_files_only=True)
    except OSError:
        if pathlib.Path(name).is_dir():
            raise
    reach("huggingface.co", f"{name} is not in the cache")
    return load()


def reach(host: str, lack: str) -> None:
    """Raise OSError with what is lacking unless a host answers within 5 s."""
    try:
        socket.create_connection((host, 443), timeout=5.0).close()
    except OSError as error:
        raise OSError(f"{lack} and {host} cannot be reached ({error})") from error


@contextlib.contextmanager
def squeezenet(path: str) -> Iterator[None]:
    """Let torchvision find squeezenet1_1 in a file instead of downloading it ("": its own cache,
    else the network)."""
    from torchvision.models import SqueezeNet1_1_Weights

    name, before = SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2], torch.hub.get_dir()
    if not path:
        if not (pathlib.Path(before) / "checkpoints" / name).is_file():
            reach("download.pytorch.org", f"{name} is not in {before}/checkpoints")
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder) / "checkpoints"
        place.mkdir()
        (place / name).symlink_to(pathlib.Path(path).absolute())
        torch.hub.set_dir(folder)
        try:
            yield
        finally:
            torch.hub.set_dir(before)
