"""Pictures as files have them: depths, modes, transparency and orientation become one picture."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tools import demo
from tools.pictures import on_white, plain, to_array

SIZE = (24, 20)
LEVELS = (np.arange(480).reshape(20, 24) // 2).astype(np.uint8)
"""A grey picture in 8 bits."""
COLOURS = np.stack([LEVELS, 255 - LEVELS, np.full_like(LEVELS, 90)], -1)
HOLE = np.where(np.arange(24) < 8, 0, 255).astype(np.uint8) * np.ones((20, 1), np.uint8)
"""Transparent at the left."""


def filed(picture: Image.Image, kind: str = "PNG", **options: object) -> Image.Image:
    """A picture once written and read."""
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return Image.open(data)


def grey(dtype: str, factor: float = 257.0) -> Image.Image:
    return Image.fromarray((LEVELS.astype(np.float64) * factor).astype(dtype))


def clear(mode: str) -> Image.Image:
    picture = Image.fromarray(COLOURS).convert("L" if mode[0] == "L" else "RGB").convert(mode)
    picture.putalpha(Image.fromarray(HOLE))
    return picture


GREYS: dict[str, Callable[[], Image.Image]] = {
    "8 bits": lambda: filed(Image.fromarray(LEVELS)),
    "16 bits": lambda: filed(grey("<u2")),
    "16 bits of a TIFF": lambda: filed(grey("<u2"), "TIFF"),
    "16 bits, big endian": lambda: Image.frombytes(
        "I;16B", SIZE, grey("<u2").convert("I").point(lambda value: value).tobytes("raw", "I;16B")
    ),
    "32 bits": lambda: filed(grey("<i4"), "TIFF"),
    "floats": lambda: filed(grey("<f4", 1 / 255), "TIFF"),
    "LA": lambda: filed(Image.fromarray(LEVELS).convert("LA")),
    "RGBA": lambda: filed(Image.fromarray(LEVELS).convert("RGBA")),
    "palette": lambda: filed(Image.fromarray(LEVELS).convert("P")),
}


@pytest.mark.parametrize("kind", GREYS)
def test_greys_of_every_depth_are_one_picture(kind: str) -> None:
    seen = plain(GREYS[kind]())
    assert seen.mode == "RGB"
    assert np.array_equal(np.asarray(seen), np.stack([LEVELS] * 3, -1))


def test_16_bits_are_rounded_to_the_nearest_of_8() -> None:
    values = np.array([[0, 128, 129, 385, 386, 65406, 65407, 65535]], np.uint16)
    assert np.asarray(plain(Image.fromarray(values)))[0, :, 0].tolist() == [
        *(0, 0, 1, 1, 2, 254, 255, 255),
    ]


@pytest.mark.parametrize("picture", [grey("<i4", 300.0), grey("<i4", -2.0), grey("<f4", 1.0)])
def test_values_of_no_known_range_are_refused(picture: Image.Image) -> None:
    with pytest.raises(ValueError, match="expected a grey picture of 16 bits, or of floats"):
        plain(picture)


def test_floats_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="values nan"):
        plain(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


def palette() -> Image.Image:
    picture = Image.fromarray(np.where(HOLE == 0, 0, 1).astype(np.uint8), "L").convert("P")
    picture.putpalette([255, 0, 0, 0, 0, 255])
    return filed(picture, transparency=0)


CLEAR: dict[str, Callable[[], Image.Image]] = {
    "RGBA": lambda: filed(clear("RGBA")),
    "LA": lambda: filed(clear("LA")),
    "palette": palette,
    "GIF": lambda: filed(palette(), "GIF", transparency=0),
    "WEBP": lambda: filed(clear("RGBA"), "WEBP", lossless=True),
    "one colour of RGB": lambda: filed(
        Image.fromarray(np.where(HOLE[..., None] == 0, 7, COLOURS)), transparency=(7, 7, 7)
    ),
    "one grey of 16 bits": lambda: filed(
        Image.fromarray(np.where(HOLE == 0, 7, 2570).astype(np.uint16)), transparency=7
    ),
}


@pytest.mark.parametrize("kind", CLEAR)
def test_what_is_transparent_stays_so_and_is_shown_on_white(kind: str) -> None:
    picture = CLEAR[kind]()
    seen = plain(picture)
    assert seen.mode == "RGBA"
    assert np.array_equal(np.asarray(seen)[..., 3], HOLE)
    shown = np.asarray(on_white(picture))
    assert (shown[:, :8] == 255).all() and (shown[:, 8:] < 255).any()
    assert np.array_equal(shown[:, 8:], np.asarray(seen)[:, 8:, :3])
    assert to_array(picture)[:, :8].min() == 1.0


def test_half_transparent_is_half_white() -> None:
    picture = Image.new("RGBA", (2, 2), (0, 100, 200, 128))
    assert np.asarray(on_white(picture))[0, 0].tolist() == pytest.approx([127, 177, 227], abs=1)


def test_printing_colours_become_those_of_the_page() -> None:
    picture = filed(Image.new("CMYK", SIZE, (255, 0, 0, 0)), "TIFF")
    assert plain(picture).getpixel((0, 0)) == (0, 255, 255)
    bits = filed(Image.fromarray(HOLE).convert("1"))
    assert np.array_equal(np.asarray(plain(bits))[..., 0], HOLE)


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (23, 19)), (6, (19, 0)), (8, (0, 23))]
)
def test_pictures_stand_as_the_camera_was_held(orientation: int, corner) -> None:
    picture = Image.new("RGB", SIZE)
    picture.putpixel((0, 0), (255, 255, 255))
    tags = Image.Exif()
    tags[0x0112] = orientation
    seen = plain(filed(picture, exif=tags))
    assert seen.getpixel(corner) == (255, 255, 255)
    assert seen.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("kind", [*GREYS, *CLEAR])
def test_the_demo_takes_every_kind(kind: str, tmp_path: pathlib.Path) -> None:
    picture = (GREYS | CLEAR)[kind]()
    form = picture.format or "TIFF"
    path = tmp_path / f"photo.{form.lower()}"
    picture.save(path)
    job = demo.photo_job(demo.parse(["--image", str(path), "--source", "a", "--target", "b"]))
    assert job.picture.mode == "RGB" and job.picture.size == (demo.TOY_SIZE, demo.TOY_SIZE)
    mean = np.asarray(job.picture).mean()
    assert abs(mean - np.asarray(on_white(picture).crop((2, 0, 22, 20))).mean()) < 3.0


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_files_that_are_none_are_refused_in_one_line(content: bytes, tmp_path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with pytest.raises(demo.DemoError, match="cannot read the picture"):
        demo.photo_job(demo.parse(["--image", str(path), "--source", "a", "--target", "b"]))


def test_a_cut_file_and_a_bomb_are_refused_in_one_line(tmp_path, monkeypatch) -> None:
    path = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    arguments = demo.parse(["--image", str(path), "--source", "a", "--target", "b"])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(demo.DemoError, match="cannot read the picture"):
        demo.photo_job(arguments)
    path.write_bytes(whole)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(demo.DemoError, match="exceeds limit"):
        demo.photo_job(arguments)
