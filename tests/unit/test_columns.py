"""Texts on the columns of a call: prompt, what is appended to it, and repeats of both."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from calls import make_call
from hypothesis import given
from hypothesis import strategies as st
from reference import few, noise

from pivot_edit.core.columns import text_columns, text_lengths
from pivot_edit.core.errors import PivotError


@few
@given(st.lists(st.sampled_from([77, 154, 231]), min_size=1, max_size=4), st.integers(1, 2))
def test_repeats_are_told_from_texts_that_go_on(lengths: list[int], times: int) -> None:
    columns = times * (462 if len(set(lengths)) > 1 else lengths[0])
    rows = [noise(i, n, 3).repeat(columns // n, 1) for i, n in enumerate(lengths)]
    assert text_lengths(torch.stack(rows)) == tuple(lengths)


def test_a_text_of_one_number_less_that_is_equal_is_no_repeat() -> None:
    text = noise(0, 77, 3).repeat(2, 1)
    text[-1, -1] += 1e-6
    assert text_lengths(text[None]) == (154,)


@pytest.mark.parametrize("columns", [77, 12, 153, 81])
def test_no_text_is_shorter_than_a_chunk(columns: int) -> None:
    """A text of zeros (Conditioning Zero Out) repeats itself everywhere, and is one text."""
    assert text_lengths(torch.zeros(2, columns, 3)) == (columns, columns)


@pytest.mark.parametrize(
    ("text", "prompt", "columns", "wanted"),
    [
        (None, 77, 77, 77),
        (None, 77, 154, 154),
        (77, 77, 154, 77),
        (154, 77, 154, 154),
        (231, 154, 462, 231),
        (77, 154, 154, 154),
        (81, 77, 81, 81),
    ],
)
def test_a_text_is_its_prompt_and_what_is_appended(
    text: int | None, prompt: int, columns: int, wanted: int
) -> None:
    call = make_call("cross", columns=columns)
    call = dataclasses.replace(call, texts=text and (154, text, 154, 154))
    assert text_columns(call, 1, prompt, "") == wanted


@pytest.mark.parametrize(("text", "prompt", "columns"), [(77, 154, 77), (77, 100, 154)])
def test_a_text_shorter_than_its_prompt_is_refused(text: int, prompt: int, columns: int) -> None:
    call = dataclasses.replace(make_call("cross", columns=columns), texts=(text,) * 4)
    message = f"begins with the {prompt} columns of its prompt, but got {text} in a call of"
    with pytest.raises(PivotError, match=message) as refused:
        text_columns(call, 1, prompt, "here")
    assert "in here" in str(refused.value) and "same CLIP" in str(refused.value)
