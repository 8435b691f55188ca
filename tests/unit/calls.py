"""Attention calls as the UNet makes them, random and small, and the layers of the models that make
them."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from reference import fused, noise

from pivot_edit.core.control import AttentionCall, Branch, Controller, Kind, Place, Row, Site
from pivot_edit.core.layers import Layer, Stage

OPEN = Place(step=0, steps=50, sigma=13.0)
DEEP = Layer("down", 1, 0, 0, 2)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rows of one UNet call: chunks in any order, pictures x [source, target, target, ...] in
    each."""

    chunks: str = "uc"
    targets: int = 1
    pictures: int = 1

    @property
    def rows(self) -> tuple[Row, ...]:
        rows: list[Row] = []
        for chunk, name in enumerate(self.chunks):
            first, cond, pictures = len(rows), name == "c", range(self.pictures)
            rows += [Row("source", cond, picture=i, chunk=chunk) for i in pictures]
            for target in range(self.targets):
                rows += [Row("target", cond, first + i, target, i, chunk) for i in pictures]
        return tuple(rows)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(target row, source row) of every target row."""
        return [(i, row.source) for i, row in enumerate(self.rows) if row.source is not None]

    @property
    def edited(self) -> list[tuple[int, int]]:
        """(target row, source row) of what Prompt-to-Prompt may edit."""
        return [(i, source) for i, source in self.pairs if self.rows[i].cond]

    @property
    def untouched(self) -> list[int]:
        edited = {target for target, _ in self.edited}
        return [i for i in range(len(self.rows)) if i not in edited]

    @property
    def sources(self) -> list[int]:
        return [i for i, row in enumerate(self.rows) if row.branch == "source"]


Member = tuple[Branch, int, int]
"""(branch, target, picture)."""


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The rows of one text of a call, in any order; number: the chunk's name in `Row.chunk`."""

    cond: bool
    members: tuple[Member, ...]
    number: int = 0


def rows_of(*chunks: Chunk) -> tuple[Row, ...]:
    """The rows of a call of chunks; a target whose source is not in its chunk has none."""
    rows: list[Row] = []
    for chunk in chunks:
        index = {member: len(rows) + i for i, member in enumerate(chunk.members)}
        for branch, target, picture in chunk.members:
            source = index.get(("source", 0, picture)) if branch == "target" else None
            rows.append(Row(branch, chunk.cond, source, target, picture, chunk.number))
    return tuple(rows)


def row_noise(rows: Sequence[Row], shape: tuple[int, ...], *name: Any) -> torch.Tensor:
    """Normal numbers [rows, *shape], float64, by what each row is and not by where it stands."""
    keys = [(row.branch, row.target, row.picture, row.cond) for row in rows]
    return torch.stack([_named_noise(shape, (*name, *key)) for key in keys])


@functools.cache
def _named_noise(shape: tuple[int, ...], name: tuple[Any, ...]) -> torch.Tensor:
    return noise(zlib.crc32(repr(name).encode()), *shape)


TWO = Layout()
layouts = st.builds(
    Layout, st.sampled_from(["c", "uc", "cu", "cuc"]), st.integers(1, 3), st.integers(1, 2)
)


def make_call(
    kind: Kind,
    layout: Layout = TWO,
    seed: int = 0,
    heads: int = 2,
    width: int = 4,
    queries: tuple[int, int] = (3, 2),
    columns: int = 77,
    dtype: torch.dtype = torch.float64,
    place: Place = OPEN,
    latent: tuple[int, int] | None = None,
    layer: Layer = DEEP,
) -> AttentionCall:
    """A call of random q, k, v; a site of a quarter of the latent unless told otherwise."""
    tokens = queries[0] * queries[1]
    keys = tokens if kind == "self" else columns
    rows, wide = len(layout.rows), heads * width
    q = noise(seed, rows, tokens, wide).to(dtype)
    k, v = (noise(seed + i, rows, keys, wide).to(dtype) for i in (1, 2))
    site = Site(kind, layer, *queries, latent or (2 * queries[0], 2 * queries[1]))
    return AttentionCall(q, k, v, heads, site, place, layout.rows, fused(heads))


class Attend:
    """The rest of the chain: the host's attention, keeping the calls it gets."""

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def __call__(self, call: AttentionCall) -> torch.Tensor:
        self.calls.append(call)
        return call.fused(call.q, call.k, call.v)


def plain(call: AttentionCall) -> torch.Tensor:
    return Attend()(call)


def probed(call: AttentionCall, *chain: Controller) -> AttentionCall:
    """The call with a probe through the edits of a chain, as the host makes it."""

    def probe(values: torch.Tensor) -> torch.Tensor:
        return run_chain(dataclasses.replace(call, v=values, probe=None), chain)

    return dataclasses.replace(call, probe=probe)


def run_chain(call: AttentionCall, chain: Sequence[Controller]) -> torch.Tensor:
    """The call through controllers with fresh states, the first of them first."""
    if not chain:
        return plain(call)
    first, *rest = chain
    return first(call, lambda inner: run_chain(inner, rest), first.begin())


def assert_exact(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


class Sizes(torch.overrides.TorchFunctionMode):
    """Notes how many numbers every tensor holds that is made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.made.extend([out.numel()] if isinstance(out, torch.Tensor) else [])
        return out


def blocks(stage: Stage, level: int, scale: int, count: int, depth: int = 1) -> Iterable[Layer]:
    """`count` attentions of one level with `depth` transformer blocks each."""
    return (
        Layer(stage, level, number, index, scale)
        for number in range(count)
        for index in range(depth)
    )


SD1 = (
    *(layer for level in range(3) for layer in blocks("down", level, 2**level, 2)),
    *blocks("mid", 0, 8, 1),
    *(layer for level in (1, 2, 3) for layer in blocks("up", level, 2 ** (3 - level), 3)),
)
"""SD1.x and SD2.x: 16 transformer blocks, none at the deepest level but in the middle."""

SDXL = (
    *blocks("down", 1, 2, 2, 2),
    *blocks("down", 2, 4, 2, 10),
    *blocks("mid", 0, 4, 1, 10),
    *blocks("up", 0, 4, 3, 10),
    *blocks("up", 1, 2, 3, 2),
)
"""SDXL: 70 transformer blocks in 11 attentions, none at the latent's own size."""
