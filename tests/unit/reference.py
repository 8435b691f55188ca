"""Small, slow references in float64, written from the papers' formulas and not from the pack's
code."""

from __future__ import annotations

import functools
import math
import re
import zlib
from collections.abc import Callable, Sequence

import torch
from hypothesis import settings

from pivot_edit.core.control import Place
from pivot_edit.core.inverter import Inverter, Move, OnStep, Step
from pivot_edit.core.path import PATHS, VP, Denoise
from pivot_edit.core.stepper import Moment
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.core.words import Prompt, Word

NoiseNet = Callable[[torch.Tensor, float], torch.Tensor]
"""eps(x, sigma) on the variance-preserving latent."""

BEGIN, END = 49406, 49407

few = settings(deadline=None, derandomize=True, database=None, max_examples=25)


def generator(seed: int) -> torch.Generator:
    """Seeded random numbers."""
    return torch.Generator().manual_seed(seed)


def noise(seed: int, *shape: int) -> torch.Tensor:
    """Standard normal float64."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def sd_abar() -> torch.Tensor:
    """Stable Diffusion's cumulative alphas: scaled-linear betas from 0.00085 to 0.012 over 1000
    steps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, 0)


def sd_sigmas() -> torch.Tensor:
    """The same as noise levels, ascending."""
    abar = sd_abar()
    return ((1.0 - abar) / abar).sqrt()


def abar_of(sigma: float) -> float:
    """The cumulative alpha of a noise level."""
    return 1.0 / (1.0 + sigma * sigma)


def vp_step(x: torch.Tensor, eps: torch.Tensor, a: float, b: float) -> torch.Tensor:
    """DDIM, eta = 0, from cumulative alpha a to b: predict x0, then put the noise back."""
    x0 = (x - math.sqrt(1.0 - a) * eps) / math.sqrt(a)
    return math.sqrt(b) * x0 + math.sqrt(1.0 - b) * eps


def denoiser(net: NoiseNet) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """denoise(X, sigma) of an eps network, with ComfyUI's scaling of its input and output."""
    return lambda X, sigma: X - sigma * net(X / math.sqrt(1.0 + sigma * sigma), sigma)


def v_denoiser(net: NoiseNet) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """denoise(X, sigma) of a v network, with ComfyUI's scaling of its input and output."""

    def denoise(X: torch.Tensor, sigma: float) -> torch.Tensor:
        scale = math.sqrt(1.0 + sigma * sigma)
        return X / scale**2 - net(X / scale, sigma) * sigma / scale

    return denoise


def gaussian(
    mean: torch.Tensor, std: torch.Tensor
) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """The exact denoiser of data that is normal in every pixel."""
    return lambda X, sigma: (std**2 * X + sigma**2 * mean) / (std**2 + sigma**2)


def convolution(seed: int, channels: int = 4) -> NoiseNet:
    """A small smooth eps network that mixes pixels and channels and knows the level."""
    first = noise(seed, 8, channels, 3, 3) * 0.3
    last = noise(seed + 1, channels, 8, 3, 3) * 0.2

    def net(x: torch.Tensor, sigma: float) -> torch.Tensor:
        hidden = torch.nn.functional.conv2d(x.double(), first, padding=1) + math.log1p(sigma)
        return torch.nn.functional.conv2d(torch.tanh(hidden), last, padding=1).to(x)

    return net


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[rows, tokens, heads * dim] -> [rows, heads, tokens, dim]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """[rows, heads, tokens, dim] -> [rows, tokens, heads * dim]."""
    return x.transpose(1, 2).flatten(2)


def probabilities(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """The attention maps themselves, [rows, heads, queries, keys], float64."""
    q, k = split_heads(q.double(), heads), split_heads(k.double(), heads)
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)


def times_v(probs: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Maps times values, [rows, queries, heads * dim], float64."""
    return join_heads(probs @ split_heads(v.double(), heads))


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Plain attention with its maps written out, float64."""
    return times_v(probabilities(q, k, heads), v, heads)


def fused(heads: int) -> Callable[..., torch.Tensor]:
    """The host's fast attention: torch's own, in the precision of its input."""

    def run(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        split = [split_heads(x, heads) for x in (q, k, v)]
        mask = None if bias is None else bias.to(q)[:, None]
        return join_heads(torch.nn.functional.scaled_dot_product_attention(*split, attn_mask=mask))

    return run


def longest_common_subsequence(a: Sequence[int], b: Sequence[int]) -> int:
    """Its length, by trying everything."""

    @functools.cache
    def best(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return best(i + 1, j + 1) + 1 if a[i] == b[j] else max(best(i + 1, j), best(i, j + 1))

    return best(0, 0)


def prompt(text: str) -> Prompt:
    """A prompt on CLIP's layout: chunks of 77 columns, each begin, up to 75 tokens, end, padding.

    Every word is one token, or n for `word-n`; each punctuation mark around it is a token of its
    own.
    """
    pieces = [_pieces(word) for word in text.split()]
    count = sum(len(ids) for _, ids, _ in pieces)
    chunks = max(1, math.ceil(count / 75))
    tokens = ([BEGIN] + [END] * 76) * chunks
    free = iter(column for column in range(77 * chunks) if 0 < column % 77 < 76)
    words = []
    for word, ids, core in pieces:
        columns = tuple(next(free) for _ in ids)
        for column, token in zip(columns, ids, strict=True):
            tokens[column] = token
        words.append(Word(word, columns, columns[core]))
    return Prompt(text, tuple(words), tuple(tokens))


def _pieces(word: str) -> tuple[str, list[int], slice]:
    """A word, its token ids, and which of them are not punctuation."""
    found = re.fullmatch(r"(\W*)(.*?)(\W*)", word)
    assert found is not None
    before, name, after = found.groups()
    number = re.search(r"-(\d)$", name)
    names = [f"{name.lower()}#{i}" for i in range(int(number[1]) if number else 1)]
    ids = [zlib.crc32(part.encode()) % BEGIN for part in [*before, *names, *after]]
    return word, ids, slice(len(before), len(before) + len(names))


def all_latents(
    inverter: Inverter,
    denoise: Denoise,
    x0: torch.Tensor,
    sigmas: torch.Tensor,
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """All latents [N + 1, ...] of an inversion on the variance-preserving path."""
    return inverter.invert(denoise, x0, sigmas, VP, on_step).latents


def one_step(
    inverter: Inverter, denoise: Denoise, x: torch.Tensor, lower: float, upper: float
) -> Step:
    """The first step of an inversion between two levels."""
    return inverter.step(denoise, x, Move(VP, lower, upper, 0, 1), None)


def moment(pivot: Trajectory, lower: int) -> Moment:
    """The step of a replay that ends at level `lower`."""
    place = Place(pivot.steps - 1 - lower, pivot.steps, float(pivot.sigmas[lower + 1]))
    return Moment(pivot, PATHS[pivot.path], place, lower + 1, lower)
