"""The demo's own parts: the graphs it posts, the figures it reports, the sheet it draws."""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
import pytest
from PIL import Image

from tools import demo
from tools.demo import DemoError
from tools.grid import Cell, Sheet, changed_words
from toy.scenes import scene_from_caption

RED_STAR = "a striped red star at the left of a meadow"


def options(**given: object) -> argparse.Namespace:
    empty = dict.fromkeys(("image", "source", "target", "checkpoint", "size", "port"))
    return argparse.Namespace(**empty | given)


@pytest.fixture
def job() -> demo.Job:
    return demo.scene_job(RED_STAR, "a striped blue star at the left of a meadow")


@pytest.fixture
def photo(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "photo.png"
    Image.new("RGB", (300, 200), "gray").save(path)
    return str(path)


def test_default_scene_has_a_true_edit_that_keeps_everything_else() -> None:
    job = demo.make_job(options())
    assert job.scene is not None and job.truth is not None
    where = demo.kept(job)
    assert where is not None
    assert demo.decibels(job.picture, demo.to_image(job.truth.render()), where) > 45.0


def test_edit_graph_is_the_starter_with_everything_filled_in(job: demo.Job) -> None:
    graph = demo.edit_graph(job, "scene.png")
    assert len(graph) <= 9
    assert graph[demo.only(graph, "LoadImage")]["inputs"]["image"] == "scene.png"
    assert graph[demo.only(graph, "PivotSourcePrompt")]["inputs"]["prompt"] == job.source
    assert graph[demo.only(graph, "PivotPromptPair")]["inputs"]["target_prompt"] == job.target


def test_checkpoint_takes_the_place_of_the_toy_model(photo: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "sd15.safetensors"
    file.touch()
    given = options(image=photo, source="a cat", target="a dog", checkpoint=str(file))
    job = demo.make_job(given)
    assert (job.checkpoint, job.folder, job.picture.size) == (
        "sd15.safetensors",
        tmp_path,
        (512, 512),
    )
    graph = demo.edit_graph(job, "photo.png")
    assert graph[demo.only(graph, "CheckpointLoaderSimple")]["inputs"] == {
        "ckpt_name": "sd15.safetensors"
    }


def test_comparison_adds_branches_and_changes_nothing_else(job: demo.Job) -> None:
    graph = demo.edit_graph(job, "scene.png")
    wide = demo.comparison_graph(graph)
    assert {node: wide[node] for node in graph} == graph
    control, sampler = demo.only(graph, "PivotPromptToPrompt"), demo.only(graph, "PivotEditSampler")
    assert wide["plain"]["inputs"]["model"] == graph[control]["inputs"]["model"]
    assert wide["plain"]["inputs"]["inversion"] == graph[sampler]["inputs"]["inversion"]
    assert all(wide[name]["class_type"] == "SaveImage" for name in demo.COMPARISONS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"image": "missing.png", "source": "a", "target": "b"},
            "cannot read the picture missing.png",
        ),
        ({"image": "missing.png"}, "needs both prompts"),
        ({"image": "missing.png", "source": "a", "target": "b", "size": 100}, "multiple of 8"),
        ({"checkpoint": "sd15.safetensors"}, "needs a picture"),
        ({"source": "a cat on a sofa", "target": "a dog on a sofa"}, "for a picture of your own"),
    ],
)
def test_bad_requests_are_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(DemoError, match=message) as caught:
        demo.make_job(options(**given))
    assert "\n" not in str(caught.value)


def test_a_missing_checkpoint_file_is_named(photo: str) -> None:
    with pytest.raises(DemoError, match="no checkpoint file at /nowhere/sd15.safetensors"):
        demo.make_job(
            options(image=photo, source="a", target="b", checkpoint="/nowhere/sd15.safetensors")
        )


def test_a_file_that_is_no_picture_is_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "photo.png"
    file.write_text("text")
    with pytest.raises(DemoError, match="cannot read the picture"):
        demo.make_job(options(image=str(file), source="a", target="b"))


def test_main_prints_errors_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--image", "missing.png", "--source", "a", "--target", "b"]) == 1
    assert capsys.readouterr().err.strip().splitlines() == [
        "error: cannot read the picture missing.png: No such file or directory"
    ]


def test_psnr_is_that_of_the_weighted_pixels() -> None:
    black, gray = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    assert demo.decibels(black, gray) == pytest.approx(13.98, abs=0.01)  # 0.2 everywhere
    half = black.copy()
    half.paste((51, 51, 51), (0, 0, 2, 4))
    left = np.zeros((4, 4))
    left[:, :2] = 1.0
    assert demo.decibels(black, half, left) == pytest.approx(13.98, abs=0.01)
    assert demo.decibels(black, half, 1.0 - left) == 100.0


@pytest.mark.parametrize(
    ("word", "inside"), [("blue", False), ("circle", False), ("right", False), ("desert", True)]
)
def test_the_part_that_must_be_kept_follows_the_edited_word(word: str, inside: bool) -> None:
    kinds = {"blue": "red", "circle": "star", "right": "left", "desert": "meadow"}
    job = demo.scene_job(RED_STAR, RED_STAR.replace(kinds[word], word))
    where = demo.kept(job)
    assert where is not None
    core = scene_from_caption(RED_STAR, demo.SEED).object_mask() >= 1.0
    assert bool(where[core].mean() > 0.8) is inside
    assert bool(where[0].mean() > 0.9) is not inside


def test_edits_of_a_photo_have_no_truth(photo: str) -> None:
    job = demo.make_job(options(image=photo, source="a cat", target="a dog"))
    assert set(demo.judge(job, job.picture).values()) == {None}


def test_true_edit_is_a_success_and_the_source_is_none(job: demo.Job) -> None:
    assert job.truth is not None
    assert demo.judge(job, demo.to_image(job.truth.render()))["edit_success"]
    assert not demo.judge(job, job.picture)["edit_success"]


def test_changed_words() -> None:
    assert changed_words("a red star", "a blue star") == ({1}, {1})
    assert changed_words("a star", "a big red star") == (set(), {1, 2})
    assert changed_words("a cat", "a cat") == (set(), set())


@pytest.mark.parametrize("prompt", ["a red star", "a very long prompt " * 12, ""])
def test_sheet_holds_every_cell_and_any_prompt(prompt: str) -> None:
    cells = [Cell(Image.new("RGB", (16, 16), "red"), f"cell {n}", "1.0 dB") for n in range(5)]
    sheet = Sheet(256).draw(cells, prompt, "a blue star")
    colors = {color: count for count, color in sheet.getcolors(1 << 24)}
    assert colors[(255, 0, 0)] == 5 * 256 * 256
