"""The attention layers of a UNet by name, and a readable way to choose some of them.

Names are the field's (diffusers'). `down.1.0` is the first attention of the second resolution on
the way down, and `mid.0.0` the middle. `up.3.2` is the third attention of the finest resolution on
the way up in SD1.x. Each holds one or more transformer blocks (its depth: 1 in SD1.x and SD2.x, up
to 10 in SDXL).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Literal

from .errors import PivotError

Stage = Literal["down", "mid", "up"]
_RANGE = r"(\d{1,9})(?:-(\d{1,9}))?"
_ITEM = re.compile(rf"(down|mid|up)(?:\.{_RANGE})?(?:\.{_RANGE})?(?:\.{_RANGE})?")


@dataclasses.dataclass(frozen=True)
class Layer:
    """One transformer block."""

    stage: Stage
    level: int
    """How many resolution changes its stage has passed."""
    number: int
    """Which attention of that level it belongs to."""
    depth: int
    """Which block of that attention it is."""
    scale: int
    """How many latent positions a token has along one side."""

    @property
    def name(self) -> str:
        """Stage, level and number, such as `up.1.0`."""
        return f"{self.stage}.{self.level}.{self.number}"

    @property
    def area(self) -> float:
        """Its tokens as a fraction of the latent's positions: 1 at full size, 1/4 one level
        down."""
        return 1.0 / self.scale**2


def select_layers(text: str, layers: Iterable[Layer], where: str = "") -> frozenset[Layer]:
    """The layers that a text names: `up.2-3`, `mid`, `down.1.0, up.1`, `up.1.2.0-4`; `all`; `none`.

    An item is `stage[.levels[.numbers[.depths]]]`, each a number or a range. What is left out means
    all. Raises PivotError for an item that cannot be read or that names no layer of this model.
    """
    offered = tuple(layers)
    items = [item for item in re.split(r"[\s,;]+", text.strip().lower()) if item]
    chosen: set[Layer] = set()
    for item in items if items else ["none"]:  # an empty text chooses nothing
        if item == "all":
            chosen.update(offered)
        elif item != "none":
            matches = _matches(item, offered, where)
            if not matches:
                raise PivotError("layers that this model has", repr(item), _offer(offered), where)
            chosen.update(matches)
    return frozenset(chosen)


def _matches(item: str, layers: tuple[Layer, ...], where: str) -> set[Layer]:
    """The layers that one item of such a text names."""
    read = _ITEM.fullmatch(item)
    if read is None:
        raise PivotError(
            "layers such as up.2-3, mid or down.1.0", repr(item), _offer(layers), where
        )
    stage, *bounds = read.groups()
    ranges = [
        (int(low), int(high or low))
        for low, high in zip(bounds[::2], bounds[1::2], strict=True)
        if low
    ]
    return {
        layer
        for layer in layers
        if layer.stage == stage
        and all(
            low <= place <= high
            for (low, high), place in zip(
                ranges, (layer.level, layer.number, layer.depth), strict=False
            )
        )
    }


def _offer(layers: tuple[Layer, ...]) -> str:
    return f"It has: {', '.join(dict.fromkeys(layer.name for layer in layers))}; also all, none."


def map_scale(latent: tuple[int, int], scales: Iterable[int]) -> int:
    """The scale, of those that a model has, at which word maps are read for a latent of (height,
    width).

    It is a quarter of the latent's side, as the references' 16x16 of 64x64. It is finer where that
    would leave fewer than 12 positions.
    """
    offered = sorted(scales)
    usable = [scale for scale in offered if scale <= 4 and min(latent) / scale >= 12]
    return max(usable, default=offered[0])
