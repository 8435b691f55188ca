"""Lists of words for both prompts, or for each of them apart."""

from __future__ import annotations

import pytest

from pivot_edit.core.errors import PivotError
from pivot_edit.core.words import Prompt, PromptPair, Word, WordList, columns_of_list, word_list


def prompt(text: str) -> Prompt:
    """A prompt of one column a word, behind the begin token."""
    words = [Word(word, (i + 1,), (i + 1,)) for i, word in enumerate(text.split())]
    return Prompt(text, tuple(words), (49406, *range(1, 77)))


PAIR = PromptPair(prompt("a red cat with a hat"), prompt("a red dog with a bow"))


def listed(text: str) -> WordList:
    return word_list(text, "blend_words", "Local Blend")


@pytest.mark.parametrize(
    ("text", "source", "target"),
    [
        ("cat", {"cat": (3,)}, {"cat": (3,)}),  # a replaced word stands for its counterpart
        ("cat, dog", {"cat": (3,)}, {"cat": (3,)}),
        ("red cat, red", {"red cat": (2, 3)}, {"red cat": (2, 3)}),
        ("source: cat, target: dog", {"cat": (3,)}, {"dog": (3,)}),
        ("Source:cat\nTARGET：dog, bow", {"cat": (3,)}, {"dog": (3,), "bow": (6,)}),
        ("source: red, cat; target: dog", {"red": (2,), "cat": (3,)}, {"dog": (3,)}),
        ("target: bow", {}, {"bow": (6,)}),
        ("source: hat", {"hat": (6,)}, {}),
        ("source:, target: bow", {}, {"bow": (6,)}),
        ("", {}, {}),
    ],
)
def test_a_list_is_for_both_prompts_or_for_each_apart(
    text: str, source: dict[str, tuple[int, ...]], target: dict[str, tuple[int, ...]]
) -> None:
    listed(text).check((PAIR,))
    assert columns_of_list(PAIR, listed(text)) == (tuple(source.items()), tuple(target.items()))
    assert bool(listed(text)) == bool(source or target)


@pytest.mark.parametrize("text", ["cat, target: dog", "cat; source: cat, target: dog"])
def test_words_in_front_of_the_labels_are_refused(text: str) -> None:
    with pytest.raises(PivotError, match="source: cat, target: dog.*behind the label"):
        listed(text)


@pytest.mark.parametrize("text", ["target:", "source: , target:"])
def test_labels_without_words_are_refused(text: str) -> None:
    with pytest.raises(PivotError, match="but got .*leave both labels out"):
        listed(text)


@pytest.mark.parametrize(
    ("text", "named"), [("source: dog", "'dog'"), ("target: cat", "'cat'"), ("fox", "'fox'")]
)
def test_a_word_that_its_prompt_does_not_have_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(PivotError, match=f"{named}.*There are: a, red"):
        listed(text).check((PAIR,))
