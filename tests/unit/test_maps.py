"""Maps of words from one-hot values, against the attention maps themselves in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from calls import Layout, Sizes, assert_exact, make_call, plain, probed
from hypothesis import given
from hypothesis import strategies as st
from reference import few, noise, probabilities

from pivot_edit.attention.attention_maps import AttentionMaps
from pivot_edit.attention.prompt_to_prompt import PromptToPrompt
from pivot_edit.core.control import AttentionCall, Branch, Place, Row
from pivot_edit.core.layers import Layer
from pivot_edit.core.maps import (
    Columns,
    Groups,
    Key,
    MapSum,
    Results,
    in_share,
    key_of,
    resize,
    share_of_range,
    smooth,
    word_maps,
)
from pivot_edit.core.words import Alignment

ONE: Key = ("target", 0, 0)
Asked = dict[tuple[Branch, int], tuple[int, tuple[Columns, ...]]]

words = st.lists(st.lists(st.integers(0, 11), unique=True, max_size=4).map(tuple), max_size=6).map(
    tuple
)


def asked(columns: int, *lists: tuple[Columns, ...]) -> Asked:
    """The words of the source, of target 0, of target 1 ..."""
    keys: list[tuple[Branch, int]] = [
        ("source", 0),
        *(("target", i) for i in range(len(lists) - 1)),
    ]
    return {key: (columns, each) for key, each in zip(keys, lists, strict=True)}


def maps_by_hand(
    call: AttentionCall, probs: torch.Tensor, groups: Groups
) -> dict[Key, torch.Tensor]:
    """Sums over each word's columns and their repeats, means over heads, of written-out maps."""
    found = {}
    for index, row in enumerate(call.rows):
        if row.cond and groups[row.branch, row.target][1]:
            length, listed = groups[row.branch, row.target]
            mean = probs[index].mean(0).unflatten(-1, (-1, length)).sum(-2)
            each = [mean[:, list(columns)].sum(-1) for columns in listed]
            found[key_of(row)] = torch.stack(each, -1).unflatten(
                0, (call.site.height, call.site.width)
            )
    return found


def assert_maps(ours: dict[Key, torch.Tensor], theirs: dict[Key, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, each in ours.items():
        assert each.dtype == torch.float32
        torch.testing.assert_close(each.double(), theirs[key], rtol=0, atol=1e-6)


once = st.builds(Layout, st.sampled_from(["c", "uc", "cu"]), st.integers(1, 2), st.integers(1, 2))
"""One conditioned chunk, so that every map is one row's."""


# maps of words


@few
@given(
    once, st.tuples(words, words, words), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)
)
def test_a_map_is_the_sum_over_a_words_columns_and_the_mean_over_heads(
    layout: Layout, lists: tuple[tuple[Columns, ...], ...], heads: int, width: int, height: int
) -> None:
    call = probed(make_call("cross", layout, 0, heads, width, (height, 3), 12))
    groups = asked(12, *lists[: layout.targets + 1])
    assert_maps(
        word_maps(call, groups, {}),
        maps_by_hand(call, probabilities(call.q, call.k, heads), groups),
    )


@few
@given(once, st.tuples(words, words, words), st.integers(0, 99))
def test_a_map_is_that_of_the_edit(
    layout: Layout, lists: tuple[tuple[Columns, ...], ...], seed: int
) -> None:
    mapper, own, weights = noise(seed, 12, 12), noise(seed + 1, 12).abs(), noise(seed + 2, 12)
    late = (((1, 2), (0.5, 1.0)),)
    one = Alignment(mapper.float(), own.float(), "", "", weights.float(), late)
    call = make_call("cross", layout, seed, 3, 4, columns=12)
    probs = probabilities(call.q, call.k, 3)
    alpha = torch.ones(12).double()
    alpha[[1, 2]] = 0.0
    for target, source in layout.edited:
        edit = weights * (probs[source] @ mapper + own * probs[target])
        probs[target] = alpha * edit + (1.0 - alpha) * probs[target]
    groups = asked(12, *lists[: layout.targets + 1])
    found = word_maps(probed(call, PromptToPrompt((one, one))), groups, {})
    for key, each in maps_by_hand(call, probs, groups).items():
        torch.testing.assert_close(found[key].double(), each, rtol=1e-5, atol=1e-5)


def repeated(lengths: tuple[int, int], columns: int) -> AttentionCall:
    """A call of [source, target] twice whose texts of these lengths are repeated to `columns`."""
    call = make_call("cross", heads=2, width=4, columns=columns)
    texts = lengths * 2
    long = [
        torch.stack([row[:n].repeat(columns // n, 1) for row, n in zip(x, texts, strict=True)])
        for x in (call.k, call.v)
    ]
    return dataclasses.replace(call.replace(call.q, *long), texts=texts)


@pytest.mark.parametrize("lengths", [(4, 8), (8, 4), (8, 12), (4, 4)])
@pytest.mark.parametrize("more", [0, 4])
def test_repeats_of_a_column_count_as_that_column(lengths: tuple[int, int], more: int) -> None:
    """The host repeats texts of unequal length to their common multiple. What is appended to a
    prompt is no repeat: of each text only the prompt's columns are the words'."""
    texts = lengths[0] + more, lengths[1] + more
    call = repeated(texts, math.lcm(*texts))
    groups: Asked = {
        ("source", 0): (lengths[0], ((1,), (2, 3))),
        ("target", 0): (lengths[1], ((0, 3), (1,), (2,))),
    }
    by_text = {key: (texts[index], words) for index, (key, (_, words)) in enumerate(groups.items())}
    probs = probabilities(call.q, call.k, 2)
    assert_maps(word_maps(probed(call), groups, {}), maps_by_hand(call, probs, by_text))


def test_equal_repeats_give_the_map_of_the_text_that_was_not_repeated() -> None:
    groups = asked(12, ((1, 2), (3,)), ((4,), (5, 11)))
    short = make_call("cross", columns=12)
    long = short.replace(short.q, short.k.repeat(1, 3, 1), short.v.repeat(1, 3, 1))
    long = dataclasses.replace(long, texts=(12,) * 4)
    assert_maps(
        word_maps(probed(long), groups, {}),
        {k: x.double() for k, x in word_maps(probed(short), groups, {}).items()},
    )


def test_one_hot_values_are_made_once_for_calls_of_a_kind() -> None:
    groups, values = asked(12, ((1, 2), (3,)), ((4,), (5, 11))), {}
    for seed in range(2):
        call = probed(make_call("cross", seed=seed, columns=12))
        once = word_maps(call, groups, values)
        assert_maps(once, {k: x.double() for k, x in word_maps(call, groups, {}).items()})
        assert len(values) == 1
    word_maps(probed(make_call("cross", columns=12, dtype=torch.float32)), groups, values)
    word_maps(probed(make_call("cross", columns=24)), groups, values)
    assert len(values) == 3


@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 8])
def test_more_words_than_a_head_has_channels_are_asked_in_turns(width: int) -> None:
    every = tuple((column,) for column in range(7))
    call = probed(make_call("cross", heads=3, width=width, columns=7))
    groups = asked(7, every, every)
    found = word_maps(call, groups, {})
    assert_maps(found, maps_by_hand(call, probabilities(call.q, call.k, 3), groups))
    assert_exact(found[ONE].double().sum(-1).round(decimals=5), torch.ones(3, 2).double())


def test_only_conditioned_rows_with_words_have_maps_and_a_word_without_columns_is_nowhere() -> None:
    call = probed(make_call("cross", Layout("uc", 2)))
    found = word_maps(call, {("target", 1): (77, ((), (1,))), ("source", 0): (77, ())}, {})
    assert list(found) == [("target", 1, 0)]
    assert (
        found["target", 1, 0][..., 0].abs().max() == 0 and found["target", 1, 0][..., 1].min() > 0
    )
    assert word_maps(call, {}, {}) == {}
    assert word_maps(probed(make_call("cross", Layout("u"))), asked(77, ((1,),), ((1,),)), {}) == {}


def test_there_are_no_maps_within_a_probe() -> None:
    assert word_maps(make_call("cross"), asked(77, ((1,),), ((1,),)), {}) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_in_half_precision_are_those_of_its_numbers(dtype: torch.dtype) -> None:
    call, groups = make_call("cross", dtype=dtype), asked(77, ((1, 2),), ((3, 4, 5),))
    found = word_maps(probed(call), groups, {})
    for key, each in maps_by_hand(call, probabilities(call.q, call.k, 2), groups).items():
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key].double(), each, rtol=0.02, atol=0.001)


@pytest.mark.parametrize(("columns", "width"), [(77, 2), (8, 16)])
def test_nothing_larger_than_q_or_v_is_made(columns: int, width: int) -> None:
    """The maps of this call are many times larger than q."""
    call = make_call("cross", heads=8, width=width, queries=(16, 16), columns=columns)
    call = dataclasses.replace(call, probe=lambda values: torch.zeros_like(call.q))
    with Sizes() as sizes:
        word_maps(call, asked(columns, ((1,), (2, 3)), ((4,), (5,))), {})
    assert sizes.made and max(sizes.made) <= max(call.q.numel(), call.v.numel())


# sums of maps


def maps_of(value: float, key: Key = ONE) -> dict[Key, torch.Tensor]:
    return {key: torch.full((2, 2, 1), value)}


def at(step: int, layer: int = 0) -> AttentionCall:
    return make_call("cross", place=Place(step, 50, 1.0), layer=Layer("up", 1, layer, 0, 4))


def test_a_layer_counts_once_a_step_however_often_it_is_asked() -> None:
    total = MapSum()
    for call, value in (
        (at(0), 1.0),
        (at(0, 1), 2.0),
        (at(0), 4.0),
        (at(1), 8.0),
        (at(1), 16.0),
        (at(0, 1), 32.0),
    ):
        total.add(call, maps_of(value))
    assert torch.equal(total.sums[ONE], torch.full((2, 2, 1), 11.0))


def test_rows_of_one_layer_may_come_in_calls_of_their_own_and_are_kept_apart() -> None:
    total, keys = MapSum(), [("source", 0, 0), ("target", 0, 0), ("target", 1, 0), ("target", 0, 1)]
    for value, key in enumerate(keys, 1):
        total.add(at(0), maps_of(float(value), key))
    assert [total.sums[key].mean().item() for key in keys] == [1.0, 2.0, 3.0, 4.0]


def test_adding_leaves_the_maps_that_were_added() -> None:
    total, first = MapSum(), maps_of(1.0)
    total.add(at(0), first)
    total.add(at(1), maps_of(2.0))
    assert torch.equal(first[ONE], torch.ones(2, 2, 1))


def test_columns_that_a_text_has_only_at_some_steps_are_columns_of_their_own() -> None:
    total, short, long = MapSum(), torch.rand(2, 2, 4), torch.rand(2, 2, 12)
    for step, maps in enumerate((short, long, short)):
        total.add(at(step), {ONE: maps})
    torch.testing.assert_close(total.sums[ONE][..., :4], 2 * short + long[..., :4])
    assert torch.equal(total.sums[ONE][..., 4:], long[..., 4:])


# sizes


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "area"])
def test_a_map_at_its_own_size_is_itself(mode: str) -> None:
    assert torch.equal(
        resize(torch.arange(6.0).reshape(2, 3), (2, 3), mode), torch.arange(6.0).reshape(2, 3)
    )


def test_resizing_is_nearest_unless_asked_otherwise() -> None:
    steps = torch.tensor([[0.0, 1.0]])
    assert resize(steps, (2, 4)).tolist() == [[0.0, 0.0, 1.0, 1.0]] * 2
    assert resize(steps, (1, 4), "bilinear").tolist() == [[0.0, 0.25, 0.75, 1.0]]
    assert resize(torch.eye(4), (2, 2), "area").tolist() == [[0.5, 0.0], [0.0, 0.5]]


# results


def test_a_result_is_found_by_the_numbers_of_its_latent() -> None:
    results, sample = Results(), noise(0, 4, 8, 8).float()
    results.put(sample, "a")
    results.put(sample + 1, "b")
    assert results.get(sample.clone()) == results.get(sample.double()) == "a"
    assert results.get(sample.transpose(1, 2).contiguous().transpose(1, 2)) == "a"
    assert results.get(sample + 1) == "b" and results.get(sample + 2) is None
    results.put(sample, "c")
    assert results.get(sample) == "c"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_result_in_half_precision_is_found(dtype: torch.dtype) -> None:
    results, sample = Results(), noise(0, 4, 8, 8).to(dtype)
    results.put(sample, "a")
    assert results.get(sample) == results.get(sample.float()) == "a"


def test_a_result_is_found_by_the_half_precision_that_a_host_keeps() -> None:
    """And by no less: a neighbour in half precision is another latent."""
    results, sample = Results(), noise(0, 4, 8, 8).float()
    results.put(sample, "a")
    assert results.get(sample.half()) == "a"
    assert results.get(sample.half().float() * (1 + 2**-10)) is None


def test_only_the_last_results_are_kept() -> None:
    results = Results(limit=3)
    for number in range(5):
        results.put(torch.tensor([float(number)]), number)
    assert [results.get(torch.tensor([float(number)])) for number in range(5)] == [
        None,
        None,
        2,
        3,
        4,
    ]


# recording


RECORDED = Layer("up", 1, 0, 0, 4)


def recorded(
    controller: AttentionMaps,
    calls: list[AttentionCall],
    rows: tuple[Row, ...],
    samples: torch.Tensor,
) -> None:
    state = controller.begin()
    for call in calls:
        assert torch.equal(controller(probed(call), plain, state), plain(call))
    controller.finish(samples, rows, state)


def test_recording_sums_the_maps_of_every_column_over_steps_and_layers_of_one_scale() -> None:
    layout = Layout("uc", 1, 2)
    controller, samples = AttentionMaps((2, 4)), noise(0, 4, 4, 6, 4)
    layers = [RECORDED, Layer("up", 1, 1, 0, 4), Layer("up", 2, 0, 0, 2)]
    calls = [
        make_call(
            "cross",
            layout,
            10 * step + i,
            place=Place(step, 2, 1.0),
            layer=layer,
            columns=9,
            latent=(48, 64),
        )
        for step in range(2)
        for i, layer in enumerate(layers)
    ]
    recorded(controller, calls, layout.rows[:4], samples)
    for row in range(4):
        kept = [
            probabilities(c.q, c.k, 2)[4 + row].mean(0) for c in calls if c.site.layer.scale == 4
        ]
        expected = torch.stack(kept).sum(0).unflatten(0, (3, 2)).float()
        torch.testing.assert_close(
            controller.results.get(samples[row]), expected, rtol=0, atol=1e-5
        )


def test_repeats_are_recorded_as_the_text_that_they_repeat() -> None:
    controller, samples = AttentionMaps((4,)), noise(0, 2, 4, 6, 4)
    call = repeated((9, 18), 18)
    call = dataclasses.replace(call, site=dataclasses.replace(call.site, layer=RECORDED))
    recorded(controller, [call], call.rows[:2], samples)
    maps = [controller.results.get(sample) for sample in samples]
    probs = probabilities(call.q, call.k, 2)[2:].mean(1).unflatten(1, (3, 2)).float()
    folded = probs[0].unflatten(-1, (2, 9)).sum(-2)
    torch.testing.assert_close(maps[0], folded, rtol=0, atol=1e-6)
    torch.testing.assert_close(maps[1], probs[1], rtol=0, atol=1e-6)


def test_recording_needs_no_source_and_only_its_window_of_cross_attention() -> None:
    controller = AttentionMaps((4,), 0.2, 0.5)
    assert not controller.needs_source
    steps = [step for step in range(50) if controller.wants("cross", Place(step, 50, 1.0))]
    assert steps == list(range(10, 25)) and not controller.wants("self", Place(12, 50, 1.0))


def test_recordings_of_two_runs_do_not_mix_and_a_run_without_maps_leaves_nothing() -> None:
    rows = (Row("target", True),)
    controller = AttentionMaps((4,))
    samples = noise(0, 3, 4, 6, 4)
    for index in range(2):
        call = make_call("cross", Layout("c"), index, layer=RECORDED, columns=5)
        call = dataclasses.replace(call.replace(call.q[1:], call.k[1:], call.v[1:]), rows=rows)
        recorded(controller, [call], rows, samples[index : index + 1])
    recorded(controller, [], rows, samples[2:])
    sums = [controller.results.get(samples[index]) for index in range(3)]
    assert not torch.equal(sums[0], sums[1]) and sums[2] is None
    for one in sums[:2]:
        torch.testing.assert_close(one.sum(-1), torch.ones(3, 2))


def test_of_several_conditioned_chunks_the_first_counts() -> None:
    call = probed(make_call("cross", Layout("cuc"), columns=12))
    found = word_maps(call, {("source", 0): (12, ((1,),)), ("target", 0): (12, ((1,), (2,)))}, {})
    first = word_maps(
        probed(dataclasses.replace(call, rows=call.rows[:2] + (Row("target", False),) * 4)),
        asked(12, ((1,),), ((1,), (2,))),
        {},
    )
    assert found["target", 0, 0].shape[-1] == 2
    assert torch.equal(found["target", 0, 0], first["target", 0, 0])


def test_a_time_range_may_end_between_two_steps() -> None:
    total = MapSum()
    for step, chunks in ((0, "cc"), (1, "c")):
        call = probed(make_call("cross", Layout(chunks), columns=12, place=Place(step, 50, 1.0)))
        total.add(call, word_maps(call, asked(12, ((1,), (2,)), ((1,), ())), {}))
    assert total.sums[ONE].shape[-1] == 2


def test_a_latent_made_again_is_kept_as_new() -> None:
    results = Results(limit=2)
    a, b, c = (torch.tensor([float(i)]) for i in range(3))
    for one in (a, b, a, c):
        results.put(one, "x")
    assert (results.get(a), results.get(b), results.get(c)) == ("x", None, "x")


# regions


def test_the_share_of_a_range_forgets_a_map_s_floor_and_its_size() -> None:
    maps = torch.rand(3, 5, 6)
    shares = share_of_range(maps)
    assert shares.amin((1, 2)).tolist() == [0.0] * 3 and shares.amax((1, 2)).tolist() == [1.0] * 3
    torch.testing.assert_close(share_of_range(7.0 * maps + 3.0), shares, rtol=0, atol=1e-5)
    assert share_of_range(torch.ones(4, 4)).tolist() == torch.zeros(4, 4).tolist()


def test_smoothing_keeps_what_is_flat_and_spreads_a_position_over_its_neighbours() -> None:
    flat, spike = torch.full((1, 4, 5), 3.0), torch.zeros(2, 5, 5)
    torch.testing.assert_close(smooth(flat), flat)
    spike[1, 2, 2] = 16.0
    line = torch.tensor([1.0, 2.0, 1.0])
    assert torch.equal(smooth(spike)[1, 1:4, 1:4], line[:, None] * line)
    assert not smooth(spike)[0].any()


def test_older_maps_count_half_after_every_half_life_and_none_where_there_is_no_age() -> None:
    call = make_call("cross", Layout("c"), 0, 2, 4, (3, 4), 6)
    key, ones = ("source", 0, 0), torch.ones(3, 4, 1)
    for half_life, expected in ((0.2, 1.25), (None, 2.0)):
        total = MapSum(half_life)
        for step in (0, 4):
            total.add(dataclasses.replace(call, place=Place(step, 10, 1.0)), {key: ones})
        assert torch.equal(total.sums[key], expected * ones)


def test_shares_in_words() -> None:
    half, whole = torch.tensor([[0.0, 1.0]]), torch.ones(2, 2)
    assert in_share([half]) == in_share([half, half]) == "50.0%"
    assert in_share([whole, half]) == "50.0% to 100.0%"
