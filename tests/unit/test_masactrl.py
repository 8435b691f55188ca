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

from pivot_edit.attention.masactrl import (
    AutoMask,
    MasaCtrl,
    MasaCtrlOptions,
    decoder_layers,
)
from pivot_edit.core.control import AttentionCall, Place, Row
from pivot_edit.core.errors import PivotError
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
    """From the step before the window on, whose maps its first step may need."""
    auto = AutoMask({}, (2,))
    controller, places = (
        MasaCtrl(HERE, 0.2, 0.5, auto=auto),
        [Place(step, 50, 1.0) for step in range(50)],
    )
    read = [place.step for place in places if controller.wants("cross", place)]
    assert read == list(range(9, 25))
    assert [controller.reads(place) for place in places] == [
        *["nothing"] * 9,
        "cond",
        *["both"] * 15,
        *["nothing"] * 25,
    ]
    assert not any(MasaCtrl(HERE, 0.5, 0.5, auto=auto).wants("cross", place) for place in places)
    assert not MasaCtrl(frozenset(), auto=auto).wants("cross", LATE)
    drawn = MasaCtrl(HERE, source_mask=some(3), target_mask=some(4), auto=auto)
    assert not drawn.wants("cross", LATE) and drawn.begin().words is None


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


def masked_by(
    crosses: list[AttentionCall],
    layout: Layout,
    call: AttentionCall,
    union: bool,
    threshold: float,
) -> torch.Tensor:
    """Mutual attention under masks of the conditioned rows' maps, summed over calls `crosses` of
    `layout`; `call` has rows of the same pictures and targets, in chunks of its own."""
    rows = call.rows
    expected = mutual(call, call_layout(call), union)
    firsts = {member(row): i for i, row in reversed(list(enumerate(layout.rows))) if row.cond}
    for target, source in call_layout(call).pairs:
        words = WORDS["target", rows[target].target][1][0]
        own = normalised(crosses, firsts[member(rows[target])], words) >= threshold
        theirs = normalised(crosses, firsts[member(rows[source])], (1, 2)) >= threshold
        if not (theirs.all() and own.all()):
            masks = dict.fromkeys(range(2), (theirs, own))
            expected[target] = mutual(call, call_layout(call), union, masks)[target]
    return expected


def member(row: Row) -> tuple[str, int, int]:
    return row.branch, row.target, row.picture


def call_layout(call: AttentionCall) -> Layout:
    """The layout of a call's rows."""
    chunks: dict[int, str] = {row.chunk: "uc"[row.cond] for row in call.rows}
    return Layout(
        "".join(chunks.values()),
        1 + max(row.target for row in call.rows),
        1 + max(row.picture for row in call.rows),
    )


UP = Layer("up", 1, 0, 0, 2)
BOTH = frozenset([DEEP, UP])


def at_layer(call: AttentionCall, layer: Layer) -> AttentionCall:
    return dataclasses.replace(call, site=dataclasses.replace(call.site, layer=layer))


@few
@given(
    st.builds(Layout, st.sampled_from(["c", "uc", "cu"]), st.integers(1, 2), st.integers(1, 2)),
    st.integers(0, 99),
    st.floats(0.1, 0.6),
    st.booleans(),
)
def test_masks_come_from_the_words_maps_of_the_same_step_so_far(
    layout: Layout, seed: int, threshold: float, union: bool
) -> None:
    """As the reference collects them (METHODS 7): each layer has the maps of those before it."""
    controller = MasaCtrl(BOTH, 0.0, 1.0, union, auto=AutoMask(WORDS, (2, 4), threshold))
    state, call = controller.begin(), self_call(layout, seed)
    before = cross_call(layout, seed + 50, LATE.step - 1)
    now = [cross_call(layout, seed), cross_call(layout, seed + 1, layer=1)]
    other = cross_call(layout, seed + 2, layer=2, scale=4, size=(2, 2))
    for each in (before, other, now[0]):
        assert torch.equal(controller(each, plain, state), plain(each))
    first = masked_by(now[:1], layout, call, union, threshold)
    assert_exact(controller(call, Attend(), state), first)
    controller(now[1], plain, state)
    later = at_layer(call, UP)
    assert_exact(controller(later, Attend(), state), masked_by(now, layout, call, union, threshold))
    # whoever asks a layer again in the same step gets its own masks again
    assert_exact(controller(call, Attend(), state), first)
    assert list(state.words.current.values()) == [True]


@few
@given(st.integers(1, 2), st.integers(1, 2), st.integers(0, 99), st.booleans())
def test_rows_in_two_calls_have_the_masks_of_one_call_where_conditioned_ones_come_first(
    targets: int, pictures: int, seed: int, union: bool
) -> None:
    controller = MasaCtrl(BOTH, 0.0, 1.0, union, auto=AutoMask(WORDS, (2,), 0.4))
    state, layout = controller.begin(), Layout("c", targets, pictures)
    now = [cross_call(layout, seed), cross_call(layout, seed + 1, layer=1)]
    for chunks in "cu":
        call = self_call(Layout(chunks, targets, pictures), seed + 3)
        for count, layer in ((1, DEEP), (2, UP)):
            if chunks == "c":
                controller(now[count - 1], plain, state)
            expected = masked_by(now[:count], layout, call, union, 0.4)
            assert_exact(controller(at_layer(call, layer), Attend(), state), expected)
    assert list(state.words.current.values()) == [True]


@few
@given(st.integers(1, 2), st.integers(1, 2), st.integers(0, 99), st.booleans())
def test_all_rows_of_a_step_have_the_maps_of_the_step_before_where_unconditioned_ones_come_first(
    targets: int, pictures: int, seed: int, union: bool
) -> None:
    controller = MasaCtrl(BOTH, 0.0, 1.0, union, auto=AutoMask(WORDS, (2,), 0.4))
    state, layout = controller.begin(), Layout("c", targets, pictures)
    older = cross_call(layout, seed + 60, LATE.step - 2)
    before = [
        cross_call(layout, seed, LATE.step - 1),
        cross_call(layout, seed + 1, LATE.step - 1, 1),
    ]
    for each in (older, *before):
        controller(each, plain, state)
    for chunks in "uc":
        call = self_call(Layout(chunks, targets, pictures), seed + 3)
        for layer in (DEEP, UP):
            controller(cross_call(layout, seed + 40, layer=layer is UP), plain, state)
            expected = masked_by(before, layout, call, union, 0.4)
            assert_exact(controller(at_layer(call, layer), Attend(), state), expected)
    assert list(state.words.current.values()) == [False]


def test_before_any_map_is_seen_there_is_no_mask() -> None:
    """In the first step, and in layers that run before the step's first map."""
    controller = MasaCtrl(HERE, auto=AutoMask(WORDS, (2,)))
    assert torch.equal(run(controller, self_call()), run(MasaCtrl(HERE), self_call()))
    state = controller.begin()
    controller(cross_call(TWO, step=LATE.step - 1), plain, state)
    out = controller(self_call(), Attend(), state)
    assert torch.equal(out, run(MasaCtrl(HERE), self_call()))


def test_a_given_mask_goes_before_one_from_words() -> None:
    auto, mask, now = AutoMask(WORDS, (2,), 0.5), some(3), cross_call(TWO)
    controller = MasaCtrl(HERE, source_mask=mask, auto=auto)
    state = controller.begin()
    controller(now, plain, state)
    own = normalised([now], TWO.edited[0][0], (3,)) >= 0.5
    masks = {0: (mask.flatten().bool(), own)}
    assert_exact(controller(self_call(), Attend(), state), mutual(self_call(), TWO, False, masks))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_constant_maps_give_no_mask_and_no_nan(dtype: torch.dtype) -> None:
    controller, call = MasaCtrl(HERE, auto=AutoMask(WORDS, (2,))), self_call(dtype=dtype)
    state, flat = controller.begin(), cross_call(TWO)
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
    controller(cross_call(TWO), plain, state)
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


# conditioned and unconditioned rows apart

READS = ("source", "joint", "none")


@few
@given(layouts, st.integers(0, 99), st.sampled_from(READS), st.sampled_from(READS), st.booleans())
def test_conditioned_and_unconditioned_rows_read_what_each_is_told_to(
    layout: Layout, seed: int, cond: str, uncond: str, masked: bool
) -> None:
    """ProxMasaCtrl's inject_cond and inject_uncond (METHODS 8), each row by its own rule."""
    call, masks = self_call(layout, seed), (some(3), some(4)) if masked else (None, None)
    tokens = (
        dict.fromkeys(range(2), tuple(each.flatten().bool() for each in masks)) if masked else None
    )
    forms = {
        "source": mutual(call, layout, False, tokens),
        "joint": mutual(call, layout, True, tokens),
        "none": attention(call.q, call.k, call.v, call.heads),
    }
    expected = torch.stack(
        [forms[cond if row.cond else uncond][i] for i, row in enumerate(layout.rows)]
    )
    controller = MasaCtrl(HERE, 0.0, 1.0, False, *masks, None, cond, uncond)
    assert_exact(run(controller, call), expected)


@pytest.mark.parametrize("union", [False, True])
def test_injection_follows_the_mode_unless_it_says_otherwise(union: bool) -> None:
    call, said = self_call(), "joint" if union else "source"
    plainly = run(MasaCtrl(HERE, union=union), call)
    for options in ({"inject_cond": said}, {"inject_uncond": said}, {"inject_cond": "mode"}):
        assert torch.equal(run(MasaCtrl(HERE, union=union, **options), call), plainly)
    assert not torch.equal(run(MasaCtrl(HERE, union=union, inject_cond="none"), call), plainly)


@pytest.mark.parametrize(
    ("cond", "uncond", "reads"),
    [
        ("mode", "mode", "both"),
        ("source", "joint", "both"),
        ("joint", "none", "cond"),
        ("none", "source", "both"),
        ("none", "none", "nothing"),
    ],
)
def test_the_unconditioned_source_is_run_only_where_a_row_reads_it(
    cond: str, uncond: str, reads: str
) -> None:
    controller = MasaCtrl(HERE, auto=AutoMask(WORDS, (2,)), inject_cond=cond, inject_uncond=uncond)
    assert controller.reads(LATE) == reads
    assert controller.wants("cross", LATE) is controller.wants("self", LATE) is (reads != "nothing")


def test_unconditioned_rows_that_read_nothing_do_not_decide_whose_maps_masks_are_of() -> None:
    controller = MasaCtrl(HERE, auto=AutoMask(WORDS, (2,), 0.4), inject_uncond="none")
    state, layout = controller.begin(), Layout("c")
    uncond, cond = self_call(Layout("u"), 1), self_call(layout, 2)
    assert torch.equal(controller(uncond, plain, state), plain(uncond))
    now = cross_call(layout)
    controller(now, plain, state)
    expected = masked_by([now], layout, cond, False, 0.4)
    assert_exact(controller(cond, Attend(), state), expected)


@pytest.mark.parametrize("name", ["inject_cond", "inject_uncond"])
def test_an_injection_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(
        PivotError, match=rf"{name} to be one of \('mode', 'source', 'joint', 'none'\)"
    ):
        MasaCtrlOptions(**{name: "tar"})


# what people are told


def shares_of(*shares: float) -> torch.Tensor:
    """Masks [pictures, 10, 10] with so much of each white."""
    places = torch.arange(100).reshape(10, 10) / 100
    return torch.stack([(places < share).float() for share in shares])


def told(controller: MasaCtrl, *calls: AttentionCall) -> tuple[str, ...]:
    state = controller.begin()
    for call in calls:
        controller(call, Attend(), state)
    return controller.remark(state)


def large(layout: Layout = TWO) -> AttentionCall:
    call = make_call("self", layout, 0, queries=(10, 10), place=LATE)
    return call


def test_without_masks_there_is_nothing_to_say() -> None:
    assert told(MasaCtrl(HERE), self_call()) == told(MasaCtrl(HERE, union=True), self_call()) == ()
    assert told(MasaCtrl(HERE, auto=AutoMask(WORDS, (2,)))) == ()


def test_the_masks_shares_of_the_picture_are_told() -> None:
    masks = {"source_mask": shares_of(0.25), "target_mask": shares_of(0.5)}
    said = ("The masks hold 25 % of the source, 50 % of the target.",)
    assert told(MasaCtrl(HERE, **masks), large()) == said
    several = shares_of(0.25, 0.75)
    (line,) = told(MasaCtrl(HERE, source_mask=several), large(Layout("uc", 2, 2)))
    for part in (
        "25 % of the source of picture 1",
        "75 % of the source of picture 2",
        "25 % of target 1 of picture 1",
        "75 % of target 2 of picture 2",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("share", "odd"),
    [
        (0.0, "under 1 % of it: draw more of the picture white"),
        (0.01, ""),
        (0.95, ""),
        (0.96, "over 95 % of it: draw less of the picture white"),
        (1.0, "over 95 % of it: draw less of the picture white"),
    ],
)
def test_a_mask_of_nearly_nothing_or_nearly_all_is_told_with_what_to_change(
    share: float, odd: str
) -> None:
    masks = {"source_mask": shares_of(0.5), "target_mask": shares_of(share)}
    said = told(MasaCtrl(HERE, **masks), large())
    expected = (f"The mask of the target holds {odd}.",) if odd else ()
    assert said == (
        f"The masks hold 50 % of the source, {100 * share:g} % of the target.",
        *expected,
    )


@pytest.mark.parametrize(
    ("threshold", "change"),
    [(0.0, "over 95 % of it in 1 of 1 steps: raise mask_threshold, or write other mask_words")],
)
def test_words_whose_mask_is_nearly_all_are_told_what_to_change(
    threshold: float, change: str
) -> None:
    controller = MasaCtrl(HERE, auto=AutoMask(WORDS, (2,), threshold))
    assert told(controller, cross_call(TWO), self_call()) == (
        "The words' masks are of the maps of the current step.",
        "The masks hold 100 % of the source, 100 % of the target.",
        f"The mask of the source holds {change}.",
        f"The mask of the target holds {change}.",
    )


def test_words_whose_mask_is_nearly_nothing_in_some_steps_are_told_so() -> None:
    controller = MasaCtrl(HERE, auto=AutoMask(WORDS, (2,), 0.5))
    flat = cross_call(TWO)
    flat = probed(flat.replace(torch.zeros_like(flat.q), flat.k, flat.v))
    later = dataclasses.replace(LATE, step=LATE.step + 1)
    calls = (cross_call(TWO, step=later.step), dataclasses.replace(self_call(), place=later))
    said = told(controller, flat, self_call(), *calls)
    assert said[2:] == tuple(
        f"The mask of the {name} holds under 1 % of it in 1 of 2 steps: lower mask_threshold, or "
        "write other mask_words."
        for name in ("source", "target")
    )


def test_which_steps_maps_the_masks_are_of_is_told() -> None:
    controller = MasaCtrl(HERE, auto=AutoMask(WORDS, (2,), 0.4))
    before, now = cross_call(TWO, step=LATE.step - 1), cross_call(TWO)
    uncond, cond = self_call(Layout("u")), self_call(Layout("c"))
    assert told(controller, now, self_call())[0] == (
        "The words' masks are of the maps of the current step."
    )
    apart = told(controller, before, uncond, now, cond)
    assert apart[0] == (
        "The words' masks are of the maps of the step before in 1 of 1 steps, because "
        "unconditioned rows ran in a call before the others."
    )
    late = dataclasses.replace(LATE, step=LATE.step + 1)
    both = told(
        controller,
        *(before, uncond, now, cond, cross_call(TWO, step=late.step)),
        dataclasses.replace(self_call(), place=late),
    )
    assert both[0] == "The words' masks are of the maps of the current step in 1 of 2 steps."
    assert "the step before in 1 of 2 steps" in both[1]


def test_layers_without_a_mask_and_runs_without_maps_are_told() -> None:
    controller = MasaCtrl(BOTH, auto=AutoMask(WORDS, (2,), 0.4))
    said = told(controller, self_call(), cross_call(TWO), at_layer(self_call(), UP))
    assert said[1] == (
        "No map comes before down.1.0, which read without the words' masks. The layers of auto "
        "come after maps."
    )
    unseen = dataclasses.replace(cross_call(TWO), probe=None)
    assert told(controller, unseen, self_call()) == (
        "No map of mask_words was seen, so that they masked nothing. Areas and bounds of a "
        "conditioning hide maps: connect source_mask and target_mask.",
    )
