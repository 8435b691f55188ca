"""Maps of words from folded attention: where in the picture a word is looked at (METHODS 29.1).

Let E be the one-hot columns of some words. Then `probe(E)` is the attention map of those words,
mean over heads, and the map over all words and heads is never built.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .columns import text_columns
from .control import AttentionCall, Branch, Place, Row

Columns = tuple[int, ...]
Groups = dict[tuple[Branch, int], tuple[int, tuple[Columns, ...]]]
"""(branch, target) -> the prompt's number of columns, and the columns of each word or group of
words."""
LEAST_SHARE, MOST_SHARE = 0.01, 0.95
"""Of a picture: a mask below or above hardly limits an edit to a place, and people are told so."""
Key = tuple[Branch, int, int]
"""(branch, target, picture)."""


def key_of(row: Row) -> Key:
    """The key under which a row's maps are kept."""
    return row.branch, row.target, row.picture


def word_maps(
    call: AttentionCall, groups: Groups, values: dict[Any, torch.Tensor]
) -> dict[Key, torch.Tensor]:
    """The maps [height, width, words], fp32, of every conditioned row of a cross-attention call
    that has words.

    values holds the one-hot values of a run's calls, each written once. Of several conditioned
    chunks (areas, time ranges) the first counts. The columns of repeats of a text are summed.
    """
    if call.probe is None:
        return {}
    first_rows: dict[Key, int] = {}
    for index, row in enumerate(call.rows):
        if row.cond and _asked(row, groups):
            first_rows.setdefault(key_of(row), index)
    asked = {index: groups[branch, target] for (branch, target, _), index in first_rows.items()}
    width = call.v.shape[-1] // call.heads
    most = max((len(words) for _, words in asked.values()), default=0)
    parts = []
    # a head has `width` channels, and so takes that many words at a time
    for first in range(0, most, width):
        kind = (call.rows, call.texts, call.heads, call.v.shape, call.v.dtype, call.v.device, first)
        if kind not in values:
            values[kind] = _one_hot(call, asked, first)
        out = call.probe(values[kind]).float()
        parts.append(out.reshape(*out.shape[:2], call.heads, width).mean(-2))
    if not parts:
        return {}
    every = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    every = every.reshape(len(every), call.site.height, call.site.width, -1)
    return {
        key_of(call.rows[index]): every[index, ..., : len(words)]
        for index, (_, words) in asked.items()
    }


def _asked(row: Row, groups: Groups) -> bool:
    return bool(groups.get((row.branch, row.target), (0, ()))[1])


def _one_hot(
    call: AttentionCall, asked: dict[int, tuple[int, tuple[Columns, ...]]], first: int
) -> torch.Tensor:
    """Values that are 1 on the columns of word `first + i` in channel i of every head."""
    # written on the CPU, because each write to a device is a launch of its own
    columns, channels = call.v.shape[1:]
    width = channels // call.heads
    hot = torch.zeros(len(call.rows), columns, call.heads, width, dtype=call.v.dtype)
    for index, (length, words) in asked.items():
        text = text_columns(call, index, length, "word maps")
        for channel, word in enumerate(words[first : first + width]):
            for column in word:
                hot[index, column::text, :, channel] = 1.0
    return hot.flatten(2).to(call.v.device)


class MapSum:
    """Maps summed over layers and steps.

    A layer counts once a step, however often the sampler asks it. `values` are the one-hot values
    that its maps are asked with. Of older steps a map counts half as much after every `half_life`,
    a fraction of all steps. Where that is None, all steps count alike.
    """

    def __init__(self, half_life: float | None = None) -> None:
        self.sums: dict[Key, torch.Tensor] = {}
        self.values: dict[Any, torch.Tensor] = {}
        self._half_life = half_life
        self._seen: set[tuple[Any, ...]] = set()
        self._steps: dict[Key, int] = {}

    def add(self, call: AttentionCall, maps: Mapping[Key, torch.Tensor]) -> None:
        """Add the maps of one call."""
        for key, each in maps.items():
            mark = (call.place.step, call.site.layer, key)
            if mark not in self._seen:
                self._seen.add(mark)
                before = self._aged(key, call.place) if key in self.sums else None
                self.sums[key] = each if before is None else _plus(before, each)
                self._steps[key] = call.place.step

    def _aged(self, key: Key, place: Place) -> torch.Tensor:
        """The sum of the steps before, as it counts at a place."""
        past = place.step - self._steps[key]
        if self._half_life is None or past == 0:
            return self.sums[key]
        share: float = 0.5 ** (past / (self._half_life * place.steps))
        return self.sums[key] * share


def _plus(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum of two maps [h, w, columns].

    A text that is longer at some steps is looked at there in columns of its own.
    """
    most = max(a.shape[-1], b.shape[-1])
    a, b = (
        each
        if each.shape[-1] == most
        else torch.nn.functional.pad(each, (0, most - each.shape[-1]))
        for each in (a, b)
    )
    return a + b


def resize(maps: torch.Tensor, size: tuple[int, int], mode: str = "nearest") -> torch.Tensor:
    """A map [h, w] at another size."""
    corners = False if mode == "bilinear" else None
    return torch.nn.functional.interpolate(
        maps[None, None], size, mode=mode, align_corners=corners
    )[0, 0]


def share_of_range(maps: torch.Tensor) -> torch.Tensor:
    """Maps [..., h, w] between their least (0) and their greatest value (1), each for itself.

    Every threshold of the pack is on this scale. A share of the greatest value alone is none that
    holds on several models: in some of them words are looked at a little everywhere.
    """
    low, high = maps.amin((-2, -1), True), maps.amax((-2, -1), True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def smooth(maps: torch.Tensor) -> torch.Tensor:
    """Maps [n, h, w] by means of 1, 2, 1 along both sides, which take single positions off."""
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1), mode="replicate")
    # twice the mean of two neighbours, for a kernel would have to be sent to the device
    pairs = torch.nn.functional.avg_pool2d(padded, 2, 1)
    return torch.nn.functional.avg_pool2d(pairs, 2, 1)


def region(maps: torch.Tensor, size: tuple[int, int], threshold: float) -> torch.Tensor:
    """Where maps [n, h, w] say that their words are: bool [n, H, W] at `size`.

    They are smoothed, enlarged bilinearly, and compared with a share of their range. `python -m
    bench.masks` measures the rule on worlds of several models (docs/BENCHMARKS.md).
    """
    large = torch.nn.functional.interpolate(
        smooth(maps)[None], size, mode="bilinear", align_corners=False
    )[0]
    low, high = large.amin((-2, -1), True), large.amax((-2, -1), True)
    return large > torch.lerp(low, high, threshold)


def in_share(masks: Sequence[torch.Tensor]) -> str:
    """Which shares of the picture masks [H, W] take, in words: "23 %", or "2 to 31 %"."""
    shares = [float(mask.float().mean()) for mask in masks]
    low, high = min(shares), max(shares)
    return f"{low:.1%}" if f"{low:.1%}" == f"{high:.1%}" else f"{low:.1%} to {high:.1%}"


class Results:
    """What runs have left to show, by the latent that they gave. The last few stay."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._values: OrderedDict[bytes, Any] = OrderedDict()

    def put(self, sample: torch.Tensor, value: Any) -> None:
        """Keep a value for a latent [C, H, W]."""
        name = _fingerprint(sample)
        self._values[name] = value
        self._values.move_to_end(name)  # a latent that comes again is as young as a new one
        while len(self._values) > self._limit:
            self._values.popitem(last=False)

    def get(self, sample: torch.Tensor) -> Any:
        """The value for a latent [C, H, W], or None."""
        return self._values.get(_fingerprint(sample))


def _fingerprint(sample: torch.Tensor) -> bytes:
    """The hash of a latent in half precision, because hosts may keep what samplers give in it."""
    return hashlib.sha256(sample.detach().cpu().half().contiguous().numpy().tobytes()).digest()


def mask_pictures(mask: torch.Tensor | None) -> torch.Tensor | None:
    """MASK as [pictures, H, W] on the CPU."""
    if mask is None:
        return None
    return mask.detach().float().cpu().reshape(-1, *mask.shape[-2:])
