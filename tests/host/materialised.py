"""Prompt-to-Prompt as the public implementations do it, small and slow: what the folded controller
is judged against.

Four rows run at every step, [source, target] under both texts in one UNet call. Every attention
layer writes its maps out, scaled after the product as there, by an explicit softmax in the model's
precision; the edits are made on the conditioned rows' maps (METHODS 3). Nothing of the pack's
attention, guider or sampler is used, only its word tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch

Patch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]], torch.Tensor]
BLOCKS = (("input", 12), ("middle", 1), ("output", 12))


@dataclasses.dataclass(frozen=True, eq=False)
class MapEdit:
    """mapper [source columns, target columns] and own [target columns]: the word tables; refine:
    gather the source's columns instead of mixing them. cross, self_: ends of the windows, as
    fractions of the steps; self_limit: as a fraction of the latent's tokens."""

    mapper: torch.Tensor
    own: torch.Tensor
    refine: bool = False
    cross: float = 0.8
    self_: float = 0.4
    self_limit: float = 0.25

    def target_maps(self, maps: torch.Tensor, kind: str, extra: dict[str, Any]) -> torch.Tensor:
        """The target's maps [heads, queries, keys] after the edit, from those of source and target
        [2, ...]."""
        levels = extra["sample_sigmas"]
        steps = len(levels) - 1
        step = int((levels[:-1] - extra["sigmas"][0]).abs().argmin())
        if kind == "cross":
            return self._cross(*maps) if step < int(self.cross * (steps + 1)) else maps[1]
        limit = self.self_limit * extra["original_shape"][-2] * extra["original_shape"][-1]
        return maps[0] if step < int(self.self_ * steps) and maps.shape[-1] <= limit else maps[1]

    def _cross(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if not self.refine:
            return source @ self.mapper.to(source)
        own = self.own.to(source)
        return source[..., self.mapper.argmax(0).to(source.device)] * (1.0 - own) + target * own


def explicit(model: Any, edit: MapEdit | None = None) -> Any:
    """A clone of the model whose attention writes its maps out, and edits them."""
    clone = model.clone()
    for block, count in BLOCKS:
        for number in range(count):
            clone.set_model_attn1_replace(_attention("self", edit), block, number)
            clone.set_model_attn2_replace(_attention("cross", edit), block, number)
    return clone


def _attention(kind: str, edit: MapEdit | None) -> Patch:
    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]
    ) -> torch.Tensor:
        q, k, v = (_split(x, extra["n_heads"]) for x in (q, k, v))
        maps = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        if edit is not None:
            first = 2 * extra["cond_or_uncond"].index(0)
            maps[first + 1] = edit.target_maps(maps[first : first + 2], kind, extra)
        return (maps @ v).transpose(1, 2).flatten(2)

    return attend


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[rows, tokens, heads * dim] -> [rows, heads, tokens, dim]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def guider(model: Any, source: Any, target: Any, negative: Any, cfg: float) -> Any:
    """The host's own guider over [source, target] rows and one negative text for both."""
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(_two_rows(source, target), negative)
    made.set_cfg(cfg)
    return made


def _two_rows(source: Any, target: Any) -> Any:
    (old, options), (new, others) = source[0], target[0]
    pooled = {
        key: torch.cat([options[key], others[key]]) for key in ("pooled_output",) if key in options
    }
    return [[torch.cat([old, new]), {**options, **pooled}]]


class TwoRowDDIM(comfy.samplers.Sampler):
    """DDIM on [source, target] as Euler on the host's scale; `pinned` sets the source to the
    trajectory's latents."""

    def __init__(self, trajectory: Any, pinned: bool) -> None:
        self.trajectory = trajectory
        self.pinned = pinned

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        scales = (1.0 + sigmas.square()).sqrt()
        pivot = self.trajectory.latents.flip(0).to(sigmas)
        x = torch.cat([pivot[0], pivot[0]]) * scales[0]
        for i in range(len(sigmas) - 1):
            denoised = model_wrap(x, sigmas[i].expand(2), **extra_args)
            x = x + (sigmas[i + 1] - sigmas[i]) * (x - denoised) / sigmas[i]
            if self.pinned:
                x[:1] = pivot[i + 1] * scales[i + 1]
        return x / scales[-1]


def edit(
    model: Any,
    trajectory: Any,
    source: Any,
    target: Any,
    negative: Any,
    cfg: float,
    pinned: bool,
    change: MapEdit,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Edited and reconstructed LATENT samples [1, C, H, W] of a trajectory of one picture."""
    start = torch.zeros(2, *trajectory.latents.shape[2:])
    made = guider(explicit(model, change), source, target, negative, cfg)
    rows = made.sample(start, start, TwoRowDDIM(trajectory, pinned), trajectory.descending, seed=0)
    return rows[1:], rows[:1]
