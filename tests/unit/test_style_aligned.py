"""StyleAligned against attention written out (docs/METHODS.md 20), and what it leaves alone."""

from __future__ import annotations

import math

import pytest
import torch
from calls import SD1, plain
from reference import fused, noise

from pivot_edit.attention import StyleAligned
from pivot_edit.attention.style_aligned import EPSILON, references
from pivot_edit.core.control import AttentionCall, Place, Row, Site
from pivot_edit.core.errors import PivotError

BATCH = tuple(Row("target", True, None, 0, picture) for picture in range(3))
EDIT = (Row("source", True), Row("target", True, 0), Row("target", True, 0, 1))
HEADS, TOKENS, WIDTH = 2, 6, 8
NOW = Place(1, 4, 1.0)


def call_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: tuple[Row, ...]
) -> AttentionCall:
    site = Site("self", SD1[0], 2, 3, (2, 3))
    return AttentionCall(q, k, v, HEADS, site, NOW, rows, fused(HEADS))


def qkv() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (noise(seed, 3, TOKENS, WIDTH) for seed in range(3))
    return q * 2.0 + 0.5, k * 0.7 - 0.2, v + 1.0


def written_out(
    options: StyleAligned, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, row: int, of: int
) -> torch.Tensor:
    """One row, head by head, from the paper's formulas."""

    def moved(x: torch.Tensor) -> torch.Tensor:
        mine, other = x[row], x[of]
        spread = (mine.var(0) + EPSILON).sqrt()
        return (mine - mine.mean(0)) / spread * (other.var(0) + EPSILON).sqrt() + other.mean(0)

    takes = (options.queries, options.keys, options.values)
    query, key, value = (
        moved(x) if take else x[row] for x, take in zip((q, k, v), takes, strict=True)
    )
    outputs = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        logits_own = query[:, part] @ key[:, part].T
        logits_shared = query[:, part] @ (options.scale * k[of][:, part]).T
        both = torch.cat([logits_own, logits_shared], 1) / math.sqrt(WIDTH / HEADS)
        both[:, TOKENS:] += math.log(options.weight)
        outputs.append(both.softmax(1) @ torch.cat([value[:, part], v[of][:, part]]))
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("rows", [BATCH, EDIT], ids=["batch", "edit"])
@pytest.mark.parametrize(
    "options",
    [
        StyleAligned(),
        StyleAligned(weight=2.0),
        StyleAligned(weight=0.5, scale=0.5),
        StyleAligned(queries=False, keys=False, values=True),
    ],
)
def test_it_is_the_papers_formula(rows: tuple[Row, ...], options: StyleAligned) -> None:
    q, k, v = qkv()
    call = call_of(q, k, v, rows)
    out = options(call, plain, options.begin())
    for row in (1, 2):
        expected = written_out(options, q, k, v, row, 0)
        torch.testing.assert_close(out[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [BATCH, EDIT], ids=["batch", "edit"])
def test_the_reference_is_left_alone_bit_for_bit(rows: tuple[Row, ...]) -> None:
    """Oracle 38: reading its own tokens twice would change it by rounding alone."""
    call = call_of(*qkv(), rows)
    assert torch.equal(StyleAligned(weight=2.0)(call, plain, {})[0], plain(call)[0])
    torch.testing.assert_close(
        written_out(StyleAligned(), call.q, call.k, call.v, 0, 0), plain(call)[0]
    )


def test_one_picture_is_its_own_reference() -> None:
    q, k, v = (each[:1] for each in qkv())
    call = call_of(q, k, v, BATCH[:1])
    assert torch.equal(StyleAligned()(call, plain, {}), plain(call))


def test_a_weight_of_nothing_reads_no_reference() -> None:
    """Its bias is minus infinity, and no NaN."""
    options = StyleAligned(weight=0.0, queries=False, keys=False)
    call = call_of(*qkv(), BATCH)
    torch.testing.assert_close(options(call, plain, {}), plain(call))


def test_every_chunk_has_a_reference_of_its_own() -> None:
    chunks = tuple(
        Row(row.branch, cond, None if row.source is None else row.source + first, row.target,
            row.picture, chunk)
        for chunk, (first, cond) in enumerate(((0, False), (3, True)))
        for row in BATCH
    )  # fmt: skip
    assert references(chunks) == [0, 0, 0, 3, 3, 3]
    assert references(EDIT) == [0, 0, 0]


def test_windows_and_layers() -> None:
    options = StyleAligned(window=(0.5, 1.0))
    assert not options.wants("self", NOW) and options.wants("self", Place(2, 4, 1.0))
    assert options.reads(NOW) == "nothing" and options.reads(Place(3, 4, 1.0)) == "both"
    assert not options.wants("cross", Place(3, 4, 1.0))
    with pytest.raises(PivotError, match="weight between 0 and 16"):
        StyleAligned(weight=17.0)
