"""MasaCtrl against mutual self-attention written out in float64 (METHODS 7, oracles 29 to 31)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from calls import (
    DEEP,
    SD1,
    SDXL,
    TWO,
    Attend,
    Layout,
    Sizes,
    assert_exact,
    layouts,
    make_call,
    plain,
    probed,
)
from hypothesis import given
from hypothesis import strategies as st
from reference import attention, few, join_heads, noise, probabilities, split_heads, times_v

from pivot_edit.attention.masactrl import AutoMask, MasaCtrl, decoder_layers
from pivot_edit.core.control import AttentionCall, Place, Row
from pivot_edit.core.layers import Layer
from pivot_edit.core.maps import Groups, MapSum, key_of

HERE = frozenset([DEEP])
LATE = Place(step=20, steps=50, sigma=1.0)
SITE = (3, 4)
TOKENS = SITE[0] * SITE[1]
Masks = tuple[torch.Tensor, torch.Tensor]


def self_call(
    layout: Layout = TWO, seed: int = 0, dtype: torch.dtype = torch.float64, heads: int = 2
) -> AttentionCall:
    return make_call("self", layout, seed, heads, 4, SITE, dtype=dtype, place=LATE)


def run(controller: MasaCtrl, call: AttentionCall) -> torch.Tensor:
    return controller(call, Attend(), controller.begin())


def mutual(
    call: AttentionCall, layout: Layout, union: bool = False, masks: dict[int, Masks] | None = None
) -> torch.Tensor:
    """Targets ask the source's keys, in union their own too. With token masks (of source, of
    target) by picture: once with the logits of all but the object's keys at -inf, once of all but
    the rest's, merged by the target's."""
    out = attention(call.q, call.k, call.v, call.heads)
    q, k, v = (split_heads(x.double(), call.heads) for x in (call.q, call.k, call.v))
    for target, source in layout.pairs:
        rows = [source, target] if union else [source]
        keys, values = (torch.cat([x[i] for i in rows], 1) for x in (k, v))
        logits = q[target] @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
        parts = [logits, logits]
        if masks is not None:
            theirs, own = masks[layout.rows[target].picture]
            inside = torch.cat([theirs, own] if union else [theirs])
            parts = [logits.masked_fill(~inside, -math.inf), logits.masked_fill(inside, -math.inf)]
            share = own.double()[:, None]
        else:
            share = torch.ones(TOKENS, 1).double()
        of, rest = (torch.softmax(part, -1) @ values for part in parts)
        out[target] = join_heads((of * share + rest * (1.0 - share))[None])[0]
    return out


def some(seed: int, pictures: int = 1) -> torch.Tensor:
    """Masks [pictures, *SITE] with both zeros and ones."""
    ranks = noise(seed, pictures, TOKENS).argsort(-1).argsort(-1)
    return (
        (ranks < 1 + torch.arange(pictures)[:, None] + seed % (TOKENS - 3))
        .float()
        .unflatten(-1, SITE)
    )


# without masks


@few
@given(layouts, st.integers(0, 99), st.integers(1, 4), st.booleans())
def test_targets_of_both_conditions_ask_the_source(
    layout: Layout, seed: int, heads: int, union: bool
) -> None:
    call = self_call(layout, seed, heads=heads)
    assert_exact(run(MasaCtrl(HERE, union=union), call), mutual(call, layout, union))


def test_union_reads_the_source_then_itself() -> None:
    """With the target's own keys far away it reads the source, with the source's far away
    itself."""
    call = self_call(Layout("c"))
    q = torch.ones_like(call.q)
    for near in (0, 1):
        k = torch.stack(
            [
                torch.full_like(row, 9.0 if index == near else -9.0)
                for index, row in enumerate(call.k)
            ]
        )
        out = run(MasaCtrl(HERE, union=True), call.replace(q, k, call.v))
        assert_exact(out[1], call.v[near].mean(0).expand(TOKENS, -1))


@few
@given(layouts, st.booleans(), st.booleans(), st.sampled_from([torch.float32, torch.float16]))
def test_source_rows_are_bit_equal_to_plain(
    layout: Layout, union: bool, masked: bool, dtype: torch.dtype
) -> None:
    call = self_call(layout, dtype=dtype)
    before = [x.clone() for x in (call.q, call.k, call.v)]
    masks = (some(3), some(4)) if masked else (None, None)
    out = run(MasaCtrl(HERE, 0.0, 1.0, union, *masks), call)
    assert out.dtype == dtype and not torch.equal(out, plain(call))
    assert torch.equal(out[layout.sources], plain(call)[layout.sources])
    assert all(torch.equal(x, y) for x, y in zip(before, (call.q, call.k, call.v), strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_equal_rows_give_the_source_bit_for_bit(dtype: torch.dtype, masked: bool) -> None:
    call = self_call(dtype=dtype)
    q = call.q[[0, 0, 2, 2]]
    ones = torch.ones(1, *SITE) if masked else None
    out = run(MasaCtrl(HERE, source_mask=ones, target_mask=ones), call.replace(q, call.k, call.v))
    assert torch.equal(out[1], out[0]) and torch.equal(out[3], out[2])
    assert torch.equal(out[[0, 2]], plain(call)[[0, 2]])


@few
@given(layouts, st.booleans())
def test_keys_that_stand_twice_change_nothing(layout: Layout, masked: bool) -> None:
    """Union with a target that holds the source's keys and values is mutual attention."""
    call = self_call(layout)
    order = [
        row.source if row.source is not None else index for index, row in enumerate(layout.rows)
    ]
    call = call.replace(call.q, call.k[order], call.v[order])
    masks = (some(3), some(3)) if masked else (None, None)
    both, one = (run(MasaCtrl(HERE, 0.0, 1.0, union, *masks), call) for union in (True, False))
    assert_exact(both, one)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_half_precision_is_within_twice_the_error_of_plain_attention(
    dtype: torch.dtype, union: bool, masked: bool
) -> None:
    masks = (some(3), some(4)) if masked else (None, None)
    tokens = {0: (some(3).flatten().bool(), some(4).flatten().bool())} if masked else None
    ours, theirs = 0.0, 0.0
    for seed in range(5):
        call = self_call(TWO, seed, dtype)
        out = run(MasaCtrl(HERE, 0.0, 1.0, union, *masks), call)
        ours += (out.double() - mutual(call, TWO, union, tokens))[[1, 3]].square().mean().item()
        plainly = plain(call).double() - attention(call.q, call.k, call.v, 2)
        theirs += plainly[[1, 3]].square().mean().item()
    assert math.sqrt(ours) <= 2 * math.sqrt(theirs)


def test_what_the_rest_of_the_chain_does_is_kept() -> None:
    call, controller = self_call(), MasaCtrl(HERE)
    out = controller(call, lambda inner: plain(inner) + 1.0, controller.begin())
    assert_exact(out, run(controller, call) + 1.0)


@pytest.mark.parametrize("union", [False, True])
def test_the_chain_runs_once(union: bool) -> None:
    attend, controller = Attend(), MasaCtrl(HERE, union=union)
    controller(self_call(), attend, controller.begin())
    assert len(attend.calls) == 1


@pytest.mark.parametrize("masks", [(None, None), (some(3), some(4))])
def test_what_the_rest_of_the_chain_gives_is_not_written_into(masks: Masks) -> None:
    call, controller = self_call(), MasaCtrl(HERE, 0.0, 1.0, True, *masks)
    given = torch.zeros_like(call.q)
    assert controller(call, lambda inner: given, controller.begin()).any() and not given.any()


# where and when


@pytest.mark.parametrize(
    "controller",
    [
        MasaCtrl(frozenset()),
        MasaCtrl(HERE, 0.5, 1.0),
        MasaCtrl(HERE, 0.0, 0.4),
        MasaCtrl(HERE, 1.0, 1.0),
        MasaCtrl(
            frozenset([dataclasses.replace(DEEP, depth=1), dataclasses.replace(DEEP, stage="up")])
        ),
    ],
)
@pytest.mark.parametrize("union", [False, True])
def test_without_layers_or_outside_the_window_the_very_same_call_is_handed_on(
    controller: MasaCtrl, union: bool
) -> None:
    call, attend = self_call(dtype=torch.float16), Attend()
    masked = dataclasses.replace(controller, union=union, source_mask=some(3), target_mask=some(4))
    out = masked(call, attend, masked.begin())
    assert attend.calls[0] is call and torch.equal(out, plain(call))


@pytest.mark.parametrize(
    "rows", [(Row("target", True),) * 4, (Row("source", True), Row("target", False, None)) * 2]
)
def test_rows_without_a_source_are_left_alone(rows: tuple[Row, ...]) -> None:
    call, attend = dataclasses.replace(self_call(), rows=rows), Attend()
    MasaCtrl(HERE)(call, attend, MasaCtrl(HERE).begin())
    assert attend.calls == [call] and attend.calls[0] is call


def test_the_papers_window_starts_at_step_four_of_fifty() -> None:
    controller = MasaCtrl(HERE)
    places = [Place(step, 50, 1.0) for step in range(50)]
    assert [place.step for place in places if controller.wants("self", place)] == list(range(4, 50))
    assert not any(controller.wants("cross", place) for place in places)
    assert [controller.reads(place) for place in places] == ["nothing"] * 4 + ["both"] * 46


def test_a_window_ends_before_its_end() -> None:
    controller = MasaCtrl(HERE, 0.2, 0.5)
    assert [step for step in range(50) if controller.wants("self", Place(step, 50, 1.0))] == list(
        range(10, 25)
    )


def test_cross_attention_is_read_only_for_masks_from_words_and_until_the_window_closes() -> None:
    """From the first step on, so that the window's first step has maps of a step before it."""
    auto = AutoMask({}, (2,))
    controller, places = (
        MasaCtrl(HERE, 0.2, 0.5, auto=auto),
        [Place(step, 50, 1.0) for step in range(50)],
    )
    assert [place.step for place in places if controller.wants("cross", place)] == list(range(25))
    assert [controller.reads(place) for place in places] == ["cond"] * 10 + ["both"] * 15 + [
        "nothing"
    ] * 25
    assert not any(MasaCtrl(HERE, 0.5, 0.5, auto=auto).wants("cross", place) for place in places)
    assert not MasaCtrl(frozenset(), auto=auto).wants("cross", LATE)


@pytest.mark.parametrize(("layers", "first"), [(SD1, 10), (SDXL, 64)])
def test_the_papers_layers_act_and_those_before_are_left_alone(
    layers: tuple[Layer, ...], first: int
) -> None:
    controller = MasaCtrl(decoder_layers(layers))
    acts = []
    for layer in layers:
        call = dataclasses.replace(
            self_call(), site=dataclasses.replace(self_call().site, layer=layer)
        )
        acts.append(not torch.equal(run(controller, call), plain(call)))
    assert acts == [index >= first for index in range(len(layers))]


# with masks


@few
@given(layouts, st.integers(0, 99), st.booleans(), st.booleans())
def test_the_object_asks_the_object_and_the_rest_the_rest(
    layout: Layout, seed: int, union: bool, shared: bool
) -> None:
    """Masks of one size with the site, of each picture or one for all."""
    count = 1 if shared else layout.pictures
    theirs, own = some(seed, count), some(seed + 1, count)
    masks = {
        i: (theirs[i % count].flatten().bool(), own[i % count].flatten().bool())
        for i in range(layout.pictures)
    }
    call = self_call(layout, seed)
    assert_exact(
        run(MasaCtrl(HERE, 0.0, 1.0, union, theirs, own), call), mutual(call, layout, union, masks)
    )


@pytest.mark.parametrize("given", ["source_mask", "target_mask"])
def test_one_mask_stands_for_both(given: str) -> None:
    call, mask = self_call(), some(3)
    both = MasaCtrl(HERE, source_mask=mask, target_mask=mask)
    one = (
        MasaCtrl(HERE, source_mask=mask)
        if given == "source_mask"
        else MasaCtrl(HERE, target_mask=mask)
    )
    assert torch.equal(run(one, call), run(both, call))


@pytest.mark.parametrize("factor", [2, 3, 16])
def test_masks_are_fitted_to_the_site_by_nearest(factor: int) -> None:
    call, masks = self_call(), (some(3), some(4))
    large = [noise(0, 1, SITE[0] * factor, SITE[1] * factor).float() for _ in masks]
    for one, mask in zip(large, masks, strict=True):
        one[:, ::factor, ::factor] = mask
    assert torch.equal(
        run(MasaCtrl(HERE, 0, 1, False, *large), call),
        run(MasaCtrl(HERE, 0, 1, False, *masks), call),
    )


def test_a_mask_of_half_belongs_to_the_rest() -> None:
    call, mask = self_call(), some(3)
    soft = torch.where(mask > 0, 0.51, 0.5)
    assert torch.equal(
        *(run(MasaCtrl(HERE, source_mask=one, target_mask=one), call) for one in (mask, soft))
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("union", [False, True])
def test_masks_of_ones_are_no_masks(dtype: torch.dtype, union: bool) -> None:
    call, ones = self_call(dtype=dtype), torch.ones(1, *SITE)
    without = run(MasaCtrl(HERE, union=union), call)
    for masks in ((ones, ones), (ones, None), (None, ones)):
        assert torch.equal(run(MasaCtrl(HERE, 0.0, 1.0, union, *masks), call), without)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("own", [torch.zeros(1, *SITE), some(4), torch.ones(1, *SITE), None])
def test_a_source_mask_of_zeros_restricts_nothing(
    dtype: torch.dtype, union: bool, own: torch.Tensor | None
) -> None:
    call = self_call(dtype=dtype)
    out = run(MasaCtrl(HERE, 0.0, 1.0, union, torch.zeros(1, *SITE), own), call)
    assert torch.isfinite(out).all() and torch.equal(out, run(MasaCtrl(HERE, union=union), call))


@pytest.mark.parametrize("union", [False, True])
def test_a_target_mask_of_zeros_or_ones_is_only_the_rest_or_only_the_object(union: bool) -> None:
    call, theirs = self_call(), some(3)
    for own in (torch.zeros(1, *SITE), torch.ones(1, *SITE)):
        masks = {0: (theirs.flatten().bool(), own.flatten().bool())}
        assert_exact(
            run(MasaCtrl(HERE, 0.0, 1.0, union, theirs, own), call), mutual(call, TWO, union, masks)
        )


def test_the_rest_reads_everything_where_the_source_is_all_object() -> None:
    call, own = self_call(), some(4)
    out = run(MasaCtrl(HERE, source_mask=torch.ones(1, *SITE), target_mask=own), call)
    assert_exact(out, mutual(call, TWO))


@pytest.mark.parametrize("union", [False, True])
def test_no_map_is_ever_built(union: bool) -> None:
    call = make_call("self", TWO, 0, 8, 2, (12, 12), place=LATE)
    call = dataclasses.replace(call, fused=lambda q, k, v: torch.zeros_like(q))
    mask = (noise(0, 1, 12, 12) > 0).float()
    controller = MasaCtrl(HERE, 0.0, 1.0, union, mask, mask)
    with Sizes() as sizes:
        controller(call, lambda inner: torch.zeros_like(inner.q), controller.begin())
    assert sizes.made and max(sizes.made) <= call.q.numel()


# masks from words

WORDS: Groups = {
    ("source", 0): (12, ((1, 2),)),
    ("target", 0): (12, ((3,),)),
    ("target", 1): (12, ((4, 5),)),
}


def cross_call(
    layout: Layout,
    seed: int = 0,
    step: int = LATE.step,
    layer: int = 0,
    scale: int = 2,
    size: tuple[int, int] = SITE,
) -> AttentionCall:
    at = Layer("down", 1, layer, 0, scale)
    call = make_call(
        "cross", layout, seed, 2, 4, size, 12, place=Place(step, 50, 1.0), latent=(6, 8), layer=at
    )
    return probed(call.replace(3 * call.q, call.k, call.v))


def normalised(calls: list[AttentionCall], row: int, found: tuple[int, ...]) -> torch.Tensor:
    """The words' map over heads and layers, from 0 to 1, [tokens]."""
    maps = sum(probabilities(call.q, call.k, call.heads)[row].mean(0) for call in calls)
    flat = maps[:, list(found)].sum(-1)
    return (flat - flat.min()) / (flat.max() - flat.min())


@few
@given(
    st.builds(Layout, st.sampled_from(["c", "uc", "cu"]), st.integers(1, 2), st.integers(1, 2)),
    st.integers(0, 99),
    st.floats(0.1, 0.6),
    st.booleans(),
)
def test_masks_come_from_the_words_maps_of_the_step_before(
    layout: Layout, seed: int, threshold: float, union: bool
) -> None:
    controller = MasaCtrl(HERE, 0.0, 1.0, union, auto=AutoMask(WORDS, (2, 4), threshold))
    state, call = controller.begin(), self_call(layout, seed)
    older = cross_call(layout, seed + 50, LATE.step - 2)
    before = [
        cross_call(layout, seed, LATE.step - 1),
        cross_call(layout, seed + 1, LATE.step - 1, 1),
    ]
    other = cross_call(layout, seed + 2, LATE.step - 1, layer=2, scale=4, size=(2, 2))
    now = cross_call(layout, seed + 51)
    for each in (older, before[0], other, before[1], *([now] if union else [])):
        assert torch.equal(controller(each, plain, state), plain(each))
    expected = mutual(call, layout, union)
    for target, source in layout.pairs:
        first = next(i for i, row in enumerate(layout.rows) if row.cond)
        shift = first - min(
            i for i, row in enumerate(layout.rows) if row.cond == layout.rows[target].cond
        )
        found = WORDS["target", layout.rows[target].target][1][0]
        own = normalised(before, target + shift, found) >= threshold
        theirs = normalised(before, source + shift, (1, 2)) >= threshold
        if not (theirs.all() and own.all()):
            masks = dict.fromkeys(range(layout.pictures), (theirs, own))
            expected[target] = mutual(call, layout, union, masks)[target]
    assert_exact(controller(call, Attend(), state), expected)


def test_before_any_map_is_seen_there_is_no_mask() -> None:
    controller = MasaCtrl(HERE, auto=AutoMask(WORDS, (2,)))
    assert torch.equal(run(controller, self_call()), run(MasaCtrl(HERE), self_call()))


def test_a_given_mask_goes_before_one_from_words() -> None:
    auto, mask = AutoMask(WORDS, (2,), 0.5), some(3)
    controller = MasaCtrl(HERE, source_mask=mask, auto=auto)
    state = controller.begin()
    controller(cross_call(TWO, step=LATE.step - 1), plain, state)
    own = auto.masks(state.maps.finished(LATE.step))["target", 0, 0]
    masks = {0: (mask.flatten().bool(), own.flatten().bool())}
    assert_exact(controller(self_call(), Attend(), state), mutual(self_call(), TWO, False, masks))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_constant_maps_give_no_mask_and_no_nan(dtype: torch.dtype) -> None:
    controller, call = MasaCtrl(HERE, auto=AutoMask(WORDS, (2,))), self_call(dtype=dtype)
    state, flat = controller.begin(), cross_call(TWO, step=LATE.step - 1)
    controller(probed(flat.replace(torch.zeros_like(flat.q), flat.k, flat.v)), plain, state)
    out = controller(call, Attend(), state)
    assert torch.isfinite(out).all() and torch.equal(out, run(MasaCtrl(HERE), call))


@pytest.mark.parametrize(
    ("maps", "threshold", "mask"),
    [
        ([[0.0, 1.0], [2.0, 4.0]], 0.5, [[0, 0], [1, 1]]),
        ([[8.0, 9.0], [10.0, 12.0]], 0.5, [[0, 0], [1, 1]]),
        ([[8.0, 9.0], [10.0, 12.0]], 0.51, [[0, 0], [0, 1]]),
        ([[8.0, 9.0], [10.0, 12.0]], 0.25, [[0, 1], [1, 1]]),
        ([[8.0, 9.0], [10.0, 12.0]], 0.0, [[1, 1], [1, 1]]),
        ([[8.0, 9.0], [10.0, 12.0]], 1.0, [[0, 0], [0, 1]]),
        ([[5.0, 5.0], [5.0, 5.0]], 0.1, [[0, 0], [0, 0]]),
        ([[0.0, 0.0], [0.0, 0.0]], 0.1, [[0, 0], [0, 0]]),
        ([[5.0, 5.0], [5.0, 5.0]], 0.0, [[1, 1], [1, 1]]),
    ],
)
def test_maps_are_normalised_from_their_least_to_their_greatest(
    maps: list[list[float]], threshold: float, mask: list[list[int]]
) -> None:
    state, row = MapSum(), Row("target", True, 0, 1, 2)
    state.sums["target", 1, 2] = torch.tensor(maps)[..., None]
    found = AutoMask({}, (2,), threshold).masks(state)
    assert list(found) == [key_of(row)] and found["target", 1, 2].tolist() == mask
    assert AutoMask({}, (2,)).masks(MapSum()) == {}


def test_several_words_are_summed_before_they_are_normalised() -> None:
    state = MapSum()
    state.sums["source", 0, 0] = torch.tensor([[[1.0, 0.0], [0.0, 4.0]], [[2.0, 0.0], [1.0, 3.0]]])
    found = AutoMask({}, (2,), 0.3).masks(state)
    assert found["source", 0, 0].tolist() == [[0, 1], [1, 1]]


def test_unconditioned_rows_take_the_masks_of_the_conditioned_ones() -> None:
    auto = AutoMask(WORDS, (2,), 0.5)
    controller = MasaCtrl(HERE, auto=auto)
    state = controller.begin()
    controller(cross_call(TWO, step=LATE.step - 1), plain, state)
    call = self_call()
    call = call.replace(*(x[[2, 3, 2, 3]] for x in (call.q, call.k, call.v)))
    out = controller(call, Attend(), state)
    assert torch.equal(out[:2], out[2:]) and not torch.equal(out, run(MasaCtrl(HERE), call))


def test_values_of_the_source_not_only_its_keys_are_read() -> None:
    call = self_call(Layout("c"))
    v = torch.stack([torch.zeros_like(call.v[0]), torch.ones_like(call.v[0])])
    assert run(MasaCtrl(HERE), call.replace(call.q, call.k, v))[1].abs().max() == 0
    half = run(MasaCtrl(HERE, union=True), call.replace(call.q, call.k[[0, 0]], v))[1]
    assert_exact(half, torch.full_like(half, 0.5))
    assert_exact(times_v(probabilities(call.q, call.k, 2), v, 2)[1], torch.ones_like(half))
