"""The renderer: one seed is one scene, and changing a word changes what the word says and no
more."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re

import numpy as np
import pytest

from toy.scenes import PALETTE, SIZE, WORDS, Scene, render_background, scene_from_caption

SEEDS = range(10_000_000, 10_000_006)
OBJECT_WORDS = ("pattern", "color", "shape", "position")
EXACT = 1e-6
# mean red, green and blue of the first 32 held-out scenes, among which are all words
GOLDEN = np.array(
    [
        [0.57663, 0.35706, 0.33961],
        [0.54247, 0.73949, 0.81649],
        [0.49488, 0.32662, 0.36240],
        [0.53912, 0.31313, 0.36180],
        [0.80842, 0.61973, 0.47438],
        [0.81523, 0.63055, 0.48976],
        [0.50977, 0.68347, 0.62645],
        [0.50846, 0.34890, 0.35059],
        [0.60064, 0.69809, 0.77920],
        [0.72487, 0.75323, 0.79048],
        [0.44049, 0.50604, 0.57090],
        [0.52730, 0.69082, 0.60146],
        [0.45779, 0.65563, 0.60652],
        [0.47682, 0.29303, 0.42393],
        [0.69607, 0.74625, 0.90305],
        [0.46997, 0.51353, 0.47803],
        [0.43587, 0.54233, 0.59137],
        [0.58567, 0.37686, 0.34242],
        [0.59279, 0.71619, 0.80723],
        [0.50071, 0.69855, 0.66020],
        [0.52620, 0.63449, 0.74766],
        [0.68346, 0.80085, 0.92711],
        [0.87215, 0.70070, 0.46215],
        [0.53859, 0.31002, 0.37591],
        [0.46126, 0.68083, 0.57855],
        [0.57616, 0.38616, 0.43896],
        [0.82767, 0.66662, 0.48275],
        [0.44547, 0.72381, 0.64886],
        [0.46237, 0.69585, 0.63604],
        [0.60255, 0.74507, 0.81012],
        [0.80647, 0.68560, 0.49734],
        [0.57472, 0.31314, 0.34566],
    ]
)


def words(scene: Scene) -> dict[str, str]:
    return {kind: getattr(scene, kind) for kind in WORDS}


def numbers(scene: Scene) -> dict[str, float]:
    return {key: value for key, value in dataclasses.asdict(scene).items() if key not in WORDS}


def changes(scene: Scene, kind: str) -> list[Scene]:
    """The scene with every other word of a kind."""
    return [scene.change(**{kind: word}) for word in WORDS[kind] if word != getattr(scene, kind)]


def empty(scene: Scene) -> np.ndarray:
    return render_background(scene.background, scene.horizon, scene.background_phase, scene.light)


@functools.cache
def picture_of(scene: Scene) -> np.ndarray:
    return scene.render()


def difference(one: Scene, other: Scene) -> np.ndarray:
    """The largest difference of any channel, [SIZE, SIZE]."""
    return np.abs(picture_of(one) - picture_of(other)).max(axis=-1)


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A bool mask widened by so many pixels in every direction."""
    for axis in (0, 1):
        padded = np.pad(mask, [(pixels, pixels) if a == axis else (0, 0) for a in (0, 1)])
        shifts = range(2 * pixels + 1)
        mask = np.any([padded.take(range(s, s + SIZE), axis=axis) for s in shifts], axis=0)
    return mask


def footprint(scene: Scene) -> np.ndarray:
    """Where the object or its shadow may be seen: a soft shadow reaches furthest from the tip of a
    star."""
    return grown(scene.object_mask() > 0.0, 16)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_seed_is_the_same_picture(seed: int) -> None:
    assert Scene.sample(seed) == Scene.sample(seed)
    assert np.array_equal(Scene.sample(seed).render(), Scene.sample(seed).render())


def test_other_seeds_are_other_pictures() -> None:
    pictures = [Scene.sample(seed).render() for seed in SEEDS]
    assert all(np.abs(a - b).mean() > 0.01 for a, b in zip(pictures, pictures[1:], strict=False))


def test_the_renderer_has_not_moved() -> None:
    """The weights were trained on these pictures: a renderer that draws others must be a new
    world."""
    means = [Scene.sample(10_000_000 + k).render().mean(axis=(0, 1)) for k in range(len(GOLDEN))]
    assert np.allclose(means, GOLDEN, rtol=0.0, atol=2e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_picture_is_float32_in_the_unit_range(seed: int) -> None:
    picture = Scene.sample(seed).render()
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.float32
    assert picture.min() >= 0.0 and picture.max() <= 1.0


def test_every_word_is_drawn_about_equally_often() -> None:
    count = 4000
    scenes = [Scene.sample(seed) for seed in range(10_000_000, 10_000_000 + count)]
    for kind, values in WORDS.items():
        drawn = collections.Counter(getattr(scene, kind) for scene in scenes)
        share = 1.0 / len(values)
        spread = (share * (1.0 - share) / count) ** 0.5
        assert set(drawn) == set(values)
        assert all(abs(drawn[word] / count - share) < 4.5 * spread for word in values), (
            kind,
            drawn,
        )


def test_pairs_of_words_are_independent() -> None:
    scenes = [Scene.sample(seed) for seed in range(10_000_000, 10_004_000)]
    pairs = collections.Counter((scene.color, scene.background) for scene in scenes)
    assert len(pairs) == len(WORDS["color"]) * len(WORDS["background"])
    assert min(pairs.values()) > 45 and max(pairs.values()) < 130  # 83 on average


# -- captions
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10_000_000, 10_000_040))
def test_a_caption_says_the_words_in_one_order(seed: int) -> None:
    scene = Scene.sample(seed)
    said = re.fullmatch(r"a (?:(\w+) )?(\w+) (\w+) at the (\w+) of a (\w+)", scene.caption)
    assert said is not None
    pattern, *rest = said.groups()
    assert (pattern or "plain", *rest) == tuple(words(scene).values())
    assert (pattern is None) == (scene.pattern == "plain" and not scene.say_plain)


def test_plain_is_said_about_half_the_time() -> None:
    plain = [s for s in map(Scene.sample, range(10_000_000, 10_001_000)) if s.pattern == "plain"]
    assert 0.4 < sum(" plain " in scene.caption for scene in plain) / len(plain) < 0.6


@pytest.mark.parametrize("seed", SEEDS)
def test_a_caption_and_a_seed_give_the_scene_back(seed: int) -> None:
    scene = Scene.sample(seed)
    again = scene_from_caption(scene.caption, seed)
    assert again.caption == scene.caption and words(again) == words(scene)
    assert np.array_equal(again.render(), scene.render())


def test_a_caption_may_be_written_freely() -> None:
    scene = scene_from_caption("Meadow, with a RED star (left)")
    assert words(scene) == {
        "pattern": "plain",
        "color": "red",
        "shape": "star",
        "position": "left",
        "background": "meadow",
    }


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        ("a red star at the left of a kitchen", "background"),
        ("a star at the left of a meadow", "color"),
        ("a red at the left of a meadow", "shape"),
        ("a red star in a meadow", "position"),
        ("a red blue star at the left of a meadow", "color"),
        ("a striped dotted red star at the left of a meadow", "pattern"),
        ("", "color"),
    ],
)
def test_a_caption_without_exactly_one_word_of_a_kind_is_refused(caption: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"exactly one {kind} of"):
        scene_from_caption(caption)


# -- the true edit
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_change_keeps_every_other_word_and_number(seed: int, kind: str) -> None:
    scene = Scene.sample(seed)
    for changed in changes(scene, kind):
        assert numbers(changed) == numbers(scene)
        assert words(changed) == words(scene) | {kind: getattr(changed, kind)}
        assert difference(changed, scene).mean() > 0.005


@pytest.mark.parametrize("kind", OBJECT_WORDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_object_word_changes_nothing_away_from_both_objects(seed: int, kind: str) -> None:
    scene = Scene.sample(seed)
    for changed in changes(scene, kind):
        away = ~(footprint(scene) | footprint(changed))
        assert away.mean() > 0.2
        assert difference(changed, scene)[away].max() <= EXACT


@pytest.mark.parametrize("kind", ("pattern", "color"))
@pytest.mark.parametrize("seed", SEEDS)
def test_a_surface_word_changes_nothing_outside_the_object(seed: int, kind: str) -> None:
    scene = Scene.sample(seed)
    outside = scene.object_mask() == 0.0
    for changed in changes(scene, kind):
        assert np.array_equal(changed.object_mask(), scene.object_mask())
        assert difference(changed, scene)[outside].max() <= EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_a_background_change_leaves_the_object(seed: int) -> None:
    scene = Scene.sample(seed)
    inside = scene.object_mask() == 1.0
    for changed in changes(scene, "background"):
        assert difference(changed, scene)[inside].max() <= EXACT


def test_changes_commute_and_undo_themselves() -> None:
    scene = Scene.sample(10_000_000).change(color="red", shape="star")
    there = scene.change(color="blue").change(shape="circle")
    assert (
        there
        == scene.change(shape="circle").change(color="blue")
        == scene.change(color="blue", shape="circle")
    )
    assert there.change(color="red", shape="star") == scene


@pytest.mark.parametrize(
    "change",
    [
        {"color": "orange"},
        {"texture": "plain"},
        {"shape": "red"},
        {"color": "red", "shape": "cube"},
    ],
)
def test_an_unknown_kind_or_word_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected .* to be one of"):
        Scene.sample(10_000_000).change(**change)


# -- masks
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_every_word_has_its_mask(seed: int) -> None:
    scene = Scene.sample(seed)
    for kind, word in words(scene).items():
        mask = scene.mask(word)
        assert mask.shape == (SIZE, SIZE) and np.issubdtype(mask.dtype, np.floating)
        assert np.array_equal(
            mask, scene.object_mask() if kind in OBJECT_WORDS else 1.0 - scene.object_mask()
        )


@pytest.mark.parametrize("word", ["orange", "at", ""])
def test_a_word_that_is_absent_has_no_mask(word: str) -> None:
    with pytest.raises(ValueError, match="expected one of the scene's words"):
        Scene.sample(10_000_000).mask(word)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_is_where_the_picture_differs_from_the_empty_landscape(seed: int) -> None:
    scene = dataclasses.replace(
        Scene.sample(seed), color="purple", pattern="plain", background="meadow"
    )
    drawn = np.abs(picture_of(scene) - empty(scene)).max(axis=-1)
    assert drawn[scene.object_mask() == 1.0].min() > 0.05
    assert drawn[~footprint(scene)].max() <= EXACT


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mask_covers_the_object_at_its_place(seed: int) -> None:
    scene = Scene.sample(seed)
    mask = scene.object_mask()
    x = (mask.sum(axis=0) * (np.arange(SIZE) + 0.5)).sum() / mask.sum()
    assert 0.05 < mask.mean() < 0.2
    assert abs(x - {"left": 34, "center": 64, "right": 94}[scene.position] - scene.dx) < 1.5


@pytest.mark.parametrize("color", WORDS["color"])
def test_the_body_has_the_color_of_its_word(color: str) -> None:
    scene = Scene("plain", color, "square", "center", "lake")
    middle = scene.render()[70:74, 62:66].mean(axis=(0, 1))
    assert np.allclose(middle, PALETTE[color], atol=0.02)


def test_the_object_hides_the_landscape_and_throws_a_shadow() -> None:
    scene = Scene("plain", "red", "square", "center", "lake")
    shadow = (scene.render() / empty(scene))[72 + 27, 64]  # four pixels below the square
    assert np.all(shadow < 0.85) and np.ptp(shadow) < 1e-3
