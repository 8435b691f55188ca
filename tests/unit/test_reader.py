"""The reader: right on held-out pictures, clean and worn, and silent where there is nothing to
read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from toy.reader import (
    DEGRADATIONS,
    HELD_OUT,
    Reading,
    _dots,
    _mark_color,
    _stripes,
    accuracy,
    blur,
    main,
    read,
)
from toy.scenes import BACKGROUNDS, SIZE, WORDS, Scene, render_background

OBJECT_WORDS = ("pattern", "color", "shape", "position")
NOTHING = dict.fromkeys(WORDS)


def words(reading: Reading) -> dict[str, str | None]:
    return {kind: getattr(reading, kind) for kind in WORDS}


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((SIZE, SIZE, 3))


# -- accuracy
# ----------------------------------------------------------------------------------------------


def test_clean_pictures_are_read() -> None:
    shares = accuracy(DEGRADATIONS["clean"], range(HELD_OUT, HELD_OUT + 30))
    assert set(shares) == {*WORDS, "all"}
    assert min(shares.values()) >= 0.99, shares


@pytest.mark.parametrize("name", [name for name in DEGRADATIONS if name != "clean"])
def test_worn_pictures_are_read(name: str) -> None:
    shares = accuracy(DEGRADATIONS[name], range(HELD_OUT + 100, HELD_OUT + 112))
    assert min(shares.values()) >= 0.95, shares


@pytest.mark.parametrize("kind", WORDS)
def test_every_word_of_a_kind_can_be_read(kind: str) -> None:
    """On one scene, so that a word which the small samples seldom draw is seen too."""
    scene = Scene("dotted", "red", "square", "center", "lake", angle=0.1, background_phase=0.3)
    for word in WORDS[kind]:
        changed = scene.change(**{kind: word})
        assert words(read(changed.render())) == {k: getattr(changed, k) for k in WORDS}


@pytest.mark.parametrize("seed", [3, 6, 23, 24, 26, 29])
def test_a_white_object_before_snow_is_read_through_blur(seed: int) -> None:
    """Body and snow look alike: on these, outlines alone name the wrong shape and the rendered
    rivals decide."""
    scene = Scene.sample(HELD_OUT + seed).change(color="white", background="glacier")
    assert read(blur(scene.render(), 2.0)).matches(scene)


@pytest.mark.parametrize("seed", [1, 4, 7, 10, 13])
def test_the_fit_is_the_scene(seed: int) -> None:
    scene = Scene.sample(HELD_OUT + seed)
    fit = read(scene.render()).fit
    assert fit is not None
    assert abs(fit.light - scene.light) < 0.01 and abs(fit.horizon - scene.horizon) < 0.5
    assert (
        abs(fit.dx - scene.dx) < 1.0
        and abs(fit.y - scene.y) < 1.0
        and abs(fit.size - scene.size) < 2.5
    )
    assert np.abs(fit.render() - scene.render()).mean() < 0.01


@pytest.mark.parametrize(("pattern", "marks"), [("striped", _stripes), ("dotted", _dots)])
def test_the_reader_knows_the_patterns(pattern: str, marks: Callable[..., np.ndarray]) -> None:
    """The reader says the patterns again, to see them at any place: they must be the renderer's."""
    v, u = np.mgrid[-30:30, -30:30].astype(np.float32)
    scene = Scene(pattern, "red", "square", "center", "lake", pattern_phase=0.3)
    assert np.allclose(marks(u, v, 0.3), scene._marks(u, v), atol=1e-4)


@pytest.mark.parametrize("color", WORDS["color"])
def test_the_reader_knows_the_color_of_the_marks(color: str) -> None:
    scene = Scene(
        "dotted", color, "square", "center", "lake", pattern_phase=0.5
    )  # a dot in the very middle
    middle = scene.render()[71:73, 63:65].mean(axis=(0, 1))
    assert np.allclose(middle, _mark_color(color), atol=0.01)


def test_reading_is_deterministic_and_leaves_its_input_alone() -> None:
    picture = Scene.sample(HELD_OUT).render()
    before = picture.copy()
    first, second = read(picture), read(picture.astype(np.float64))
    assert first == second and first.margins == second.margins
    assert np.array_equal(picture, before)


# -- nothing to read
# ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "picture",
    [
        noise(0),
        noise(1),
        blur(10.0 * (noise(2) - 0.5), 6.0).clip(-0.5, 0.5) + 0.5,
        np.zeros((SIZE, SIZE, 3)),
        np.ones((SIZE, SIZE, 3)),
        np.full((SIZE, SIZE, 3), 0.5),
    ],
    ids=["noise", "more noise", "clouds", "black", "white", "grey"],
)
def test_junk_has_no_words(picture: np.ndarray) -> None:
    reading = read(picture)
    assert words(reading) == NOTHING
    assert reading.fit is None and reading.explained == 0.0 and reading.margins == {}


@pytest.mark.parametrize("name", BACKGROUNDS)
@pytest.mark.parametrize("wear", ["clean", "blur+noise+blocks"])
def test_an_empty_landscape_has_only_its_name(name: str, wear: str) -> None:
    for phase in (0.1, 0.6):
        picture = DEGRADATIONS[wear](
            render_background(name, 78.0, phase, 0.97), np.random.default_rng(0)
        )
        assert words(read(picture)) == NOTHING | {"background": name}


def test_a_shadow_without_an_object_is_not_an_object() -> None:
    picture = render_background("desert", 78.0, 0.2, 1.0)
    picture[50:100, 40:90] *= 0.65
    assert words(read(picture)) == NOTHING | {"background": "desert"}


@pytest.mark.parametrize("spread", [15.0, 22.0])
@pytest.mark.parametrize("color", [0.5, (0.6, 0.6, 0.2)])
def test_a_soft_cloud_is_no_object(color: object, spread: float) -> None:
    """Silhouettes gather evidence from it, but no rendered object comes nearer to it than the
    landscape."""
    empty = render_background("lake", 78.0, 0.3, 1.0)
    row, column = np.mgrid[0:SIZE, 0:SIZE]
    cover = np.exp(-0.5 * ((column - 64) ** 2 + (row - 72) ** 2) / spread**2)[..., None]
    picture = empty + (np.asarray(color) - empty) * cover
    assert words(read(picture)) == NOTHING | {"background": "lake"}


# -- the reading
# -------------------------------------------------------------------------------------------


def test_agreement_names_each_kind() -> None:
    scene = Scene("striped", "red", "star", "left", "meadow")
    reading = Reading("striped", "red", "circle", None, "meadow")
    expected = {
        "pattern": True,
        "color": True,
        "shape": False,
        "position": False,
        "background": True,
    }
    assert reading.agreement(scene) == expected


def test_matches_asks_only_for_the_kinds_it_is_given() -> None:
    scene = Scene("striped", "red", "star", "left", "meadow")
    reading = Reading("striped", "red", "circle", "left", "meadow")
    assert reading.matches(scene, ["color", "background"]) and reading.matches(scene, [])
    assert not reading.matches(scene) and not reading.matches(scene, ("shape",))
    assert dataclasses.replace(reading, shape="star").matches(scene)


def test_an_empty_reading_agrees_with_no_scene() -> None:
    assert not any(Reading().agreement(Scene.sample(HELD_OUT)).values())


def test_matches_refuses_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match=r"expected kinds among .*, got \['texture'\]"):
        Reading().matches(Scene.sample(HELD_OUT), ["color", "texture"])


def test_margins_name_each_kind_and_say_how_sure() -> None:
    clear = read(Scene("plain", "blue", "square", "center", "meadow").render())
    assert set(clear.margins) == set(WORDS)
    assert all(0.3 < margin <= 1.0 for margin in clear.margins.values()), clear.margins
    assert 0.5 < clear.explained <= 1.0
    between = read(Scene("plain", "blue", "square", "center", "meadow", dx=14.0).render())
    assert between.margins["position"] < 0.3


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((64, 64, 3), np.float32), r"expected a float picture .* shape \(64, 64, 3\)"),
        (np.zeros((3, SIZE, SIZE), np.float32), r"shape \(3, 128, 128\)"),
        (np.zeros((1, SIZE, SIZE, 3), np.float32), r"shape \(1, 128, 128, 3\)"),
        (np.zeros((SIZE, SIZE), np.float32), r"shape \(128, 128\)"),
        (np.zeros((SIZE, SIZE, 3), np.uint8), "got uint8"),
        (np.full((SIZE, SIZE, 3), 255.0), r"values in \[0, 1\], got values from 255 to 255"),
        (np.full((SIZE, SIZE, 3), -0.5), "from -0.5 to -0.5"),
        (np.full((SIZE, SIZE, 3), np.nan), "from nan to nan"),
    ],
)
def test_what_is_no_picture_is_refused(picture: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(picture)


def test_the_command_prints_a_row_for_each_degradation(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--count", "1"])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == [*WORDS, "all", "ms"]
    assert [row[:18].strip() for row in rows] == list(DEGRADATIONS)
