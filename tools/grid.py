"""Draws the demo's sheet: labelled pictures under the two prompts, with the changed words
marked."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from tools.pack import part
from tools.pictures import on_white

PAPER, INK, FAINT, FRAME = "#ffffff", "#1f2328", "#6e7781", "#d0d7de"
OLD_WORD, NEW_WORD = "#ffd8d3", "#c9f0d0"
COLUMNS = 3


@dataclasses.dataclass(frozen=True)
class Cell:
    """One picture, its label, and a fainter line of figures below it."""

    picture: Image.Image
    label: str
    figures: str = ""


def changed_words(source: str, target: str) -> tuple[set[int], set[int]]:
    """The places, counted in words, where two prompts differ: in the source and in the target."""
    before, after = source.split(), target.split()
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    same_before = {block.a + k for block in blocks for k in range(block.size)}
    same_after = {block.b + k for block in blocks for k in range(block.size)}
    return set(range(len(before))) - same_before, set(range(len(after))) - same_after


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a prompt as it is drawn."""

    x: float
    text: str
    font: Any
    color: str = ""
    """What it is marked with; none for the prompt's name."""


class Sheet:
    """A sheet of square cells of `size` pixels; every other measure follows from it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.gap = size // 12
        self.width = COLUMNS * (size + self.gap) + self.gap
        self.title_font = ImageFont.load_default(size=size * 0.09)
        self.label_font = ImageFont.load_default(size=size * 0.066)
        self.figure_font = ImageFont.load_default(size=size * 0.054)
        self.line = round(size * 0.14)
        self.caption = round(size * 0.2)

    def draw(self, cells: Sequence[Cell], source: str, target: str) -> Image.Image:
        """The finished sheet."""
        old, new = changed_words(source, target)
        lines = [
            *self._wrapped("source", source, old, OLD_WORD),
            *self._wrapped("target", target, new, NEW_WORD),
        ]
        top = self.gap + len(lines) * self.line + self.gap // 2
        rows = -(-len(cells) // COLUMNS)
        height = top + rows * (self.size + self.caption + self.gap // 2) + self.gap // 2
        sheet = Image.new("RGB", (self.width, height), PAPER)
        pen = ImageDraw.Draw(sheet)
        for number, words in enumerate(lines):
            for word in words:
                self._word(pen, word, self.gap + number * self.line)
        for number, cell in enumerate(cells):
            row, column = divmod(number, COLUMNS)
            x = self.gap + column * (self.size + self.gap)
            self._cell(sheet, pen, cell, x, top + row * (self.size + self.caption + self.gap // 2))
        return sheet

    def _wrapped(
        self, name: str, prompt: str, marked: set[int], color: str
    ) -> Iterator[list[Word]]:
        """Lines of one prompt behind its name; `color` marks the changed words."""
        space = self.title_font.getlength(" ")
        start = self.gap + self.title_font.getlength("source") + 3 * space
        x, line = start, [Word(float(self.gap), name, self.title_font)]
        for place, word in enumerate(prompt.split()):
            for text, font in self._fitting(word, place + 1, self.width - self.gap - start):
                width = font.getlength(text)
                if x > start and x + width > self.width - self.gap:
                    yield line
                    x, line = start, []
                line.append(Word(x, text, font, color if place in marked else PAPER))
                x += width
            x += space
        yield line

    def _fitting(self, word: str, number: int, room: float) -> Iterator[tuple[str, Any]]:
        """A word in parts that fit into a line, with a font that has its letters.

        Where no font of the machine has them, it is the word's number.
        """
        text, font = part("show.fonts").drawable(word, number, self.size * 0.09)
        while text:
            count = len(text)
            while count > 1 and font.getlength(text[:count]) > room:
                count -= 1
            yield text[:count], font
            text = text[count:]

    def _word(self, pen: ImageDraw.ImageDraw, word: Word, y: float) -> None:
        margin = self.line * 0.12
        if word.color not in ("", PAPER):
            right = word.x + word.font.getlength(word.text) + margin
            box = (word.x - margin, y, right, y + self.line * 0.88)
            pen.rounded_rectangle(box, radius=margin, fill=word.color)
        ink = INK if word.color else FAINT
        at = (word.x, y + self.line * 0.44)
        pen.text(at, word.text, fill=ink, font=word.font, anchor="lm")

    def _cell(
        self, sheet: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, x: int, y: int
    ) -> None:
        picture = on_white(cell.picture).resize((self.size, self.size), Image.Resampling.LANCZOS)
        sheet.paste(picture, (x, y))
        pen.rectangle((x - 1, y - 1, x + self.size, y + self.size), outline=FRAME)
        y += self.size + self.caption // 8
        pen.text((x, y), cell.label, fill=INK, font=self.label_font)
        pen.text((x, y + self.caption * 0.42), cell.figures, fill=FAINT, font=self.figure_font)
