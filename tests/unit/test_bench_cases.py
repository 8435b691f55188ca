"""The benches' cases and their judge: what the edits are, what they must keep, and what the figures
say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.cases import HELD_OUT, KINDS, TUNED_ON
from bench.jobs import CELL, changeable
from bench.judge import judge, ssim
from tools.pictures import psnr
from toy.reader import read
from toy.scenes import kept

EACH = pytest.mark.parametrize("kind", KINDS)
CHANGED = {"add": "pattern", "remove": "pattern", "reweight": "pattern"}


@EACH
def test_the_true_edit_changes_one_word_and_is_read_as_the_target(kind: str) -> None:
    for edit in KINDS[kind].cases(2):
        assert (
            edit.scene.change(
                **{CHANGED.get(kind, kind): getattr(edit.truth, CHANGED.get(kind, kind))}
            )
            == edit.truth
        )
        assert edit.scene != edit.truth
        assert read(edit.truth.render()).matches(edit.truth)
        assert not read(edit.scene.render()).matches(edit.truth)


@EACH
def test_prompts_say_what_is_edited(kind: str) -> None:
    for edit in KINDS[kind].cases(3):
        assert edit.source == edit.scene.caption
        if kind == "reweight":
            assert edit.target == edit.source and edit.weights == f"{edit.scene.pattern}: -4"
            assert edit.scene.pattern in edit.source.split()
        else:
            assert edit.target == edit.truth.caption != edit.source and not edit.weights


def test_cases_are_the_same_every_time_and_differ_between_kinds() -> None:
    first = KINDS["color"].cases(4)
    assert first == KINDS["color"].cases(8)[:4]
    assert not {edit.scene for edit in first} & {edit.scene for edit in KINDS["shape"].cases(4)}
    judged, tuned = (
        {edit.scene for kind in KINDS.values() for edit in kind.cases(30, at)}
        for at in (HELD_OUT, TUNED_ON)
    )
    assert len(judged) == len(tuned) == 240 and not judged & tuned


def test_object_words_are_those_of_both_prompts() -> None:
    for edit in KINDS["shape"].cases(5):
        words = edit.object_words.split(", ")
        assert {edit.scene.shape, edit.truth.shape, edit.scene.color} <= set(words)
        assert set(words) <= set(f"{edit.source} {edit.target}".split())
        assert edit.scene.background not in words


@EACH
def test_the_true_edit_is_a_perfect_one(kind: str) -> None:
    edit = KINDS[kind].cases(1)[0]
    found = judge(edit, edit.truth.render())
    assert found.success and not found.wrong
    assert found.truth_psnr == 100.0 and found.truth_ssim == pytest.approx(1.0)
    assert found.background_psnr > 40.0


def test_the_source_is_no_edit_but_keeps_everything() -> None:
    edit = KINDS["color"].cases(1)[0]
    found = judge(edit, edit.scene.render())
    assert found.wrong == ("color",) and not found.success
    assert found.background_psnr == found.background_psnr_zeroed == 100.0
    assert found.truth_psnr < 30.0 and found.truth_ssim < 1.0


def test_zeroed_psnr_is_the_masked_one_over_all_pixels() -> None:
    edit = KINDS["color"].cases(1)[0]
    where = kept(edit.scene, edit.truth)
    scene = edit.scene.render()
    noisy = np.where(scene > 0.5, scene - 0.1, scene + 0.1)
    found = judge(edit, noisy)
    assert found.background_psnr == pytest.approx(20.0, abs=1e-4)
    assert found.background_psnr_zeroed == pytest.approx(
        20.0 - 10.0 * math.log10(np.mean(where**2)), abs=1e-3
    )


def test_ssim_falls_with_noise() -> None:
    picture = KINDS["color"].cases(1)[0].scene.render()
    noise = np.random.default_rng(0).standard_normal(picture.shape).astype(np.float32)
    found = [ssim(picture, picture + strength * noise) for strength in (0.0, 0.01, 0.05, 0.2)]
    assert (
        found[0] == pytest.approx(1.0) and found == sorted(found, reverse=True) and found[-1] < 0.5
    )


@EACH
def test_changeable_cells_hold_all_that_the_true_edit_changes(kind: str) -> None:
    edit = max(KINDS[kind].cases(4), key=lambda edit: edit.scene.object_mask().sum())
    mask = changeable(edit)
    moved = np.abs(edit.scene.render() - edit.truth.render()).max(-1) > 0.02
    assert set(np.unique(mask)) == {0.0, 1.0} and mask.shape == moved.shape
    assert not (moved & (mask == 0.0)).any()
    cells = mask.reshape(128 // CELL, CELL, 128 // CELL, CELL)
    assert np.array_equal(cells.max((1, 3)), cells.min((1, 3)))
    assert (
        psnr(
            edit.scene.render() * (1 - mask)[..., None], edit.truth.render() * (1 - mask)[..., None]
        )
        > 40.0
    )
