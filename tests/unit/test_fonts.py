"""Labels that can be read: letters that a font lacks are noticed, and no box is ever drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pivot_edit.show import fonts
from pivot_edit.show.grids import labelled_grid
from tools.grid import Cell, Sheet

LACKED = ["星", "🐱", "❤️", "кот", "ไทย", "a 星", "ï"]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without fonts but Pillow's own."""
    monkeypatch.setattr(fonts, "_SYSTEM", ())


@pytest.mark.parametrize("text", LACKED)
@pytest.mark.usefixtures("bare")
def test_what_no_font_has_is_a_number(text: str) -> None:
    assert fonts.drawable(text, 3, 20.0) == ("(3)", fonts.font_of("", 20.0))


@pytest.mark.parametrize(
    "text", ["cat", "a red star", "it's 3/4 (big)!", "", "two\u200b", "a\ufe0f"]
)
@pytest.mark.usefixtures("bare")
def test_plain_words_are_drawn_as_they_are(text: str) -> None:
    shown, font = fonts.drawable(text, 3, 20.0)
    assert shown == text.rstrip("\u200b\ufe0f") and font is fonts.font_of("", 20.0)


def test_the_first_font_that_has_all_letters_is_taken(monkeypatch) -> None:
    monkeypatch.setattr(fonts, "_SYSTEM", ("none", "narrow", "wide", "wider"))
    monkeypatch.setattr(fonts, "font_of", lambda name, size: None if name == "none" else name)
    monkeypatch.setattr(fonts, "has_letters", lambda font, text: font.startswith("wide"))
    assert fonts.drawable("星", 1, 20.0) == ("星", "wide")


def test_a_font_that_is_not_there_is_none() -> None:
    assert fonts.font_of("no such font.ttf", 12.0) is None


def test_pillow_without_freetype_knows_western_letters() -> None:
    assert fonts.has_letters(object(), "naïve cat") and not fonts.has_letters(object(), "星")


@pytest.mark.usefixtures("bare")
def test_a_grid_numbers_its_words_by_their_place() -> None:
    """Of two pictures with three words each."""
    pictures = torch.zeros(6, 64, 96, 3)
    grid = labelled_grid(pictures, ["cat", "星", "🐱"] * 2, 3)
    assert torch.equal(grid, labelled_grid(pictures, ["cat", "(2)", "(3)"] * 2, 3))
    assert not torch.equal(grid, labelled_grid(pictures, ["cat", "(2)", "(2)"] * 2, 3))


@pytest.mark.usefixtures("bare")
def test_the_demos_sheet_numbers_words_and_breaks_long_ones() -> None:
    cells = [Cell(Image.new("RGB", (8, 8)), "source")]
    drawn = Sheet(256).draw(cells, "a 星 cat", "a 星 cat")
    numbered = Sheet(256).draw(cells, "a (2) cat", "a (2) cat")
    assert np.array_equal(np.asarray(drawn), np.asarray(numbered))
    long = Sheet(256).draw(cells, "x" * 200, "a cat")
    (paper,) = {long.getpixel((long.width - 4, y)) for y in range(long.height)}
    assert paper == (255, 255, 255) and long.height > drawn.height
