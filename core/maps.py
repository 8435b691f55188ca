"""Maps of words from folded attention: where in the picture a word is looked at (METHODS 29.1).

`probe(E)` with E the one-hot columns of some words is the attention map of those words, mean over
heads, without the map over all words and heads ever being built.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from .control import AttentionCall, Branch, Row

Columns = tuple[int, ...]
Groups = dict[tuple[Branch, int], tuple[int, tuple[Columns, ...]]]
"""(branch, target) -> the prompt's number of columns, and the columns of each word or group of
words."""
Key = tuple[Branch, int, int]
"""(branch, target, picture)."""


def key_of(row: Row) -> Key:
    """Under which a row's maps are kept."""
    return row.branch, row.target, row.picture


def word_maps(call: AttentionCall, groups: Groups) -> dict[Key, torch.Tensor]:
    """The maps [height, width, words], fp32, of every conditioned row of a cross-attention call
    that has words.

    Of several conditioned chunks (areas, time ranges) the first counts. Texts reach the UNet
    repeated to their common multiple; the repeats of a column are summed.
    """
    if call.probe is None:
        return {}
    first_rows: dict[Key, int] = {}
    for index, row in enumerate(call.rows):
        if row.cond and _asked(row, groups):
            first_rows.setdefault(key_of(row), index)
    asked = {index: groups[branch, target] for (branch, target, _), index in first_rows.items()}
    maps: dict[Key, torch.Tensor] = {}
    width = call.v.shape[-1] // call.heads
    most = max((len(words) for _, words in asked.values()), default=0)
    for first in range(0, most, width):
        out = call.probe(_one_hot(call, asked, first)).float()
        out = out.reshape(*out.shape[:2], call.heads, width).mean(-2)
        for index, (_, words) in asked.items():
            part = out[index, :, : max(0, min(width, len(words) - first))]
            part = part.reshape(call.site.height, call.site.width, -1)
            key = key_of(call.rows[index])
            maps[key] = torch.cat([maps[key], part], -1) if key in maps else part
    return maps


def _asked(row: Row, groups: Groups) -> bool:
    return bool(groups.get((row.branch, row.target), (0, ()))[1])


def _one_hot(
    call: AttentionCall, asked: dict[int, tuple[int, tuple[Columns, ...]]], first: int
) -> torch.Tensor:
    """Values that are 1 on the columns of word `first + i` in channel i of every head."""
    columns, channels = call.v.shape[1:]
    width = channels // call.heads
    hot = call.v.new_zeros(len(call.rows), columns, call.heads, width)
    for index, (length, words) in asked.items():
        for channel, word in enumerate(words[first : first + width]):
            for column in word:
                hot[index, column::length, :, channel] = 1.0
    return hot.flatten(2)


class MapSum:
    """Maps summed over layers and steps. A layer counts once a step, however often the sampler asks
    it."""

    def __init__(self) -> None:
        self.sums: dict[Key, torch.Tensor] = {}
        self._seen: set[tuple[Any, ...]] = set()

    def add(self, call: AttentionCall, maps: Mapping[Key, torch.Tensor]) -> None:
        """Add the maps of one call."""
        for key, each in maps.items():
            mark = (call.place.step, call.site.layer, key)
            if mark not in self._seen:
                self._seen.add(mark)
                self.sums[key] = _plus(self.sums[key], each) if key in self.sums else each


def _plus(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum of two maps [h, w, columns]. The host repeats a text when another in the same call is
    longer: repeats are summed until both have as many columns."""
    columns = math.gcd(a.shape[-1], b.shape[-1])
    return sum(each.reshape(*each.shape[:2], -1, columns).sum(-2) for each in (a, b))  # type: ignore[return-value]


class StepMaps:
    """Maps of one step at a time. `finished(step)` are those of the step before it, complete and
    the same for every call of the step, however the host splits its calls."""

    def __init__(self) -> None:
        self._step = -1
        self._now, self._before = MapSum(), MapSum()

    def add(self, call: AttentionCall, maps: Mapping[Key, torch.Tensor]) -> None:
        """Add the maps of one call."""
        if call.place.step != self._step:
            self._step, self._before, self._now = call.place.step, self._now, MapSum()
        self._now.add(call, maps)

    def finished(self, step: int) -> MapSum:
        """The maps of the last step that is over at `step`."""
        return self._before if step == self._step else self._now


def resize(maps: torch.Tensor, size: tuple[int, int], mode: str = "nearest") -> torch.Tensor:
    """[h, w] to another size."""
    corners = False if mode == "bilinear" else None
    return torch.nn.functional.interpolate(
        maps[None, None], size, mode=mode, align_corners=corners
    )[0, 0]


class Results:
    """What runs have left to show, found again by the latent they gave; the last few are kept."""

    def __init__(self, kept: int = 64) -> None:
        self._kept = kept
        self._values: OrderedDict[bytes, Any] = OrderedDict()

    def put(self, sample: torch.Tensor, value: Any) -> None:
        """Keep a value for a latent [C, H, W]."""
        name = _fingerprint(sample)
        self._values[name] = value
        self._values.move_to_end(name)
        while len(self._values) > self._kept:
            self._values.popitem(last=False)

    def get(self, sample: torch.Tensor) -> Any:
        """The value for a latent [C, H, W], or None."""
        return self._values.get(_fingerprint(sample))


def _fingerprint(sample: torch.Tensor) -> bytes:
    """In half precision, because hosts may keep what samplers give in it."""
    return hashlib.sha256(sample.detach().cpu().half().contiguous().numpy().tobytes()).digest()


def mask_pictures(mask: torch.Tensor | None) -> torch.Tensor | None:
    """MASK as [pictures, H, W] on the CPU."""
    if mask is None:
        return None
    return mask.detach().float().cpu().reshape(-1, *mask.shape[-2:])
