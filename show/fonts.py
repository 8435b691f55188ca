"""Text that can be read in pictures: a font of this machine that has its letters, or a number."""

from __future__ import annotations

import functools
from typing import Any

from PIL import ImageFont

_SYSTEM = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "msyh.ttc",
    "simhei.ttf",
    "simsun.ttc",
    "malgun.ttf",
    "meiryo.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Light.ttc",
    "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    "ARIALUNI.TTF",
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "seguisym.ttf",
    "seguiemj.ttf",
    "NotoEmoji-Regular.ttf",
    "Symbola.ttf",
)
"""Fonts of Linux, Windows and macOS that have other letters than Latin ones, by file name."""
_INVISIBLE = frozenset("\u200b\u200c\u200d\u2060\ufe0e\ufe0f")
"""Characters that only say how their neighbours are drawn."""
_NO_LETTER = "\uffff"
"""A character that no font has: it is drawn as what a font draws for what it lacks."""


def drawable(text: str, number: int, size: float) -> tuple[str, Any]:
    """A text and a font that has all its letters; where no font has, its number in brackets."""
    shown = "".join(letter for letter in text if letter not in _INVISIBLE)
    for name in ("", *_SYSTEM):
        font = font_of(name, size)
        if font is not None and has_letters(font, shown):
            return shown, font
    return f"({number})", font_of("", size)


@functools.lru_cache(maxsize=256)
def font_of(name: str, size: float) -> Any:
    """A font of the system by its file's name, Pillow's own for an empty one; None if not there."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size=size)
    except (OSError, ValueError):
        return None


def has_letters(font: Any, text: str) -> bool:
    """Whether a font draws every letter of a text as something of its own."""
    return all(letter.isspace() or _has(font, letter) for letter in text)


@functools.lru_cache(maxsize=8192)
def _has(font: Any, letter: str) -> bool:
    if not isinstance(font, ImageFont.FreeTypeFont):
        # Pillow without FreeType has one small font of Western letters
        return ord(letter) < 256
    return _drawn(font, letter) != _drawn(font, _NO_LETTER)


def _drawn(font: Any, letter: str) -> tuple[Any, bytes]:
    """What a font draws for one letter."""
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
