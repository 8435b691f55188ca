"""Prompts as words on token columns, and how two prompts align."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import BEGIN, END, few, longest_common_subsequence, prompt

from pivot_edit.core import words
from pivot_edit.core.errors import PivotError
from pivot_edit.core.words import (
    Alignment,
    Prompt,
    PromptPair,
    Word,
    _matches,
    align_refine,
    align_replace,
    check_among,
    columns_in_both,
    legacy_refine,
    legacy_replace,
    phrases,
    reweighted,
    windowed,
    word_weights,
    word_windows,
)

SILVER = PromptPair(
    prompt("a cat sitting next to a mirror"),
    prompt("a silver cat sculpture sitting next to a mirror"),
)

texts = st.lists(st.sampled_from("a b c d ee-2 ff-3 gg-4".split()), min_size=1, max_size=12).map(
    " ".join
)
long_texts = st.lists(st.sampled_from("a b ee-2 gg-4".split()), min_size=1, max_size=60).map(
    " ".join
)


def columns_of(p: Prompt) -> list[int]:
    return [column for word in p.words for column in word.columns]


def sources_of(alignment: Alignment, target_columns: list[int]) -> list[int]:
    """The source column that each of some target columns reads, -1 where it reads none."""
    mapper = alignment.mapper[:, target_columns]
    return [int(column.argmax()) if column.any() else -1 for column in mapper.T]


# find


def test_a_word_is_found_whatever_its_case_and_punctuation() -> None:
    p = prompt('A "Cat", on (the) sofa.')
    for phrase in ("cat", "Cat", "CAT,", " cat. "):
        assert [p.tokens[column] for column in p.find(phrase)] == [prompt("cat").tokens[1]]


def test_the_columns_found_are_without_punctuation_but_the_word_owns_it() -> None:
    p = prompt('a "cat", here')
    assert p.words[1].columns == (2, 3, 4, 5)
    assert p.find("cat") == (3,)


def test_a_word_of_several_tokens_is_found_with_all_of_them() -> None:
    assert prompt("a storm-trooper-3 here").find("storm-trooper-3") == (2, 3, 4)


def test_a_phrase_is_found_only_where_its_words_follow_each_other() -> None:
    p = prompt("blue sky, blue hair and Blue   Hair. hair blue")
    assert p.find("blue hair") == (4, 5, 7, 8)


def test_a_repeated_word_is_found_everywhere() -> None:
    assert prompt("a cat and a cat").find("a") == (1, 4)


def test_a_word_in_the_second_chunk_is_found_there() -> None:
    p = prompt("x " * 75 + "cat")
    assert len(p.tokens) == 154
    assert p.find("cat") == (78,)


@pytest.mark.parametrize("phrase", ["dog", "cat on", "ca", "", "  "])
def test_a_phrase_that_does_not_occur_is_an_error_that_lists_the_words(phrase: str) -> None:
    with pytest.raises(PivotError, match=r"Its words are: a, cat, sat\.$"):
        prompt("A cat, a cat sat.").find(phrase)


def test_a_word_is_found_without_its_ending_and_with_it() -> None:
    dog = Word("dog's", (2, 3), (2, 3), (2,))
    p = Prompt("a dog's tail", (Word("a", (1,), (1,)), dog, Word("tail", (4,), (4,))), (0,) * 77)
    assert p.find("dog") == (2,) and p.find("Dog’s") == (2, 3)
    assert p.find("dog tail") == (2, 4) and p.find("dog's tail") == (2, 3, 4)
    assert p.listed == "a, dog's, tail"
    for phrase in ("do", "dogs", "s", "'s", "dog's dog"):
        assert p.seek(phrase) == ()
    whole = dataclasses.replace(p, words=(Word("dog's", (2,), (2,)), Word("tail", (4,), (4,))))
    assert whole.seek("dog tail") == () and whole.seek("dog's tail") == (2, 4)


def test_signs_on_one_token_are_found_together_and_not_apart() -> None:
    p = Prompt("a 😂😂", (Word("a", (1,), (1,)), Word("😂😂", (2,), (2,))), (0,) * 77)
    assert p.find("😂😂") == (2,) and p.seek("😂") == ()


def test_a_comma_alone_may_stand_in_a_phrase_but_no_other_sign() -> None:
    p = prompt("red , blue")
    assert p.find("red blue") == p.find("red , blue") == (*p.words[0].core, *p.words[2].core)
    assert p.find("blue") == p.words[2].core
    assert prompt("red | blue").seek("red blue") == ()
    assert prompt("a ?! b").find("?!") == prompt("a ?! b").words[1].core


# choosing a mode


def test_auto_replaces_where_the_word_counts_agree_whatever_the_token_counts() -> None:
    assert (
        PromptPair(prompt("a cat here"), prompt("a storm-trooper-3 here")).align().mode == "replace"
    )


def test_auto_refines_where_the_word_counts_differ() -> None:
    assert SILVER.align().mode == "refine"


@pytest.mark.parametrize(
    ("old", "new", "mode"),
    [
        ("a dotted yellow square at the right", "a yellow square at the far right", "refine"),
        ("a big red star", "a red star now", "refine"),
        ("star, red", "Red star", "refine"),  # in place none is kept, in order one
        ("a cat and a dog", "a dog and a cat", "replace"),
        ("a red star at the left", "a blue moon at the right", "replace"),
        ("a cat", "the dog", "replace"),
        ("红色的星", "蓝色的星", "refine"),
        ("a 红 star", "a 蓝 star", "replace"),
        ("a star", "红色 star", "refine"),
        ("红色 star", "a star", "refine"),
    ],
)
def test_auto_refines_where_words_have_moved_and_where_no_spaces_are(
    old: str, new: str, mode: str
) -> None:
    pair = PromptPair(prompt(old), prompt(new))
    assert pair.one_by_one is (mode == "replace")
    assert pair.align().mode == mode and pair.align("replace").mode == "replace"


def test_words_that_have_moved_have_no_counterpart_in_their_place() -> None:
    """dotted is no longer there; yellow stands in its place, and is another word."""
    moved = PromptPair(prompt("a dotted yellow star here"), prompt("a yellow star here now"))
    assert columns_in_both(moved, ["dotted"]) == ((2,), ())
    assert columns_in_both(moved, ["yellow"]) == ((3,), (2,))
    still = PromptPair(prompt("a dotted yellow star"), prompt("a plain yellow star"))
    assert columns_in_both(still, ["dotted"]) == ((2,), (2,))


def test_refine_can_be_asked_for_at_equal_word_counts() -> None:
    assert PromptPair(prompt("a cat"), prompt("a dog")).align("refine").mode == "refine"


def test_replacing_with_another_number_of_words_is_refused() -> None:
    with pytest.raises(PivotError, match="as many words .* but got 9 and 7"):
        SILVER.align("replace")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(PivotError, match="auto.*replace.*refine.*but got 'swap'"):
        SILVER.align("swap")


# replace


def test_replacing_token_by_token_is_the_identity() -> None:
    alignment = align_replace(prompt("a cat, on a sofa"), prompt("a dog, on a table"))
    assert torch.equal(alignment.mapper, torch.eye(77))
    assert not alignment.target_share.any()


@few
@given(long_texts)
def test_a_prompt_on_itself_is_the_identity_in_both_modes(text: str) -> None:
    p = prompt(text)
    for alignment in (align_replace(p, p), align_refine(p, p)):
        assert torch.equal(alignment.mapper, torch.eye(len(p.tokens)))
        assert not alignment.target_share.any()


@few
@given(st.data())
def test_replace_loses_and_invents_no_attention(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    words = st.lists(st.sampled_from("a b ee-2 ff-3 gg-4".split()), min_size=count, max_size=count)
    source, target = (prompt(" ".join(data.draw(words))) for _ in range(2))
    mapper = align_replace(source, target).mapper
    assert mapper.shape == (len(source.tokens), len(target.tokens))
    assert (mapper >= 0).all()
    torch.testing.assert_close(mapper.sum(1), torch.ones(len(source.tokens)))


@pytest.mark.parametrize(
    ("old", "new", "share"),
    [("cat", "trooper-3", 1 / 3), ("trooper-3", "cat", 1.0), ("ee-2", "ff-3", 1 / 3)],
)
def test_words_of_other_lengths_share_equally_and_everything_after_stays_aligned(
    old: str, new: str, share: float
) -> None:
    """The reference reads the wrong columns after such a word and loses or doubles attention."""
    source, target = prompt(f"a {old} on the sofa"), prompt(f"a {new} on the sofa")
    mapper = align_replace(source, target).mapper
    block = mapper[list(source.find(old))][:, list(target.find(new))]
    torch.testing.assert_close(block, torch.full_like(block, share))
    for word in ("a", "on", "the", "sofa"):
        assert sources_of(Alignment(mapper, mapper, "", ""), [*target.find(word)]) == [
            *source.find(word)
        ]
        assert mapper[list(source.find(word))].sum() == 1.0


def test_begin_end_and_padding_keep_their_place_and_the_rest_joins_the_last_padding() -> None:
    source, target = prompt("a cat"), prompt("a trooper-3")
    mapper = align_replace(source, target).mapper
    assert [int(row.argmax()) for row in mapper[[0, 3, 6, 75, 76]]] == [0, 5, 6, 75, 76]
    assert [int(row.argmax()) for row in mapper[[4, 5]]] == [76, 76]


def test_specials_of_several_chunks_pair_within_their_chunk() -> None:
    source, target = prompt("a cat"), prompt("a " * 80)
    mapper = align_refine(source, target).mapper
    assert mapper[:, 77:].count_nonzero() == 0
    back = align_replace(prompt("a-9 " * 9), prompt("b " * 9)).mapper
    assert back[77].nonzero().flatten().tolist() == [76]


def test_the_note_of_a_replacement_names_the_changed_words() -> None:
    alignment = align_replace(prompt("a cat, on a sofa"), prompt("A dog, on a sofa"))
    assert alignment.note == "cat, -> dog, replaced; 4 words kept"
    smiling = align_replace(prompt("a >_<, cat"), prompt("a ^_^, cat"))
    assert smiling.note == ">_<, -> ^_^, replaced; 2 words kept"


# refine


def test_the_example_of_the_paper_refines_as_its_reference_does() -> None:
    alignment = SILVER.align()
    assert sources_of(alignment, list(range(11))) == [0, 1, -1, 2, -1, 3, 4, 5, 6, 7, 8]
    assert alignment.target_share.nonzero().flatten().tolist() == [2, 4]


def test_the_note_of_a_refinement_names_new_and_gone_words() -> None:
    alignment = align_refine(prompt("a big cat sat"), prompt("a cat sat still"))
    assert alignment.note == "'still' new; 'big' gone; 3 words kept"


@few
@given(long_texts, long_texts)
def test_a_refined_column_reads_either_one_equal_source_token_or_itself(old: str, new: str) -> None:
    source, target = prompt(old), prompt(new)
    alignment = align_refine(source, target)
    columns = columns_of(target)
    assert set(alignment.target_share.tolist()) <= {0.0, 1.0}
    assert torch.equal(alignment.mapper[:, columns].sum(0), 1.0 - alignment.target_share[columns])
    matched = [
        (i, j) for i, j in zip(sources_of(alignment, columns), columns, strict=True) if i >= 0
    ]
    assert all(source.tokens[i] == target.tokens[j] for i, j in matched)


@pytest.mark.parametrize(
    ("old", "new", "share"),
    [("星", "晴", [1.0, 1.0]), ("星", "（星）", [0.0, 0.0]), ("sunny", "sunday", [0.0, 1.0])],
)
def test_parts_of_a_sign_match_in_the_same_sign_only(
    old: str, new: str, share: list[float]
) -> None:
    """Two signs may share a byte, which says nothing; two words may share a syllable."""

    def of_two_tokens(text: str) -> Prompt:
        second = sum(map(ord, text.strip("（）")))
        return Prompt(text, (Word(text, (1, 2), (1, 2)),), (BEGIN, 7, second) + (END,) * 74)

    alignment = align_refine(of_two_tokens(old), of_two_tokens(new))
    assert alignment.target_share[1:3].tolist() == share


@few
@given(long_texts, long_texts)
def test_refined_matches_keep_the_order_of_the_words(old: str, new: str) -> None:
    source, target = prompt(old), prompt(new)
    matched = [i for i in sources_of(align_refine(source, target), columns_of(target)) if i >= 0]
    assert matched == sorted(set(matched))


@few
@given(texts, texts)
def test_refine_matches_as_many_tokens_as_can_be_matched(old: str, new: str) -> None:
    source, target = prompt(old), prompt(new)
    matched = [i for i in sources_of(align_refine(source, target), columns_of(target)) if i >= 0]
    ids = [[p.tokens[column] for column in columns_of(p)] for p in (source, target)]
    assert len(matched) == longest_common_subsequence(*ids)


@pytest.mark.parametrize(
    ("old", "new", "matched"),
    [
        ("red blue", "blue red", [1, -1]),  # of two equal alignments, insertion ends first
        ("red blue green", "green red blue", [-1, 0, 1]),  # a longer one wins all the same
        ("red", "red red", [0, -1]),  # of two equal tokens the first is matched
        ("red red", "red", [0]),
        ("red blue red", "red", [0]),
        ("a b c", "b a c b", [1, -1, 2, -1]),
    ],
)
def test_ties_of_the_alignment_fall_as_in_the_references(
    old: str, new: str, matched: list[int]
) -> None:
    """Going back from the end: insertion, then deletion, then a match."""
    source, target = prompt(old), prompt(new)
    first = columns_of(source)[0]
    found = sources_of(align_refine(source, target), columns_of(target))
    assert [column - first if column >= 0 else -1 for column in found] == matched


def plain_needleman_wunsch(old: list[int], new: list[int]) -> list[tuple[int, int]]:
    """As written in the references: the whole table, then back from its end."""
    table = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i, a in enumerate(old):
        for j, b in enumerate(new):
            diagonal = table[i][j] + (1 if a == b else -1)
            table[i + 1][j + 1] = max(table[i + 1][j], table[i][j + 1], diagonal)
    i, j, pairs = len(old), len(new), []
    while i > 0 and j > 0:
        if table[i][j] == table[i][j - 1]:
            j -= 1
        elif table[i][j] == table[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs.append((i, j))
    return pairs[::-1]


numbers = st.lists(st.integers(0, 3), max_size=14)


@settings(few, max_examples=300)
@given(numbers, numbers, numbers)
def test_the_quick_match_is_the_plain_one_with_all_its_ties(
    start: list[int], old: list[int], new: list[int]
) -> None:
    old, new = start + old, start + new
    assert _matches(old, new) == plain_needleman_wunsch(old, new)


def steps_of(work: Callable[[], object]) -> int:
    """How many lines of the alignment's own module a piece of work goes through."""
    count, before = 0, sys.gettrace()

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != words.__file__:
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("mode", ["refine", "auto"])
def test_two_thousand_words_are_aligned_row_by_row(mode: str) -> None:
    """The plain table goes through all pairs of words, 4 million of them."""
    listed = [f"w{i % 97}" for i in range(2000)]

    def pair(count: int) -> PromptPair:
        return PromptPair(
            prompt(" ".join(listed[:count])), prompt("new " + " ".join(listed[: count - 1]))
        )

    whole, half = pair(2000), pair(1000)
    # twice the words are twice the rows, and four times the pairs
    assert steps_of(lambda: whole.align(mode)) < 3 * steps_of(lambda: half.align(mode))
    alignment = whole.align(mode)
    assert alignment.mode == "refine" and alignment.note == "'new' new; 'w59' gone; 1999 words kept"


def test_chunks_of_another_length_pair_their_own_begin_and_end() -> None:
    """Long-CLIP reads 248 columns at once."""
    tokens = (0, 5, 6, 1) + (1,) * 244
    words = (Word("a", (1,), (1,)), Word("b", (2,), (2,)))
    long = Prompt("a b", words, tokens, 248)
    assert torch.equal(align_replace(long, long).mapper, torch.eye(248))
    assert torch.equal(align_refine(long, long).mapper, torch.eye(248))


@few
@given(long_texts, long_texts)
def test_special_columns_read_special_columns_or_keep_their_own(old: str, new: str) -> None:
    source, target = prompt(old), prompt(new)
    alignment = align_refine(source, target)
    specials = sorted(set(range(len(target.tokens))) - set(columns_of(target)))
    assert torch.equal(
        alignment.target_share[specials], (alignment.mapper[:, specials].sum(0) == 0).float()
    )
    assert alignment.mapper[columns_of(source)][:, specials].count_nonzero() == 0
    assert alignment.mapper[0].nonzero().flatten().tolist() == [0]


# the tables of the public implementations


def test_legacy_loses_what_stands_behind_a_word_that_grew() -> None:
    """a 1, cat 2, on 3, it 4 -> a 1, trooper 2 to 4, on 5, it 6."""
    alignment = legacy_replace(prompt("a cat on it"), prompt("a trooper-3 on it"))
    assert alignment.mapper.sum(1).tolist() == pytest.approx([1, 1, 1, 0, 0] + [1] * 72)
    assert alignment.mapper[2, 2:5].tolist() == pytest.approx([1 / 3] * 3)
    assert sources_of(alignment, list(range(5, 77))) == list(range(5, 77))
    assert not alignment.target_share.any() and alignment.mode == "replace"


def test_legacy_doubles_what_stands_behind_a_word_that_shrank() -> None:
    """a 1, trooper 2 to 4, on 5, it 6 -> a 1, cat 2, on 3, it 4."""
    mapper = legacy_replace(prompt("a trooper-3 on it"), prompt("a cat on it")).mapper
    assert mapper.sum(1).tolist() == [1, 1, 1, 2, 2] + [1] * 70 + [0, 0]
    assert mapper[2:5, 2].tolist() == [1, 1, 1]
    assert mapper[:, 75:].count_nonzero() == 0
    assert torch.equal(mapper[5:75, 3:75], torch.eye(72)[2:])


def test_legacy_is_aligned_up_to_the_last_changed_word() -> None:
    """a 1, cat 2, on 3, red 4, sofa 5, now 6 -> a 1, trooper 2 to 4, on 5, red 6, table 7 to 8, now
    9."""
    source, target = prompt("a cat on red sofa now"), prompt("a trooper-3 on red table-2 now")
    mapper = legacy_replace(source, target).mapper
    assert sources_of(Alignment(mapper, mapper, "", ""), list(range(10))) == [
        0,
        1,
        2,
        2,
        2,
        3,
        4,
        5,
        5,
        9,
    ]
    assert mapper[5, 7:9].tolist() == [0.5, 0.5]


@few
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4)), min_size=1, max_size=15),
    st.data(),
)
def test_legacy_is_the_identity_where_the_token_counts_agree(
    words: list[tuple[str, int]], data: st.DataObject
) -> None:
    source = prompt(" ".join(f"{name}-{count}" for name, count in words))
    target = prompt(" ".join(f"{data.draw(st.sampled_from('abc'))}-{count}" for _, count in words))
    assert torch.equal(legacy_replace(source, target).mapper, torch.eye(77))


@few
@given(texts, texts)
def test_legacy_refines_as_it_should_unless_the_target_is_the_shorter_one(
    old: str, new: str
) -> None:
    source, target = prompt(old), prompt(new)
    fixed, legacy = align_refine(source, target), legacy_refine(source, target)
    end = 2 + len(columns_of(target))
    same = torch.equal(legacy.mapper, fixed.mapper) and torch.equal(
        legacy.target_share, fixed.target_share
    )
    assert same is (len(columns_of(target)) >= len(columns_of(source)))
    assert torch.equal(legacy.mapper[:, :end], fixed.mapper[:, :end])
    assert torch.equal(legacy.target_share[:end], fixed.target_share[:end])
    assert (
        sources_of(legacy, list(range(end, 77))) == list(range(end, 77))
        and not legacy.target_share[end:].any()
    )


def test_legacy_padding_behind_a_shorter_target_reads_words_of_the_source() -> None:
    source, target = prompt("a cat sitting next to a mirror"), prompt("a cat")
    assert source.words[6].columns == (7,)
    assert sources_of(legacy_refine(source, target), list(range(9))) == [0, 1, 2, 8, 4, 5, 6, 7, 8]
    assert sources_of(align_refine(source, target), list(range(9))) == [
        0,
        1,
        2,
        8,
        -1,
        -1,
        -1,
        -1,
        -1,
    ]


@pytest.mark.parametrize(
    ("old", "new", "mode", "chosen"),
    [
        ("a cat", "a trooper-3", "auto", "replace"),
        ("a cat", "a trooper-3", "refine", "refine"),
        ("a cat", "a big cat", "auto", "refine"),
        ("a cat", "a big cat", "reweight", "reweight"),
    ],
)
def test_the_legacy_tables_are_chosen_as_the_fixed_ones(
    old: str, new: str, mode: str, chosen: str
) -> None:
    pair = PromptPair(prompt(old), prompt(new))
    tables = {"replace": legacy_replace, "refine": legacy_refine}
    alignment = pair.align(mode, "legacy")
    assert alignment.mode == pair.align(mode).mode == chosen
    expected = tables[chosen](pair.source, pair.target) if chosen in tables else pair.align(mode)
    assert torch.equal(alignment.mapper, expected.mapper) and torch.equal(
        alignment.target_share, expected.target_share
    )
    assert alignment.note.endswith("legacy table") is (chosen in tables)


@pytest.mark.parametrize(
    ("old", "new", "got"), [("a " * 76, "a", "154 and 77"), ("a", "a " * 151, "77 and 231")]
)
@pytest.mark.parametrize("mode", ["auto", "refine"])
def test_legacy_tables_of_several_chunks_are_refused(
    old: str, new: str, got: str, mode: str
) -> None:
    with pytest.raises(
        PivotError, match=f"at most 75 tokens for the legacy mapper, but got {got} columns"
    ):
        PromptPair(prompt(old), prompt(new)).align(mode, "legacy")


def test_an_unknown_mapper_is_refused() -> None:
    with pytest.raises(PivotError, match="mapper to be one of .*fixed.*legacy.*but got 'old'"):
        SILVER.align(mapper="old")


# reweight by position


@few
@given(st.lists(texts, min_size=2, max_size=2), st.sampled_from(["fixed", "legacy"]))
def test_reweighting_alone_reads_every_column_where_it_stands(pair: list[str], mapper: str) -> None:
    alignment = PromptPair(*map(prompt, pair)).align("reweight", mapper)
    assert torch.equal(alignment.mapper, torch.eye(77))
    assert (
        not alignment.target_share.any()
        and alignment.mode == "reweight"
        and alignment.weights is None
    )


def test_the_note_of_reweighting_counts_the_words_that_stay() -> None:
    pair = PromptPair(prompt("a cat on it"), prompt("a dog on it now"))
    assert pair.align("reweight").note == "3 words kept in their places"


def test_reweighting_alone_goes_over_several_chunks_but_needs_as_many() -> None:
    long = prompt("a " * 76)
    assert torch.equal(PromptPair(long, prompt("b " * 76)).align("reweight").mapper, torch.eye(154))
    with pytest.raises(PivotError, match="as many columns .* but got 154 and 77"):
        PromptPair(long, prompt("a")).align("reweight")


# weights and windows of words

RED = PromptPair(prompt("a cat on a sofa"), prompt('a "red" fox-2, on a red sofa'))


def test_weights_go_to_the_columns_of_their_words_without_punctuation() -> None:
    """a 1, " 2, red 3, " 4, fox 5 to 6, the comma 7, on 8, a 9, red 10, sofa 11."""
    alignment = reweighted(RED.align(), RED.target, [("RED", 2.0), ("fox-2", -0.5)])
    expected = {3: 2.0, 10: 2.0, 5: -0.5, 6: -0.5}
    assert alignment.weights is not None
    assert alignment.weights.tolist() == [expected.get(column, 1.0) for column in range(77)]


def test_a_phrase_is_weighted_only_where_all_of_it_stands_and_the_last_weight_wins() -> None:
    weights = [("red", 2.0), ("red sofa", 0.0), ("on a", 3.0), ("a", 1.5)]
    alignment = reweighted(RED.align(), RED.target, weights)
    assert alignment.weights is not None
    assert alignment.weights[[3, 10, 11, 8, 9, 1]].tolist() == [2.0, 0.0, 0.0, 3.0, 1.5, 1.5]


def test_weights_add_to_those_there_are_and_leave_the_alignment_they_came_from() -> None:
    plain = RED.align()
    first = reweighted(plain, RED.target, [("fox-2", 2.0)])
    second = reweighted(first, RED.target, [("sofa", 3.0)])
    assert plain.weights is None and first.weights is not None and second.weights is not None
    assert first.weights[[5, 11]].tolist() == [2.0, 1.0] and second.weights[[5, 11]].tolist() == [
        2.0,
        3.0,
    ]
    assert second.mapper is plain.mapper and second.mode == plain.mode
    assert second.note == f"{plain.note}; 'fox-2' x 2; 'sofa' x 3"


def test_windows_go_to_the_columns_of_their_words_in_their_order() -> None:
    plain = RED.align()
    first = windowed(plain, RED.target, [("red", (0.2, 0.8)), ("fox-2", (0.0, 1.0))])
    second = windowed(first, RED.target, [("red sofa", (0.5, 0.5))])
    assert first.windows == (((3, 10), (0.2, 0.8)), ((5, 6), (0.0, 1.0)))
    assert second.windows == (*first.windows, ((10, 11), (0.5, 0.5)))
    assert first.note == f"{plain.note}; 'red' from 0.2 to 0.8, 'fox-2' from 0 to 1"


def test_no_weights_and_no_windows_are_the_same_alignment() -> None:
    plain = RED.align()
    assert reweighted(plain, RED.target, []) is plain and windowed(plain, RED.target, []) is plain


def test_weights_and_windows_of_words_that_the_target_lacks_are_errors_that_list_its_words() -> (
    None
):
    """The source's cat is not in the target."""
    listed = r"but got 'cat'\. Its words are: a, red, fox-2, on, sofa\.$"
    with pytest.raises(PivotError, match=listed):
        reweighted(RED.align(), RED.target, [("red", 2.0), ("cat", 2.0)])
    with pytest.raises(PivotError, match=listed):
        windowed(RED.align(), RED.target, [("cat", (0.0, 1.0))])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" ,; \n,", []),
        ("cat", ["cat"]),
        ("cat, blue hair;dog\n  red   sofa ,", ["cat", "blue hair", "dog", "red   sofa"]),
        ("red，blue hair、星；dog", ["red", "blue hair", "星", "dog"]),
    ],
)
def test_phrases_are_separated_by_commas_semicolons_or_lines(text: str, parts: list[str]) -> None:
    assert phrases(text) == parts


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("shiny: 2, red: -0.5", [("shiny", 2.0), ("red", -0.5)]),
        ("blue hair:.5;x : +3.\ny:0", [("blue hair", 0.5), ("x", 3.0), ("y", 0.0)]),
        ("at 3:4: 2, storm-trooper: 1", [("at 3:4", 2.0), ("storm-trooper", 1.0)]),
        ("red: 1, red: 2", [("red", 1.0), ("red", 2.0)]),
        ("shiny：2，red： -0.5、星:.5", [("shiny", 2.0), ("red", -0.5), ("星", 0.5)]),
    ],
)
def test_weights_are_read(text: str, pairs: list[tuple[str, float]]) -> None:
    assert word_weights(text) == pairs


@pytest.mark.parametrize(
    "part",
    [
        "shiny",
        "shiny 2",
        "shiny:",
        ":2",
        ": 2",
        "x: two",
        "x: 1e3",
        "x: 1.2.3",
        "x: --1",
        "x: nan",
        "x: 2x",
    ],
)
def test_weights_that_cannot_be_read_are_errors_that_quote_them(part: str) -> None:
    with pytest.raises(PivotError, match="words with weights, such as") as caught:
        word_weights(f"red: 1, {part}; blue: 2")
    assert caught.value.got == repr(part)


def test_a_weight_beyond_every_number_is_an_error() -> None:
    with pytest.raises(PivotError, match=r"words with weights, .*, but got 'x: 9999"):
        word_weights("x: " + "9" * 400)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("star: 0.2-0.8, red: 0.5", [("star", (0.2, 0.8)), ("red", (0.0, 0.5))]),
        (
            "blue hair:.25 - 1.\nstar-2: 0-1;x: 1",
            [("blue hair", (0.25, 1.0)), ("star-2", (0.0, 1.0)), ("x", (0, 1))],
        ),
        ("star：0.2～0.8，red：0.5", [("star", (0.2, 0.8)), ("red", (0.0, 0.5))]),
    ],
)
def test_windows_are_read(text: str, pairs: list[tuple[str, tuple[float, float]]]) -> None:
    assert word_windows(text) == pairs


@pytest.mark.parametrize(
    "part", ["star", "star 0.5", "star:", ": 0.5", "x: 0.2-", "x: -0.2", "x: 0-0.5-1", "x: a-b"]
)
def test_windows_that_cannot_be_read_are_errors_that_quote_them(part: str) -> None:
    with pytest.raises(PivotError, match="words with windows, such as") as caught:
        word_windows(f"red: 1, {part}; blue: 0.5")
    assert caught.value.got == repr(part)


@pytest.mark.parametrize(
    "part", ["star: 0.2-1.01", "star: 2", "star: 10-40", "star: 1.5-0.5", "star: 0.8-0.2"]
)
def test_windows_beyond_the_run_are_refused(part: str) -> None:
    with pytest.raises(
        PivotError, match=f"windows between 0 and 1, start before end, but got '{part}'"
    ):
        word_windows(f"red: 1, {part}")


def test_a_phrase_of_any_of_the_prompts_is_among_them() -> None:
    prompts = [prompt("a cat"), prompt("a Dog, now"), prompt("the dog now")]
    for phrase in ("dog", "dog now", "a", "cat"):
        check_among(prompts, phrase)
    for phrase in ("cat now", "do"):
        with pytest.raises(PivotError):
            check_among(prompts, phrase)


def test_among_lists_the_words_of_all_prompts_once_where_none_has_the_phrase() -> None:
    prompts = [prompt("a cat"), prompt("a dog"), prompt("a cat")]
    with pytest.raises(
        PivotError, match=r"'a cat' or 'a dog', but got 'cat dog'\. There are: a, cat, dog\.$"
    ):
        check_among(prompts, "cat dog")
