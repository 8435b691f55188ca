"""Prompts as words on token columns, and how two prompts align."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import few, longest_common_subsequence, prompt

from pivot_edit.core.errors import PivotError
from pivot_edit.core.words import Alignment, Prompt, PromptPair, align_refine, align_replace

SILVER = PromptPair(prompt("a cat sitting next to a mirror"), prompt("a silver cat sculpture sitting next to a mirror"))

texts = st.lists(st.sampled_from("a b c d ee-2 ff-3 gg-4".split()), min_size=1, max_size=12).map(" ".join)
long_texts = st.lists(st.sampled_from("a b ee-2 gg-4".split()), min_size=1, max_size=60).map(" ".join)


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


# choosing a mode


def test_auto_replaces_where_the_word_counts_agree_whatever_the_token_counts() -> None:
    assert PromptPair(prompt("a cat here"), prompt("a storm-trooper-3 here")).align().mode == "replace"


def test_auto_refines_where_the_word_counts_differ() -> None:
    assert SILVER.align().mode == "refine"


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
    assert not alignment.own.any()


@few
@given(long_texts)
def test_a_prompt_on_itself_is_the_identity_in_both_modes(text: str) -> None:
    p = prompt(text)
    for alignment in (align_replace(p, p), align_refine(p, p)):
        assert torch.equal(alignment.mapper, torch.eye(len(p.tokens)))
        assert not alignment.own.any()


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
    ("old", "new", "share"), [("cat", "trooper-3", 1 / 3), ("trooper-3", "cat", 1.0), ("ee-2", "ff-3", 1 / 3)]
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
        assert sources_of(Alignment(mapper, mapper, "", ""), [*target.find(word)]) == [*source.find(word)]
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


# refine


def test_the_example_of_the_paper_refines_as_its_reference_does() -> None:
    alignment = SILVER.align()
    assert sources_of(alignment, list(range(11))) == [0, 1, -1, 2, -1, 3, 4, 5, 6, 7, 8]
    assert alignment.own.nonzero().flatten().tolist() == [2, 4]


def test_the_note_of_a_refinement_names_new_and_gone_words() -> None:
    alignment = align_refine(prompt("a big cat sat"), prompt("a cat sat still"))
    assert alignment.note == "'still' new; 'big' gone; 3 words kept"


@few
@given(long_texts, long_texts)
def test_a_refined_column_reads_either_one_equal_source_token_or_itself(old: str, new: str) -> None:
    source, target = prompt(old), prompt(new)
    alignment = align_refine(source, target)
    columns = columns_of(target)
    assert set(alignment.own.tolist()) <= {0.0, 1.0}
    assert torch.equal(alignment.mapper[:, columns].sum(0), 1.0 - alignment.own[columns])
    matched = [(i, j) for i, j in zip(sources_of(alignment, columns), columns, strict=True) if i >= 0]
    assert all(source.tokens[i] == target.tokens[j] for i, j in matched)


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


@few
@given(long_texts, long_texts)
def test_special_columns_read_special_columns_or_keep_their_own(old: str, new: str) -> None:
    source, target = prompt(old), prompt(new)
    alignment = align_refine(source, target)
    specials = sorted(set(range(len(target.tokens))) - set(columns_of(target)))
    assert torch.equal(alignment.own[specials], (alignment.mapper[:, specials].sum(0) == 0).float())
    assert alignment.mapper[columns_of(source)][:, specials].count_nonzero() == 0
    assert alignment.mapper[0].nonzero().flatten().tolist() == [0]
