"""Local blend: where a target may differ from its source, against METHODS 3.7 written out in
float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import pytest
import torch
from calls import Attend, Layout, make_call, plain, probed
from hypothesis import given
from hypothesis import strategies as st
from reference import few, noise, probabilities

from pivot_edit.attention.local_blend import (
    HALF_LIFE,
    BlendState,
    BlendWords,
    LocalBlend,
    blend,
)
from pivot_edit.attention.prompt_to_prompt import PromptToPrompt
from pivot_edit.core.control import AttentionCall, Place, Row
from pivot_edit.core.errors import PivotError
from pivot_edit.core.layers import Layer
from pivot_edit.core.maps import Columns, MapSum
from pivot_edit.core.words import Alignment

Named = tuple[tuple[str, Columns], ...]
COLUMNS = 12
SITE, SIZE = (3, 4), (6, 8)
BATCH = Layout("c")


def words_at(*columns: Columns, length: int = COLUMNS) -> BlendWords:
    """Words in the source, in the target, to subtract in the source and in the target."""
    listed = ((("word", each),) if each else () for each in columns)
    return BlendWords(length, length, *listed)


CAT = words_at((1, 2), (3,))

columns = st.lists(st.integers(0, COLUMNS - 1), max_size=3, unique=True).map(tuple)
blend_words = st.builds(words_at, columns, columns, columns, columns)


def place(step: int, steps: int = 10) -> Place:
    return Place(step, steps, 1.0)


def cross(
    step: int, layout: Layout = BATCH, seed: int = 0, layer: int = 0, scale: int = 2
) -> AttentionCall:
    at = Layer("up", 1, layer, 0, scale)
    call = make_call("cross", layout, seed, 2, 4, SITE, COLUMNS, place=place(step), layer=at)
    return probed(call.replace(3 * call.q, call.k, call.v))


def see(controller: LocalBlend, calls: Iterable[AttentionCall]) -> BlendState:
    """The state of a run after some calls."""
    state = controller.begin()
    for call in calls:
        controller(call, plain, state)
    return state


def latents(layout: Layout = BATCH, seed: int = 9) -> torch.Tensor:
    return noise(seed, len(layout.rows), 4, *SIZE).float()


def mask_of(
    controller: LocalBlend, state: BlendState, layout: Layout = BATCH, step: int = 9
) -> torch.Tensor:
    """The masks [targets, H, W] of one step, read from latents that are 0 in the source and 1 in
    the target."""
    x = torch.tensor([float(row.branch == "target") for row in layout.rows])[
        :, None, None, None
    ].expand(-1, 4, *SIZE)
    out = controller.after_step(x, layout.rows, place(step), state)
    assert torch.equal(out[:, :1].expand_as(out), out)
    return out[[target for target, _ in layout.pairs], 0]


# mixing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_blending_is_exact_where_the_mask_is_zero_or_one(dtype: torch.dtype) -> None:
    source, target = (noise(0, 4, 6, 8) * 1e4).to(dtype), noise(1, 4, 6, 8).to(dtype)
    mask = (noise(2, 6, 8) > 0).to(dtype)
    expected = torch.where(mask.bool(), target, source)
    assert torch.equal(blend(source, target, mask), expected)
    assert torch.equal(blend(source, target, 3 * mask - 1), expected)


def test_blending_never_lets_what_is_masked_out_through() -> None:
    source, target = torch.zeros(1, 1, 2), torch.tensor([[[torch.nan, 1.0]]])
    assert blend(source, target, torch.tensor([[0.0, 1.0]])).flatten().tolist() == [0.0, 1.0]


def test_blending_is_linear_in_between() -> None:
    source, target, mask = noise(0, 4, 6, 8), noise(1, 4, 6, 8), noise(2, 6, 8).sigmoid()
    expected = source + mask * (target - source)
    torch.testing.assert_close(blend(source, target, mask), expected, rtol=0, atol=1e-12)


# masks of words


def mask_by_hand(
    controller: LocalBlend, words: BlendWords, theirs: torch.Tensor, own: torch.Tensor
) -> torch.Tensor:
    """(source or target looks at the words, if any) and not (source or target looks at those to
    keep), of summed maps [h, w, columns]."""

    def looked_at(
        pairs: Sequence[tuple[torch.Tensor, Named]], threshold: float, pool: bool
    ) -> torch.Tensor:
        any_of = torch.zeros(SIZE, dtype=torch.bool)
        for maps, named in pairs:
            if named:
                found = [column for _, each in named for column in each]
                one = maps[..., found].sum(-1)
                any_of |= paper(one, threshold, pool) if controller.pool else rule(one, threshold)
        return any_of

    inside = looked_at([(theirs, words.source), (own, words.target)], controller.threshold, True)
    if not words.source and not words.target:
        inside = torch.ones(SIZE, dtype=torch.bool)
    kept = [(theirs, words.source_subtract), (own, words.target_subtract)]
    return inside & ~looked_at(kept, controller.subtract_threshold, False)


def paper(one: torch.Tensor, threshold: float, pool: bool) -> torch.Tensor:
    """The paper's rule: pooled 3x3 unless to keep, resized by nearest, a share of the greatest."""
    padded = torch.nn.functional.pad(one, (1, 1, 1, 1), value=-1.0)
    one = padded.unfold(0, 3, 1).unfold(1, 3, 1).amax((-1, -2)) if pool else one
    one = one.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return one / one.max() > threshold


def rule(one: torch.Tensor, threshold: float) -> torch.Tensor:
    """Ours: means of 1, 2, 1 along both sides, twice as large by means of 3, 1, a share of the
    range."""
    for side in (0, 1):
        first, last = one.narrow(side, 0, 1), one.narrow(side, -1, 1)
        before = torch.cat([first, one.narrow(side, 0, one.shape[side] - 1)], side)
        after = torch.cat([one.narrow(side, 1, one.shape[side] - 1), last], side)
        one = (before + 2 * one + after) / 4
    for side in (0, 1):
        first, last = one.narrow(side, 0, 1), one.narrow(side, -1, 1)
        before = torch.cat([first, one.narrow(side, 0, one.shape[side] - 1)], side)
        after = torch.cat([one.narrow(side, 1, one.shape[side] - 1), last], side)
        halves = [(before + 3 * one) / 4, (3 * one + after) / 4]
        one = torch.stack(halves, side + 1).flatten(side, side + 1)
    return (one - one.min()) / (one.max() - one.min()) > threshold


def summed(calls: Iterable[AttentionCall], row: int, half_life: float | None) -> torch.Tensor:
    """The maps [h, w, columns] of one row, over heads and calls, as they count at the last step."""
    calls = list(calls)
    last, total = max(call.place.step for call in calls), torch.zeros(*SITE, COLUMNS).double()
    for call in calls:
        age = (last - call.place.step) / call.place.steps
        share = 1.0 if half_life is None else 0.5 ** (age / half_life)
        maps = probabilities(call.q, call.k, call.heads)[row].mean(0).unflatten(0, SITE)
        total += share * maps
    return total


@few
@given(
    st.builds(Layout, st.just("c"), st.integers(1, 3), st.integers(1, 2)),
    st.lists(blend_words, min_size=3, max_size=3).map(tuple),
    st.floats(0.05, 0.95),
    st.floats(0.05, 0.95),
    st.booleans(),
    st.integers(0, 99),
)
def test_the_mask_is_where_the_words_and_not_those_to_keep_are_looked_at(
    layout: Layout,
    words: tuple[BlendWords, ...],
    threshold: float,
    subtract: float,
    pool: bool,
    seed: int,
) -> None:
    controller = LocalBlend(words[: layout.targets], (2,), threshold, subtract, pool=pool)
    calls = [
        cross(3 * step, layout, seed + 7 * step + layer, layer)
        for step in range(2)
        for layer in range(2)
    ]
    masks = mask_of(controller, see(controller, calls), layout)
    for mask, (target, source) in zip(masks, layout.pairs, strict=True):
        life = None if pool else HALF_LIFE
        theirs, own = summed(calls, source, life), summed(calls, target, life)
        assert torch.equal(
            mask.bool(), mask_by_hand(controller, words[layout.rows[target].target], theirs, own)
        )


def test_a_mask_of_words_is_neither_everything_nor_nothing() -> None:
    """Else the test above would prove little."""
    controller = LocalBlend((CAT,), (2,), 0.6, pool=False)
    assert 0.1 < mask_of(controller, see(controller, [cross(0)])).mean() < 0.9


def only(call: AttentionCall, rows: list[int], layout: tuple[Row, ...]) -> AttentionCall:
    """Some rows of a call as a call of their own, told to be those of a layout."""
    return probed(
        dataclasses.replace(call.replace(call.q[rows], call.k[rows], call.v[rows]), rows=layout)
    )


def test_pooling_adds_the_neighbours_of_every_position_and_subtracts_none() -> None:
    """One position of an 8x8 map is looked at, another one is to be kept; the latent is twice as
    large."""
    controller = LocalBlend((words_at((0,), (), (0,), length=1),), pool=True)
    state = controller.begin()
    state.maps.sums = {
        ("source", 0, 0): torch.zeros(8, 8, 2),
        ("target", 0, 0): torch.zeros(8, 8, 2),
    }
    state.maps.sums["source", 0, 0][3, 4, 0] = state.maps.sums["source", 0, 0][2, 4, 1] = 1.0
    expected = torch.zeros(8, 8)
    expected[2:5, 3:6] = 1.0
    expected[2, 4] = 0.0
    out = controller.after_step(
        torch.eye(2)[:, :1, None, None].expand(2, 1, 16, 16), BATCH.rows, place(9), state
    )
    assert torch.equal(1.0 - out[1, 0], expected.repeat_interleave(2, 0).repeat_interleave(2, 1))


@pytest.mark.parametrize(("floor", "pool"), [(0.0, True), (0.0, False), (5.0, False)])
def test_a_floor_of_attention_everywhere_hides_no_object(floor: float, pool: bool) -> None:
    """A share of the greatest value finds an object only where the rest is not looked at."""
    objects = torch.zeros(8, 8)
    objects[2:6, 3:7] = 1.0
    state = LocalBlend((words_at((0,), (), length=1),), pool=pool).begin()
    state.maps.sums = dict.fromkeys(
        (("source", 0, 0), ("target", 0, 0)), (objects + floor)[..., None]
    )
    controller = LocalBlend((words_at((0,), (0,), length=1),), pool=pool)
    x = torch.eye(2)[:, :1, None, None].expand(2, 1, 8, 8)
    mask = 1.0 - controller.after_step(x, BATCH.rows, place(9), state)[1, 0]
    found, true = mask.bool(), objects.bool()
    share = (found & true).sum() / (found | true).sum()
    assert share > 0.7 or pool and share > 0.4


def test_unconditioned_rows_do_not_count() -> None:
    whole = cross(0, Layout("uc"))
    half = only(whole, [2, 3], BATCH.rows)
    controller = LocalBlend((CAT,), (2,), 0.6, pool=False)
    assert torch.equal(*(mask_of(controller, see(controller, [call])) for call in (whole, half)))


def test_a_layer_counts_once_a_step_however_often_the_sampler_asks_it() -> None:
    controller = LocalBlend((CAT,), (2,), 0.6, pool=False)
    once = [cross(0), cross(0, seed=1, layer=1), cross(1, seed=2)]
    again = [*once[:2], cross(0, seed=3), once[2], cross(1, seed=4)]
    more = [*once, cross(1, seed=4, layer=1)]
    masks = [mask_of(controller, see(controller, calls)) for calls in (once, again, more)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_source_and_target_may_come_in_calls_of_their_own() -> None:
    controller, whole = LocalBlend((CAT,), (2,), 0.6, pool=False), cross(0)
    parts = [
        only(whole, [i], (Row(branch, True),)) for i, branch in enumerate(("source", "target"))
    ]
    assert torch.equal(*(mask_of(controller, see(controller, calls)) for calls in ([whole], parts)))


def test_maps_are_read_at_one_scale_and_every_call_is_handed_on() -> None:
    controller, state = LocalBlend((CAT,), (2, 4, 8), 0.6, pool=False), BlendState(MapSum())
    for scale in (2, 4, 8):
        call, attend = cross(0, seed=scale, scale=scale), Attend()
        assert torch.equal(controller(call, attend, state), plain(call))
        assert attend.calls == [call] and attend.calls[0] is call
        assert len(state.maps.sums) == 2
    assert torch.equal(
        mask_of(controller, state), mask_of(controller, see(controller, [cross(0, seed=2)]))
    )


def test_the_targets_map_is_that_of_the_edit() -> None:
    """Under an edit that lets word 3 of the target read word 5 of the source."""
    mapper = torch.eye(COLUMNS)
    mapper[3, 3], mapper[5, 3] = 0.0, 1.0
    edit = PromptToPrompt((Alignment(mapper, torch.zeros(COLUMNS), "", ""),))
    controller = LocalBlend((words_at((), (3,)),), (2,), 0.6, pool=False)
    theirs = LocalBlend((words_at((5,), ()),), (2,), 0.6, pool=False)
    edited = mask_of(controller, see(controller, [probed(cross(0), edit)]))
    assert torch.equal(edited, mask_of(theirs, see(theirs, [cross(0)])))
    assert not torch.equal(edited, mask_of(controller, see(controller, [cross(0)])))


def test_words_are_found_in_repeated_texts() -> None:
    short = make_call("cross", BATCH, 0, 2, 4, SITE, 6)
    long = short.replace(short.q, short.k.repeat(1, 2, 1), short.v.repeat(1, 2, 1))
    long = dataclasses.replace(long, texts=(6, 6))
    controller = LocalBlend((words_at((1, 2), (3,), length=6),), (2,), 0.6, pool=False)
    assert torch.equal(
        *(mask_of(controller, see(controller, [probed(call)])) for call in (short, long))
    )


def test_text_behind_a_prompt_is_nobodys_word() -> None:
    """Columns that are appended are not those at the same place of the prompt."""
    call = make_call("cross", BATCH, 0, 2, 4, SITE, 12)
    state = see(LocalBlend((words_at((1, 2), (3,), length=6),), (2,)), [probed(call)]).maps.sums[
        "target", 0, 0
    ]
    wanted = probabilities(call.q, call.k, 2)[1].mean(0)[:, 3].float().unflatten(0, SITE)
    torch.testing.assert_close(state[..., 0], wanted, rtol=0, atol=1e-6)


def test_words_to_keep_alone_let_everything_else_change() -> None:
    keep = words_at((), (), (1, 2), (3,))
    controller = LocalBlend((keep,), (2,), subtract_threshold=0.6)
    blended = LocalBlend((CAT,), (2,), 0.6, pool=False)
    kept, inside = (mask_of(one, see(one, [cross(0)])) for one in (controller, blended))
    assert torch.equal(kept, 1.0 - inside) and kept.any() and inside.any()


# when


@pytest.mark.parametrize(
    ("start", "steps", "first"),
    [(0.2, 50, 10), (0.2, 5, 1), (0.2, 4, 0), (0.0, 50, 0), (0.5, 7, 3), (0.99, 50, 49)],
)
def test_the_first_step_that_is_blended_is_a_fraction_of_the_steps(
    start: float, steps: int, first: int
) -> None:
    controller, x = LocalBlend(start=start, mask=torch.zeros(1, *SIZE)), latents()
    for step in range(steps):
        out = controller.after_step(x, BATCH.rows, place(step, steps), controller.begin())
        assert torch.equal(out[1], x[0] if step >= first else x[1])


def test_a_start_of_one_never_blends() -> None:
    controller, x = LocalBlend(start=1.0, mask=torch.zeros(1, *SIZE)), latents()
    assert all(
        controller.after_step(x, BATCH.rows, place(step), BlendState(MapSum())) is x
        for step in range(10)
    )


def test_maps_are_read_from_the_first_step_on_though_nothing_is_blended_yet() -> None:
    controller = LocalBlend((CAT,), (2,), start=0.5)
    for step in range(10):
        assert controller.wants("cross", place(step)) and controller.reads(place(step)) == "cond"
        assert not controller.wants("self", place(step))


def test_a_mask_alone_reads_no_attention() -> None:
    controller = LocalBlend(mask=torch.ones(1, *SIZE))
    for step in range(10):
        assert (
            not controller.wants("cross", place(step))
            and controller.reads(place(step)) == "nothing"
        )


# oracle 18, and the user's mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("height", [6, 48, 5])
def test_a_mask_of_ones_changes_no_bit_and_one_of_zeros_gives_the_source(
    dtype: torch.dtype, height: int
) -> None:
    layout = Layout("c", 2, 2)
    x = latents(layout).to(dtype)
    before = x.clone()
    ones = LocalBlend(mask=torch.ones(1, height, 8)).after_step(
        x, layout.rows, place(9), BlendState(MapSum())
    )
    zeros = LocalBlend(mask=torch.zeros(1, height, 8)).after_step(
        x, layout.rows, place(9), BlendState(MapSum())
    )
    assert torch.equal(ones, x) and torch.equal(x, before)
    assert torch.equal(zeros, x[[0, 1, 0, 1, 0, 1]])


def test_outside_of_the_words_the_target_is_the_source_and_inside_it_is_itself() -> None:
    layout = Layout("c", 2, 2)
    words = (CAT, words_at((5,), (7,), (1,), (2,)))
    controller, x = LocalBlend(words, (2,), 0.3, 0.8), latents(layout)
    state = see(controller, [cross(0, layout)])
    masks = mask_of(controller, state, layout).bool()
    out = controller.after_step(x, layout.rows, place(9), state)
    assert torch.equal(out[:2], x[:2])
    for mask, (target, source) in zip(masks, layout.pairs, strict=True):
        assert mask.any() and not mask.all()
        assert torch.equal(out[target][:, mask], x[target][:, mask])
        assert torch.equal(out[target][:, ~mask], x[source][:, ~mask])


def test_rows_without_a_source_are_left_alone() -> None:
    x, rows = latents(), (Row("target", True), Row("target", True, None, 1))
    assert torch.equal(
        LocalBlend(mask=torch.zeros(1, *SIZE)).after_step(x, rows, place(9), BlendState(MapSum())),
        x,
    )


def test_a_mask_is_fitted_to_the_latent_by_its_area_and_kept_between_0_and_1() -> None:
    mask = torch.zeros(1, 12, 16)
    mask[0, :4], mask[0, 4], mask[0, 6] = 1.0, 1.0, 5.0
    controller, state = LocalBlend(mask=mask), BlendState(MapSum())
    found = mask_of(controller, state)[0]
    assert found[:, 0].tolist() == [1.0, 1.0, 0.5, 1.0, 0.0, 0.0]
    assert torch.equal(found, found[:, :1].expand(SIZE)) and torch.equal(state.masks[1], found)


def test_every_picture_has_its_own_mask_and_one_mask_is_for_all() -> None:
    layout, two = Layout("c", 2, 2), (noise(0, 2, *SIZE) > 0).float()
    assert torch.equal(
        mask_of(LocalBlend(mask=two), BlendState(MapSum()), layout), two[[0, 1, 0, 1]]
    )
    # drawn on a picture whose sides are no multiple of 8, of which VAE Encode takes the middle
    odd = two.repeat_interleave(8, -1).repeat_interleave(8, -2)
    odd = torch.nn.functional.pad(odd, (3, 4, 1, 2), value=0.5)
    assert torch.equal(
        mask_of(LocalBlend(mask=odd), BlendState(MapSum()), layout), two[[0, 1, 0, 1]]
    )
    assert torch.equal(
        mask_of(LocalBlend(mask=two[:1]), BlendState(MapSum()), layout), two[[0, 0, 0, 0]]
    )


def test_a_mask_beside_words_limits_them() -> None:
    words = LocalBlend((CAT,), (2,), 0.6, pool=False)
    given = noise(0, 1, *SIZE).abs().float().clamp(0.0, 1.0)
    both = dataclasses.replace(words, mask=given)
    inside = mask_of(words, see(words, [cross(0)]))
    assert torch.equal(mask_of(both, see(both, [cross(0)])), inside * given)


# what can be missing


def test_words_without_maps_are_an_error() -> None:
    controller = LocalBlend((CAT,), (2,))
    with pytest.raises(
        PivotError, match="word maps of the whole picture.* but got none: prompts with an area"
    ):
        controller.after_step(latents(), BATCH.rows, place(9), controller.begin())
    assert torch.equal(
        controller.after_step(latents(), BATCH.rows, place(1), controller.begin()), latents()
    )


@pytest.mark.parametrize("branch", ["source", "target"])
def test_maps_of_only_one_of_the_two_are_an_error(branch: str) -> None:
    controller, state = LocalBlend((CAT,), (2,)), BlendState(MapSum())
    see_one = see(controller, [cross(0)])
    state.maps.sums = {key: each for key, each in see_one.maps.sums.items() if key[0] == branch}
    with pytest.raises(PivotError, match="word maps"):
        controller.after_step(latents(), BATCH.rows, place(9), state)


def test_fewer_words_than_targets_are_an_error() -> None:
    layout, controller = Layout("c", 2), LocalBlend((CAT,), (2,))
    with pytest.raises(PivotError, match="Connect the words that belong to these target prompts"):
        controller.after_step(
            latents(layout), layout.rows, place(9), see(controller, [cross(0, layout)])
        )


# what a run leaves


def test_every_run_begins_with_no_maps() -> None:
    controller = LocalBlend((CAT,), (2,), 0.6, pool=False)
    first, second = see(controller, [cross(0)]), see(controller, [cross(0, seed=5)])
    alone = see(LocalBlend((CAT,), (2,), 0.6, pool=False), [cross(0, seed=5)])
    assert first.maps is not second.maps and first.masks is not second.masks
    assert torch.equal(mask_of(controller, second), mask_of(controller, alone))
    assert not torch.equal(mask_of(controller, first), mask_of(controller, second))


def test_the_mask_of_the_last_step_is_found_by_the_latent_that_came_out() -> None:
    layout = Layout("c", 2)
    controller = LocalBlend((CAT, words_at((5,), (7,))), (2,), 0.6, pool=False)
    state, x = controller.begin(), latents(layout)
    for step in range(3):
        controller(cross(step, layout, step), plain, state)
        x = controller.after_step(x, layout.rows, place(step + 7), state)
    masks = mask_of(controller, state, layout)
    controller.finish(x, layout.rows, state)
    assert [torch.equal(controller.results.get(x[1 + i]), masks[i]) for i in range(2)] == [
        True,
        True,
    ]
    assert (
        controller.results.get(x[0]) is None
        and controller.results.get(latents(layout, 5)[1]) is None
    )


def test_a_run_that_blended_nothing_leaves_no_mask() -> None:
    controller, x = LocalBlend(start=1.0, mask=torch.zeros(1, *SIZE)), latents()
    state = controller.begin()
    controller.after_step(x, BATCH.rows, place(9), state)
    controller.finish(x, BATCH.rows, state)
    assert controller.results.get(x[1]) is None


# what a run says


def remarks(controller: LocalBlend, **masks: float) -> tuple[str, ...]:
    """What is said of a run whose last masks had these shares."""
    state = controller.begin()
    for row, share in enumerate(masks.values()):
        mask = torch.zeros(1000)
        mask[: round(1000 * share)] = 1.0
        state.masks[row] = mask.reshape(20, 50)
    return controller.remark(state)


@pytest.mark.parametrize(
    ("words", "share", "said"),
    [
        (CAT, 0.23, "in 23.0% of the picture"),
        (CAT, 0.004, "next to nothing is edited; lower threshold"),
        (CAT, 0.98, "next to nothing is kept; raise threshold"),
        (words_at((), (), (1,)), 0.98, "next to nothing is kept; lower subtract_threshold"),
        (words_at((), (), (1,)), 0.0, "next to nothing is edited; raise subtract_threshold"),
        (None, 1.0, "the mask is white nearly everywhere"),
    ],
)
def test_the_report_says_what_the_mask_did(
    words: BlendWords | None, share: float, said: str
) -> None:
    (remark,) = remarks(LocalBlend((words,) if words else ()), one=share)
    assert said in remark


def test_one_bad_mask_of_several_is_said_and_no_masks_say_nothing() -> None:
    (remark,) = remarks(LocalBlend((CAT,)), one=0.3, two=0.97)
    assert "in 30.0% to 97.0% of the picture: next to nothing is kept" in remark
    assert remarks(LocalBlend((CAT,))) == ()


def test_a_word_that_is_looked_at_negatively_everywhere_is_refused_by_name() -> None:
    """As under a negative weight of Prompt-to-Prompt."""
    words = BlendWords(COLUMNS, COLUMNS, (("cat", (1,)),), (("cat", (1,)), ("striped", (3,))))
    edit = PromptToPrompt(
        (
            Alignment(
                torch.eye(COLUMNS),
                torch.zeros(COLUMNS),
                "",
                "",
                torch.tensor([1.0, 1.0, 1.0, -2.0] + [1.0] * (COLUMNS - 4)),
            ),
        )
    )
    controller = LocalBlend((words,), (2,))
    state = see(controller, [probed(cross(0), edit)])
    with pytest.raises(PivotError, match="'striped', whose attention is negative everywhere"):
        controller.after_step(latents(), BATCH.rows, place(9), state)
