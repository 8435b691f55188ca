"""What runs have left to show: the masks of local blends, and heat maps of words over pictures."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch

from ...attention import AttentionMaps, LocalBlend
from ...core.errors import PivotError
from ...core.maps import resize, share_of_range
from ...core.options import Method, fraction, integer, number
from ...core.words import Prompt, bare, phrases
from ...show.grids import labelled_grid, overlay
from ..run.runs import controllers_of
from ..text.prompts import read_prompt

PIXELS = 8
"""How many pixels a latent position has along one side."""


def blend_mask(model: Any, samples: torch.Tensor) -> torch.Tensor:
    """MASK [rows, H, W] that local blends have last used for these samples, ones for rows without.

    Its edges are a latent's cell wide, so that what is pasted by it shows no steps
    (docs/BENCHMARKS.md).
    """
    size = (samples.shape[-2] * PIXELS, samples.shape[-1] * PIXELS)
    masks = torch.ones(len(samples), *size)
    for blend in _all(model, LocalBlend):
        for index, sample in enumerate(samples):
            mask = blend.results.get(sample)
            if mask is not None:
                # several blends let through what all of them do
                masks[index] *= resize(mask.float(), size, "bilinear")
    return masks


def check_blended(model: Any, samples: torch.Tensor) -> tuple[torch.Tensor, str]:
    """The mask of `blend_mask`, and what the local blends did by it, in words.

    Raises PivotError if no local blend of this model has worked on these samples.
    """
    blends = _all(model, LocalBlend)
    if not any(blend.results.get(sample) is not None for blend in blends for sample in samples):
        raise PivotError(
            "samples that this model's local blend has made",
            "a model without Local Blend" if not blends else "samples of another run",
            "Connect the model behind Local Blend, and the latent as the sampler gives it.",
            "Local Blend Mask",
        )
    said = []
    for blend in blends:
        masks = [mask for sample in samples if (mask := blend.results.get(sample)) is not None]
        if masks:
            said.append(blend.describe(masks))
    return blend_mask(model, samples), "\n".join(said)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What is shown of some words."""

    pictures: torch.Tensor
    """Heat maps over the picture [words, H, W, 3]."""
    grid: torch.Tensor
    """All of them in one picture [1, h, w, 3]."""
    masks: torch.Tensor
    """[words, H, W]"""
    words: list[str]


@dataclasses.dataclass(frozen=True)
class MaskOptions(Method):
    """How a heat map becomes a mask."""

    title: ClassVar[str] = "Attention Maps"

    threshold: float = fraction(
        0.4,
        "Which share of a word's attention range belongs to its mask. Higher makes it smaller; 0.3 "
        "to 0.6.",
    )
    blur: float = number(
        0.0, 0.0, 64.0, 0.5, "Softens the masks' edges, in pixels. 0 leaves them hard."
    )
    grow: int = integer(0, -128, 128, "Widens the masks by so many pixels; negative shrinks them.")


def word_heat(
    model: Any,
    samples: torch.Tensor,
    image: torch.Tensor,
    clip: Any,
    prompt: str,
    words: str,
    options: MaskOptions,
) -> Shown:
    """Heat maps of a prompt's words over the pictures that its sampling gave.

    image [B, H, W, 3] holds one picture for each of the samples, or one for all. words is a list as
    people write it, empty for every word.
    """
    read = read_prompt(clip, prompt)
    chosen = _chosen(read, words)
    heats = torch.cat([_heats(_recorded(model, sample), read, chosen) for sample in samples])
    if len(image) not in (1, len(samples)):
        raise PivotError(
            f"{len(samples)} pictures, one for each latent, or one for all",
            f"{len(image)}",
            "Connect these samples decoded.",
            "Attention Maps",
        )
    image = image.cpu()  # where the maps are kept; under --gpu-only pictures are not
    size = (image.shape[1], image.shape[2])
    heats = torch.stack([resize(heat, size, "bilinear") for heat in heats])
    pictures = image[..., :3].expand(len(samples), -1, -1, -1).repeat_interleave(len(chosen), 0)
    shown = torch.stack([overlay(*pair) for pair in zip(pictures, heats, strict=True)])
    masks = torch.stack([to_mask(heat, options) for heat in heats])
    return Shown(
        shown, labelled_grid(shown, [bare(word) for word in chosen] * len(samples)), masks, chosen
    )


def _chosen(prompt: Prompt, words: str) -> list[str]:
    """The words that people wrote, or else all of the prompt."""
    every = dict.fromkeys(word.text for word in prompt.words if bare(word.text))
    chosen = phrases(words) or list(every)
    if not chosen:
        raise PivotError(
            "a prompt with words to show",
            f"{prompt.text!r:.100}",
            "Give this node the text that was encoded for the sampler.",
            "Attention Maps",
        )
    return chosen


def _heats(maps: torch.Tensor, prompt: Prompt, words: list[str]) -> torch.Tensor:
    """Heat [words, h, w] from 0 to 1 of recorded maps [h, w, columns]."""
    # text that was appended to the prompt has the columns behind it, so that there may be more
    length = len(prompt.tokens)
    if maps.shape[-1] < length:
        raise PivotError(
            "the prompt that was sampled with",
            f"one of {length} columns, where {maps.shape[-1]} were recorded",
            "Give this node the text that was encoded for the sampler.",
            "Attention Maps",
        )
    heats = torch.stack([maps[..., list(prompt.find(word))].mean(-1) for word in words])
    return share_of_range(heats)


def _recorded(model: Any, sample: torch.Tensor) -> torch.Tensor:
    """The maps that a recorder of the model has of a sample."""
    recorders = _all(model, AttentionMaps)
    for recorder in recorders:
        maps = recorder.results.get(sample)
        if maps is not None:
            return maps
    raise PivotError(
        "samples that a recorded model has made",
        "samples of another run" if recorders else "a model without Record Attention",
        "Connect the model behind Record Attention to the sampler and to this node, and the "
        "latent as the sampler "
        "gives it. A conditioning with an area or mask bounds leaves no maps. Where ComfyUI has "
        "forgotten the model since, sample again with another seed.",
        "Attention Maps",
    )


def _all(model: Any, kind: type) -> list[Any]:
    """The controllers of one kind on a model."""
    return [one for one in controllers_of(model.model_options) if isinstance(one, kind)]


def to_mask(heat: torch.Tensor, options: MaskOptions) -> torch.Tensor:
    """MASK [H, W] of a heat map: what is above the threshold, grown or shrunk, then blurred."""
    mask = (heat >= options.threshold).float()[None, None]
    if options.grow:
        mask = (
            _grown(mask, options.grow)
            if options.grow > 0
            else 1.0 - _grown(1.0 - mask, -options.grow)
        )
    return _blurred(mask, options.blur)[0, 0]


def _grown(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """A mask widened by a square."""
    # one side after the other, which costs 2n instead of n^2
    for size in ((2 * pixels + 1, 1), (1, 2 * pixels + 1)):
        mask = torch.nn.functional.max_pool2d(mask, size, 1, (size[0] // 2, size[1] // 2))
    return mask


def _blurred(mask: torch.Tensor, sigma: float) -> torch.Tensor:
    """A mask under a Gaussian of `sigma` pixels."""
    if sigma <= 0.0:
        return mask
    reach = max(1, round(3 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2).to(mask)
    line = line / line.sum()
    padded = torch.nn.functional.pad(mask, (reach, reach, reach, reach), mode="replicate")
    across = torch.nn.functional.conv2d(padded, line.view(1, 1, 1, -1))
    return torch.nn.functional.conv2d(across, line.view(1, 1, -1, 1)).clamp(0.0, 1.0)
