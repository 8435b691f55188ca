"""Prompt-to-Prompt folded into V, against the paper's own edit of attention maps written out in
float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from calls import DEEP, OPEN, TWO, Attend, Layout, Sizes, assert_exact, layouts, make_call, plain
from hypothesis import given
from hypothesis import strategies as st
from reference import attention, few, fused, generator, probabilities, prompt, times_v

from pivot_edit.attention.prompt_to_prompt import PromptToPrompt
from pivot_edit.core.control import AttentionCall, Kind, Place, Row
from pivot_edit.core.errors import PivotError
from pivot_edit.core.words import (
    Alignment,
    PromptPair,
    align_refine,
    align_replace,
    reweighted,
    windowed,
)


def alignment(columns: int = 77, seed: int = 0, kept: float = 0.3) -> Alignment:
    """A random one: nothing of the mathematics depends on what words say."""
    random = generator(seed)
    mapper = torch.rand(columns, columns, generator=random)
    return Alignment(mapper, (torch.rand(columns, generator=random) < kept).float(), "random", "")


fractions = st.floats(0, 1)
windows = st.tuples(fractions, fractions).map(lambda pair: (min(pair), max(pair)))
steps = st.integers(1, 60).flatmap(
    lambda count: st.builds(Place, st.integers(0, count - 1), st.just(count), fractions)
)


@st.composite
def alignments(draw: st.DrawFn, old: int = 12, new: int = 12) -> Alignment:
    """Random ones with weights and windows of words, in eighths, so that float32 tables hold their
    products."""
    random = generator(draw(st.integers(0, 999)))

    def eighths(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(8 * low, 8 * high + 1, shape, generator=random) / 8

    weighted, kept = draw(st.booleans()), draw(st.sampled_from([0.0, 0.3, 1.0]))
    own = eighths(0, 1, new) * (torch.rand(new, generator=random) < kept)
    weights = eighths(-2, 3, new) * (torch.rand(new, generator=random) < 0.8) if weighted else None
    some = st.lists(st.integers(0, new - 1), max_size=6).map(tuple)
    return Alignment(
        eighths(0, 1, old, new),
        own,
        "random",
        "",
        weights,
        tuple(draw(st.lists(st.tuples(some, windows), max_size=3))),
    )


def alphas(one: Alignment, window: tuple[float, float], place: Place) -> torch.Tensor:
    """Row `step` of the paper's table [N + 1, columns], where the windows of words overwrite the
    default."""
    table = torch.zeros(place.steps + 1, len(one.target_share), dtype=torch.float64)
    for columns, (start, end) in ((range(len(one.target_share)), window), *one.windows):
        table[:, list(columns)] = 0.0
        table[int(start * len(table)) : int(end * len(table)), list(columns)] = 1.0
    return table[place.step]


def edited_map(
    one: Alignment,
    theirs: torch.Tensor,
    mine: torch.Tensor,
    window: tuple[float, float],
    place: Place,
) -> torch.Tensor:
    """The paper's cross edit: `alpha c (A_source M + own A) + (1 - alpha) A`."""
    alpha = alphas(one, window, place)
    weights = torch.ones(1) if one.weights is None else one.weights
    edit = (
        torch.einsum("...pw,wn->...pn", theirs, one.mapper.double())
        + one.target_share.double() * mine
    )
    return alpha * weights.double() * edit + (1.0 - alpha) * mine


def edited_by_maps(
    call: AttentionCall,
    words: Sequence[Alignment],
    layout: Layout,
    window: tuple[float, float] = (0.0, 0.8),
) -> torch.Tensor:
    """Every target edited by its own words, on the maps themselves."""
    maps = probabilities(call.q, call.k, call.heads)
    for target, source in layout.edited:
        one = words[call.rows[target].target]
        maps[target] = edited_map(one, maps[source], maps[target], window, call.place)
    return times_v(maps, call.v, call.heads)


def self_by_maps(call: AttentionCall, layout: Layout) -> torch.Tensor:
    """The paper's self edit on the maps: the target's map is the source's."""
    maps = probabilities(call.q, call.k, call.heads)
    for target, source in layout.edited:
        maps[target] = maps[source]
    return times_v(maps, call.v, call.heads)


# the edit itself


@few
@given(
    layouts,
    st.integers(0, 99),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(2, 20),
    st.booleans(),
)
def test_cross_attention_is_the_edit_of_the_maps(
    layout: Layout, seed: int, heads: int, width: int, columns: int, keeps: bool
) -> None:
    words = alignment(columns, seed, 0.5 if keeps else 0.0)
    call = make_call("cross", layout, seed, heads, width, columns=columns)
    assert_exact(
        PromptToPrompt((words,) * 3)(call, Attend(), {}), edited_by_maps(call, (words,) * 3, layout)
    )


@few
@given(
    layouts,
    st.tuples(alignments(), alignments(), alignments()),
    windows,
    steps,
    st.integers(1, 3),
    st.integers(1, 5),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_every_target_has_its_own_words_weights_and_windows(
    layout: Layout,
    words: tuple[Alignment, ...],
    window: tuple[float, float],
    place: Place,
    heads: int,
    width: int,
    queries: tuple[int, int],
) -> None:
    call = make_call("cross", layout, 1, heads, width, queries, 12, place=place)
    out = PromptToPrompt(words, window)(call, Attend(), {})
    assert_exact(out, edited_by_maps(call, words, layout, window))
    assert torch.equal(out[layout.untouched], plain(call)[layout.untouched])


@few
@given(
    layouts, st.integers(0, 99), st.integers(1, 4), st.tuples(st.integers(1, 5), st.integers(1, 5))
)
def test_self_attention_is_the_map_of_the_source(
    layout: Layout, seed: int, heads: int, queries: tuple[int, int]
) -> None:
    call = make_call("self", layout, seed, heads, queries=queries)
    assert_exact(PromptToPrompt((alignment(),))(call, Attend(), {}), self_by_maps(call, layout))


@pytest.mark.parametrize("mode", ["replace", "refine"])
def test_real_prompts_edit_as_the_paper_writes_it(mode: str) -> None:
    """Column by column: a cat (2) on becomes a trooper (2, 3, 4, 5) on."""
    words = PromptPair(prompt("a cat on it"), prompt("a trooper-4 on it")).align(mode)
    call = make_call("cross")
    maps = probabilities(call.q, call.k, call.heads)
    theirs, mine = maps[2], maps[3].clone()
    maps[3, ..., :2] = theirs[..., :2]
    for n in range(2, 6):
        maps[3, ..., n] = theirs[..., 2] / 4 if mode == "replace" else mine[..., n]
    maps[3, ..., 6:9] = theirs[..., 3:6]
    maps[3, ..., 9:] = theirs[..., 9:]
    if mode == "replace":
        maps[3, ..., 76] += theirs[..., 6:9].sum(-1)
    assert_exact(PromptToPrompt((words,))(call, Attend(), {}), times_v(maps, call.v, call.heads))


def appended(
    one: Alignment, lengths: tuple[int, int], place: Place, maps: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The edit of maps (of source, of target) of texts that go on behind their prompts: appended
    columns read those appended at the same place, new ones themselves; what only the source goes
    on with is read at its own place."""
    theirs, mine = maps
    old, new = lengths
    more = mine.shape[-1] - new
    edited = mine.clone()
    edited[..., :new] = edited_map(one, theirs[..., :old], mine[..., :new], (0.0, 0.8), place)
    for column in range(old, theirs.shape[-1]):
        if column - old < more:
            edited[..., new + column - old] = theirs[..., column]
        else:
            weight = alphas(one, (0.0, 0.8), place) * (1 if one.weights is None else one.weights)
            there = column % mine.shape[-1]
            edited[..., there] += theirs[..., column] * (weight[there] if there < new else 1.0)
    return edited


@few
@given(
    layouts,
    st.sampled_from([(6, 12), (12, 6), (12, 18), (6, 6)]),
    st.sampled_from([(0, 0), (6, 6), (12, 12), (6, 0), (0, 6), (12, 6), (6, 12)]),
    st.booleans(),
    st.integers(0, 99),
    st.data(),
)
def test_texts_of_any_length_edit_as_if_they_were_not_repeated(
    layout: Layout,
    lengths: tuple[int, int],
    more: tuple[int, int],
    again: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    """The host repeats texts of unequal length to their common multiple before the UNet sees
    them, and what is appended to a prompt is no repeat of it."""
    old, new = lengths
    words = data.draw(st.tuples(alignments(old, new), alignments(old, new), alignments(old, new)))
    text = {"source": old + more[0], "target": new + more[1]}
    short = make_call("cross", layout, seed, columns=max(text.values()))
    columns = math.lcm(*text.values()) * (2 if again else 1)
    expected = torch.empty_like(short.q)
    keys = [short.k[i, : text[row.branch]] for i, row in enumerate(layout.rows)]
    values = [short.v[i, : text[row.branch]] for i, row in enumerate(layout.rows)]
    long = [torch.stack([x.repeat(columns // len(x), 1) for x in each]) for each in (keys, values)]
    for i in range(len(layout.rows)):
        expected[i] = attention(short.q[i][None], keys[i][None], values[i][None], 2)[0]
    for target, source in layout.edited:
        maps = [probabilities(short.q[i][None], keys[i][None], 2) for i in (source, target)]
        edit = appended(words[layout.rows[target].target], lengths, OPEN, maps)
        expected[target] = times_v(edit, values[target][None], 2)[0]
    call = dataclasses.replace(
        short.replace(short.q, *long), texts=tuple(text[row.branch] for row in layout.rows)
    )
    assert_exact(PromptToPrompt(words)(call, Attend(), {}), expected)


@pytest.mark.parametrize("mode", ["replace", "refine", "reweight"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equal_texts_that_go_on_give_the_source_bit_for_bit(mode: str, dtype: torch.dtype) -> None:
    words = PromptPair(prompt("a red cat"), prompt("a red cat")).align(mode)
    call = make_call("cross", columns=154, dtype=dtype)
    call = call.replace(call.q[[0, 1, 2, 2]], call.k[[0, 1, 2, 2]], call.v[[0, 1, 2, 2]])
    out = PromptToPrompt((words,))(call, Attend(), {})
    assert torch.equal(out[3], out[2]) and torch.equal(out[2], plain(call)[2])


def test_what_is_appended_is_edited_in_the_common_window() -> None:
    """Words have windows of their own; outside of the common one appended text is the target's."""
    words = dataclasses.replace(alignment(6, kept=0.0), windows=((tuple(range(6)), (0.0, 1.0)),))
    call = make_call("cross", Layout("c"), columns=9)
    maps = probabilities(call.q, call.k, 2)
    edited = maps[1].clone()
    edited[..., :6] = maps[0][..., :6] @ words.mapper.double()
    out = PromptToPrompt((words,), (0.5, 1.0))(call, Attend(), {})
    assert_exact(out[1], times_v(edited[None], call.v[1:], 2)[0])


@pytest.mark.parametrize(("columns", "lengths"), [(77, (77, 154)), (77, (154, 77))])
def test_a_text_shorter_than_its_prompt_is_refused(columns: int, lengths: tuple[int, int]) -> None:
    words = Alignment(torch.zeros(lengths), torch.zeros(lengths[1]), "", "")
    with pytest.raises(PivotError, match=f"the {max(lengths)} columns .*, but got {columns}"):
        PromptToPrompt((words,))(make_call("cross", columns=columns), Attend(), {})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["replace", "refine", "self", "weights", "windows"])
def test_half_precision_is_within_twice_the_error_of_plain_attention(
    dtype: torch.dtype, mode: str
) -> None:
    pair = PromptPair(prompt("a cat on a sofa"), prompt("a trooper-3 on a sofa"))
    words = pair.align(mode if mode in ("replace", "refine") else "auto")
    if mode == "weights":
        words = reweighted(words, pair.target, [("trooper-3", -1.0), ("sofa", 0.5), ("on", 1.5)])
    if mode == "windows":
        words = windowed(words, pair.target, [("trooper-3", (0.5, 1.0)), ("a", (0.0, 0.1))])
    ours, theirs = 0.0, 0.0
    for seed in range(10):
        call = make_call(
            "self" if mode == "self" else "cross", TWO, seed, 4, 8, (4, 4), dtype=dtype
        )
        exact = self_by_maps(call, TWO) if mode == "self" else edited_by_maps(call, [words], TWO)
        out = PromptToPrompt((words,))(call, Attend(), {})
        assert out.dtype == dtype
        ours += (out.double() - exact)[3].square().mean().item()
        theirs += (
            (plain(call).double() - attention(call.q, call.k, call.v, 4))[3].square().mean().item()
        )
    assert math.sqrt(ours) <= 2 * math.sqrt(theirs)


def test_sums_of_attention_stay_one_under_replace_whatever_the_token_counts() -> None:
    words = align_replace(prompt("a trooper-3, on a gg-4"), prompt("a cat on ee-2 sofa"))
    call = make_call("cross")
    out = PromptToPrompt((words,))(
        call.replace(call.q, call.k, torch.ones_like(call.v)), Attend(), {}
    )
    assert_exact(out, torch.ones_like(out))


def test_what_the_rest_of_the_chain_gives_is_not_written_into() -> None:
    call = make_call("cross")
    given = torch.zeros_like(call.q)
    assert PromptToPrompt((alignment(),))(call, lambda inner: given, {}).any() and not given.any()


# weights


CATS = PromptPair(prompt("a cat on a red sofa"), prompt("a trooper-3 on a red sofa"))


@pytest.mark.parametrize("mode", ["replace", "refine", "reweight"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_weights_of_one_change_no_bit(mode: str, dtype: torch.dtype) -> None:
    words, call = CATS.align(mode), make_call("cross", dtype=dtype)
    ones = dataclasses.replace(words, weights=torch.ones(77))
    assert torch.equal(*(PromptToPrompt((one,))(call, Attend(), {}) for one in (words, ones)))


@pytest.mark.parametrize("mode", ["replace", "refine", "reweight"])
def test_a_word_of_weight_zero_is_gone_whatever_its_value(mode: str) -> None:
    words = reweighted(CATS.align(mode), CATS.target, [("trooper-3", 0.0)])
    call, columns = make_call("cross", dtype=torch.float32), list(CATS.target.find("trooper-3"))
    v = call.v.clone()
    v[3, columns] = 1e6
    there, far = call, call.replace(call.q, call.k, v)
    assert torch.equal(*(PromptToPrompt((words,))(one, Attend(), {}) for one in (there, far)))
    closed = dataclasses.replace(far, place=Place(40, 50, 1.0))
    assert torch.equal(PromptToPrompt((words,))(closed, Attend(), {}), plain(far))


@pytest.mark.parametrize("mode", ["replace", "refine", "reweight"])
@pytest.mark.parametrize("word", ["trooper-3", "red", "a"])
def test_the_edit_is_linear_in_a_weight(mode: str, word: str) -> None:
    call, words = make_call("cross"), CATS.align(mode)
    maps = edited_by_maps(call, [words], TWO)
    out = {
        c: PromptToPrompt((reweighted(words, CATS.target, [(word, c)]),))(call, Attend(), {})
        for c in (-2.0, 0.0, 4.0)
    }
    assert not torch.equal(out[0.0][3], maps[3])
    for c, one in out.items():
        assert_exact(one, out[0.0] + c * (maps - out[0.0]))


# windows of words


def map_of_columns(
    words: Alignment, step: int, window: tuple[float, float]
) -> tuple[torch.Tensor, ...]:
    """The edited map [queries, columns] itself, read with one-hot values; the source's; the
    target's own."""
    call = make_call("cross", heads=1, width=77, place=Place(step, 50, 1.0))
    call = call.replace(call.q, call.k, torch.eye(77, dtype=torch.float64).expand(4, 77, 77))
    whole = probabilities(call.q, call.k, 1)[:, 0]
    return PromptToPrompt((words,), window)(call, Attend(), {})[3], whole[2], whole[3]


@pytest.mark.parametrize("window", [(0.0, 0.4), (0.3, 0.8), (0.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("own", [(0.0, 0.1), (0.2, 1.0), (0.5, 0.5)])
def test_a_word_is_edited_in_its_own_window_and_nowhere_else(
    window: tuple[float, float], own: tuple[float, float]
) -> None:
    """50 steps, a table of 51: 0.1 is step 5, 0.2 step 10, 0.3 step 15, 0.4 step 20, 0.8 step
    40."""
    flips = {0.0: 0, 0.1: 5, 0.2: 10, 0.3: 15, 0.4: 20, 0.5: 25, 0.8: 40, 1.0: 51}
    pair = PromptPair(prompt("a cat on a sofa"), prompt("a dog on a sofa"))
    words = windowed(pair.align(), pair.target, [("a", own)])
    for step in (0, 4, 5, 9, 10, 14, 15, 19, 20, 24, 25, 39, 40, 49):
        edited, theirs, mine = map_of_columns(words, step, window)
        for column in range(77):
            start, end = own if column in (1, 4) else window
            expected = theirs if flips[start] <= step < flips[end] else mine
            assert_exact(edited[:, column], expected[:, column])


def test_the_later_of_two_windows_of_a_word_wins() -> None:
    pair = PromptPair(prompt("a cat on a sofa"), prompt("a dog on a sofa"))
    words = windowed(pair.align(), pair.target, [("dog", (0.0, 0.1)), ("a dog", (0.0, 0.9))])
    edited, theirs, mine = map_of_columns(words, 25, (0.0, 0.2))
    assert_exact(edited[:, 1:3], theirs[:, 1:3])
    assert_exact(edited[:, 3:], mine[:, 3:])


def test_cross_attention_is_wanted_while_the_window_of_any_word_of_any_target_is_open() -> None:
    one = dataclasses.replace(alignment(), windows=(((1,), (0.6, 0.8)),))
    two = dataclasses.replace(alignment(), windows=(((2,), (0.0, 0.1)), ((3,), (0.5, 0.55))))
    controller = PromptToPrompt((one, two), cross=(0.2, 0.4), self_=(0.0, 0.0))
    assert steps_open(controller, "cross") == [
        *range(5),
        *range(10, 20),
        *range(25, 28),
        *range(30, 40),
    ]
    reads = [controller.reads(Place(step, 50, 1.0)) for step in (4, 5, 19, 20, 39, 40)]
    assert reads == ["cond", "nothing", "cond", "nothing", "cond", "nothing"]


def test_a_target_whose_words_are_all_out_of_their_windows_is_bit_equal_to_plain() -> None:
    layout, place = Layout("uc", 2), Place(25, 50, 1.0)
    late = dataclasses.replace(alignment(), windows=(((1,), (0.4, 0.9)),))
    call = make_call("cross", layout, dtype=torch.float16, place=place)
    out = PromptToPrompt((alignment(), late), cross=(0.0, 0.2))(call, Attend(), {})
    assert torch.equal(out[4], plain(call)[4]) and not torch.equal(out[5], plain(call)[5])


@few
@given(alignments(77, 77), alignments(77, 77), windows)
def test_a_whole_run_on_one_state_is_every_step_on_its_own(
    one: Alignment, two: Alignment, window: tuple[float, float]
) -> None:
    controller, layout = PromptToPrompt((one, two), window), Layout("uc", 2)
    state = controller.begin()
    for step in range(0, 50, 7):
        for dtype in (torch.float32, torch.float64):
            call = make_call("cross", layout, step, dtype=dtype, place=Place(step, 50, 1.0))
            assert torch.equal(
                controller(call, Attend(), state), controller(call, Attend(), controller.begin())
            )


@pytest.mark.parametrize("given", [1, 2])
def test_fewer_words_than_targets_are_refused(given: int) -> None:
    call = make_call("cross", Layout("uc", 3))
    with pytest.raises(
        PivotError, match=f"words for {given + 1} target prompts, but got {given} in P2P"
    ):
        PromptToPrompt((alignment(),) * given)(call, Attend(), {})


# what is left alone


@few
@given(
    layouts,
    st.sampled_from(["self", "cross"]),
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_source_and_unconditional_rows_are_bit_equal_to_plain(
    layout: Layout, kind: Kind, seed: int, dtype: torch.dtype
) -> None:
    call = make_call(kind, layout, seed, dtype=dtype)
    before = [x.clone() for x in (call.q, call.k, call.v)]
    out = PromptToPrompt((alignment(seed=seed),) * 3)(call, Attend(), {})
    assert torch.equal(out[layout.untouched], plain(call)[layout.untouched])
    assert not torch.equal(out, plain(call))
    assert all(torch.equal(x, y) for x, y in zip(before, (call.q, call.k, call.v), strict=True))


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_closed_windows_hand_on_the_very_same_call_once(kind: Kind, dtype: torch.dtype) -> None:
    call, attend = make_call(kind, dtype=dtype), Attend()
    out = PromptToPrompt((alignment(),), cross=(0.0, 0.0), self_=(0.0, 0.0))(call, attend, {})
    assert attend.calls == [call] and attend.calls[0] is call
    assert torch.equal(out, plain(call))


@pytest.mark.parametrize(
    "rows", [(Row("target", True),) * 4, (Row("source", True), Row("target", False, 0)) * 2]
)
def test_rows_without_a_source_or_without_condition_are_nobodys_edit(rows: tuple[Row, ...]) -> None:
    call, attend = dataclasses.replace(make_call("cross"), rows=rows), Attend()
    PromptToPrompt((alignment(),))(call, attend, {})
    assert attend.calls == [call] and attend.calls[0] is call


@pytest.mark.parametrize("mode", ["replace", "refine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_identical_prompt_gives_the_source_bit_for_bit(mode: str, dtype: torch.dtype) -> None:
    """Under equal text, even where the target's own queries have gone elsewhere."""
    p = prompt("a cat, on a trooper-3 sofa")
    call = make_call("cross", dtype=dtype)
    k, v = call.k.clone(), call.v.clone()
    k[3], v[3] = k[2], v[2]
    out = PromptToPrompt((PromptPair(p, p).align(mode),))(call.replace(call.q, k, v), Attend(), {})
    assert torch.equal(out[3], out[2])


@pytest.mark.parametrize(("kept", "terms"), [(0.0, 0), (0.3, 1)])
def test_the_chain_runs_once_and_only_kept_columns_cost_a_second_attention(
    kept: float, terms: int
) -> None:
    call, attend, extra = make_call("cross"), Attend(), []

    def counting(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        extra.append(len(q))
        return fused(2)(q, k, v)

    def quiet(inner: AttentionCall) -> torch.Tensor:
        return attend(dataclasses.replace(inner, fused=fused(2)))

    PromptToPrompt((alignment(kept=kept),))(dataclasses.replace(call, fused=counting), quiet, {})
    assert len(attend.calls) == 1
    assert extra == [1] * terms


def test_what_the_rest_of_the_chain_does_is_kept() -> None:
    call, words = make_call("cross"), alignment()

    def doubled(inner: AttentionCall) -> torch.Tensor:
        return plain(inner) + 1.0

    assert_exact(
        PromptToPrompt((words,))(call, doubled, {}),
        PromptToPrompt((words,))(call, Attend(), {}) + 1.0,
    )


# when


def steps_open(controller: PromptToPrompt, kind: Kind, steps: int = 50) -> list[int]:
    return [step for step in range(steps) if controller.wants(kind, Place(step, steps, 1.0))]


def test_cross_windows_count_on_steps_plus_one_and_self_windows_on_steps() -> None:
    controller = PromptToPrompt((alignment(),), cross=(0.2, 0.8), self_=(0.2, 0.8))
    assert steps_open(controller, "cross") == list(range(10, 40))
    assert steps_open(controller, "self") == list(range(10, 40))
    half = PromptToPrompt((alignment(),), cross=(0.0, 0.98), self_=(0.0, 0.98))
    assert steps_open(half, "cross")[-1] == 48 and steps_open(half, "self")[-1] == 48
    five = PromptToPrompt((alignment(),), cross=(0.0, 0.5), self_=(0.0, 0.5))
    assert steps_open(five, "cross", 5) == [0, 1, 2] and steps_open(five, "self", 5) == [0, 1]


@few
@given(windows, st.integers(1, 60))
def test_any_window_is_the_reference_table(window: tuple[float, float], steps: int) -> None:
    start, end = window
    controller = PromptToPrompt((alignment(),), cross=window, self_=window)
    table = torch.zeros(steps + 1)
    table[int(start * (steps + 1)) : int(end * (steps + 1))] = 1
    assert steps_open(controller, "cross", steps) == table[:steps].nonzero().flatten().tolist()
    assert steps_open(controller, "self", steps) == list(
        range(int(steps * start), int(steps * end))
    )


def test_an_integer_one_is_the_whole_run() -> None:
    controller = PromptToPrompt((alignment(),), cross=(0, 1), self_=(0, 1))
    assert steps_open(controller, "cross") == steps_open(controller, "self") == list(range(50))


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_the_edit_stops_exactly_where_its_window_closes(kind: Kind) -> None:
    controller = PromptToPrompt((alignment(),), cross=(0.1, 0.8), self_=(0.1, 0.8))
    for step, is_open in ((4, False), (5, True), (39, True), (40, False)):
        call = make_call(kind, place=Place(step, 50, 1.0))
        assert torch.equal(controller(call, Attend(), {}), plain(call)) is not is_open


@pytest.mark.parametrize("name", ["cross", "self_"])
@pytest.mark.parametrize("window", [(-0.1, 0.5), (0.0, 1.1), (2, 1), (0.0, math.nan), (0.8, 0.2)])
def test_a_window_outside_the_run_is_refused(name: str, window: tuple[float, float]) -> None:
    label = name.strip("_")
    with pytest.raises(PivotError, match=f"{label}_start and {label}_end between 0 and 1"):
        PromptToPrompt((alignment(),), **{name: window})


# where


def at_scale(kind: Kind, scale: int) -> AttentionCall:
    return make_call(
        kind,
        queries=(2, 3),
        latent=(2 * scale, 3 * scale),
        layer=dataclasses.replace(DEEP, scale=scale),
    )


@pytest.mark.parametrize(("scale", "is_edited"), [(1, False), (2, True), (4, True)])
def test_self_attention_is_edited_up_to_a_quarter_of_the_latent(
    scale: int, is_edited: bool
) -> None:
    call, attend = at_scale("self", scale), Attend()
    out = PromptToPrompt((alignment(),))(call, attend, {})
    assert torch.equal(out, plain(call)) is not is_edited
    assert (attend.calls[0] is call) is not is_edited


@pytest.mark.parametrize("limit", [0.0, 1 / 16, 0.2, 1.0])
def test_the_limit_of_self_attention_can_be_chosen(limit: float) -> None:
    for scale, area in {1: 1.0, 2: 1 / 4, 4: 1 / 16}.items():
        call = at_scale("self", scale)
        out = PromptToPrompt((alignment(),), self_limit=limit)(call, Attend(), {})
        assert torch.equal(out, plain(call)) is not (area <= limit)


def test_cross_attention_is_edited_at_any_size() -> None:
    call = at_scale("cross", 1)
    assert not torch.equal(
        PromptToPrompt((alignment(),), self_limit=0.0)(call, Attend(), {}), plain(call)
    )


def test_no_map_is_ever_built() -> None:
    """Nothing larger than q, v or the mapper is made; the maps of this call are 38 times larger
    than q."""
    call = make_call("cross", heads=8, width=2, queries=(16, 16), columns=77)
    words = align_refine(prompt("a cat"), prompt("a big cat"))

    def no_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(q)

    with Sizes() as sizes:
        PromptToPrompt((words,))(
            dataclasses.replace(call, fused=no_attention), lambda c: torch.zeros_like(c.q), {}
        )
    assert sizes.made and max(sizes.made) <= max(call.q.numel(), call.v.numel(), 77 * 77)


def test_tables_are_as_exact_as_the_call() -> None:
    thirds = Alignment(torch.full((12, 12), 1 / 3), torch.ones(12), "", "", torch.full((12,), 0.1))
    call = make_call("cross", columns=12)
    mapper, own, weights = (
        table.double() for table in (thirds.mapper, thirds.target_share, thirds.weights)
    )
    maps = probabilities(call.q, call.k, call.heads)
    maps[3] = (maps[2] @ mapper + maps[3] * own) * weights
    assert_exact(PromptToPrompt((thirds,))(call, Attend(), {}), times_v(maps, call.v, call.heads))
