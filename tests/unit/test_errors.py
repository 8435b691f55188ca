"""The pack's one exception: expected; got; where; what to do."""

from __future__ import annotations

import math

import pytest
import torch

from pivot_edit.core.errors import PivotError, check_finite, short


def test_the_message_has_its_four_parts_in_order() -> None:
    error = PivotError("a picture", "a sound", "Connect an image.", "Edit Sampler")
    assert str(error) == "Expected a picture, but got a sound in Edit Sampler. Connect an image."


def test_without_a_place_the_message_is_still_a_sentence() -> None:
    assert str(PivotError("a", "b", "Do c.")) == "Expected a, but got b. Do c."


def test_the_place_can_be_filled_in_later_but_never_replaced() -> None:
    error = PivotError("a", "b", "Do c.")
    assert str(error.at("here")) == "Expected a, but got b in here. Do c."
    assert error.at("here").at("there").where == "here"


def test_it_is_a_value_error() -> None:
    assert issubclass(PivotError, ValueError)


def test_finite_numbers_pass_unchanged() -> None:
    x = torch.tensor([1.0, -2.0])
    assert check_finite(x, "x", "here") is x


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(PivotError, match=r"in the latent, but got NaN or infinity in step 3\."):
        check_finite(torch.tensor([1.0, value]), "the latent", "step 3")


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.1 + 0.2, "0.3"), (3, "3"), (True, "True"), ("x" * 300, "'" + "x" * 99), (None, "None")],
)
def test_values_are_short_in_messages(value: object, said: str) -> None:
    assert short(value) == said
