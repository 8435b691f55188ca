"""PIE-Bench's folder: mapping file, masks, brackets, and a folder of that format drawn."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.pie import toyset
from bench.pie.dataset import (
    MAPPING,
    PICTURES,
    SIDE,
    TYPES,
    PieError,
    choose,
    decode,
    encode,
    plain,
    read,
)

ENTRY: dict[str, Any] = {
    "image_path": "0_random_140/000000000000.jpg",
    "original_prompt": "a slanted mountain bicycle on the road",
    "editing_prompt": "a slanted [rusty] mountain bicycle on the road",
    "editing_instruction": "Make the frame of the bike rusty",
    "editing_type_id": "0",
    "blended_word": "bicycle bicycle",
    "mask": [0, 2, 512 * 3 + 10, 4],
}


def folder(path: pathlib.Path, **changes: Any) -> pathlib.Path:
    """A benchmark of one entry, with some of its fields changed (None: left out)."""
    fields = {name: value for name, value in {**ENTRY, **changes}.items() if value is not None}
    (path / MAPPING).write_text(json.dumps({"000000000000": fields}))
    picture = path / PICTURES / ENTRY["image_path"]
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE)).save(picture)
    return path


def test_an_entry_is_read_with_its_brackets_taken_off(tmp_path: pathlib.Path) -> None:
    (entry,) = read(folder(tmp_path))
    assert entry.target == "a slanted rusty mountain bicycle on the road"
    assert entry.words == ("bicycle", "bicycle") and entry.kind == "0" and not entry.cut
    assert choose([entry]) == [entry] and entry.picture.is_file()


def test_brackets_go_and_nothing_else() -> None:
    assert plain("[a photo of] a cat [] (big), [red]") == "a photo of a cat  (big), red"


def test_no_blend_words_are_none(tmp_path: pathlib.Path) -> None:
    assert read(folder(tmp_path, blended_word=""))[0].words == ()


def test_a_mask_has_its_runs_and_the_border(tmp_path: pathlib.Path) -> None:
    mask = read(folder(tmp_path))[0].mask()
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[3, 10:14] = True
    assert np.array_equal(mask[1:-1, 1:-1], inside[1:-1, 1:-1])
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[:, -1].all()


def test_runs_and_masks_are_each_others_inverse() -> None:
    mask = np.random.default_rng(0).random((SIDE, SIDE)) < 0.3
    assert np.array_equal(decode(encode(mask)), mask)
    assert (
        encode(np.ones((SIDE, SIDE), dtype=bool)) == [0, SIDE * SIDE] and encode(mask & False) == []
    )
    assert encode(decode([5, 2, 511, 3])) == [5, 2, 511, 3]  # a run goes on in the next row


def test_a_run_behind_the_end_is_cut_and_told(tmp_path: pathlib.Path) -> None:
    (entry,) = read(folder(tmp_path, mask=[SIDE * SIDE - 3, 10]))
    assert entry.cut and decode(entry.runs).sum() == 3


@pytest.mark.parametrize(
    "mask", [[SIDE * SIDE, 1], [-1, 5], [0, -1], [0, 1, 7], ["0", 1], [0.5, 1], {"counts": []}]
)
def test_a_mask_that_is_none_names_its_entry(tmp_path: pathlib.Path, mask: Any) -> None:
    with pytest.raises(PieError, match=r"mapping_file\.json: entry '000000000000': .*mask"):
        read(folder(tmp_path, mask=mask))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"original_prompt": None}, "expected a text 'original_prompt', got None"),
        ({"editing_type_id": 3}, "expected a text 'editing_type_id', got 3"),
        ({"editing_type_id": "10"}, "expected an editing_type_id from 0 to 9"),
    ],
)
def test_a_damaged_entry_is_named(
    tmp_path: pathlib.Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(PieError, match=said):
        read(folder(tmp_path, **change))


def test_a_folder_without_the_file_or_with_a_damaged_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PieError, match=r"no mapping_file\.json in .*; give the benchmark's folder"):
        read(tmp_path)
    (tmp_path / MAPPING).write_text('{"0": ')
    with pytest.raises(PieError, match=r"mapping_file\.json cannot be read: Expecting value"):
        read(tmp_path)
    (tmp_path / MAPPING).write_text("[]")
    with pytest.raises(PieError, match="expected entries by id, got list of 0"):
        read(tmp_path)
    (tmp_path / MAPPING).write_text('{"../x": {}}')
    with pytest.raises(PieError, match="expected an id that can be a file name"):
        read(tmp_path)


def test_missing_pictures_are_found_before_the_run(tmp_path: pathlib.Path) -> None:
    entries = read(folder(tmp_path))
    entries[0].picture.unlink()
    with pytest.raises(
        PieError, match=r"1 of 1 pictures are missing, the first is .*000000000000\.jpg"
    ):
        choose(entries)


def test_a_drawn_folder_is_of_the_format(tmp_path: pathlib.Path) -> None:
    toyset.write(tmp_path, 6)
    entries = choose(read(tmp_path))
    assert [entry.kind for entry in entries] == ["0", "1", "5", "6", "7", "8"]
    for entry in entries:
        with Image.open(entry.picture) as picture:
            assert picture.size == (SIDE, SIDE)
        assert entry.source != entry.target and "[" not in entry.source + entry.target
        assert 0.05 < entry.mask().mean() < 0.98
    assert [len(entry.words) for entry in entries] == [2, 2, 0, 2, 2, 2]
    assert (
        json.loads((tmp_path / MAPPING).read_text())["000000000003"]["original_prompt"].count("[")
        == 1
    )


def test_the_drawn_mask_covers_all_that_the_true_edit_changes() -> None:
    scene, truth = toyset.scenes(toyset.SEED, ("color",))
    runs = toyset.entry("0/0.png", "6", scene, truth)["mask"]
    assert isinstance(runs, list)
    changed = np.abs(scene.render() - truth.render()).max(-1) > 2 / 255
    mask = decode(runs)
    assert mask[::4, ::4][changed].all() and np.array_equal(
        mask, np.kron(mask[::4, ::4], np.ones((4, 4), dtype=bool))
    )


def test_entries_are_chosen_by_type_id_and_number(tmp_path: pathlib.Path) -> None:
    toyset.write(tmp_path, 8)
    entries = read(tmp_path)
    assert [entry.id[-1] for entry in choose(entries, kinds={"0", "1"})] == ["0", "1", "6", "7"]
    assert [entry.id[-1] for entry in choose(entries, kinds={"0", "1"}, limit=3)] == ["0", "1", "6"]
    assert choose(entries, ids=["000000000004"]) == [entries[4]]
    with pytest.raises(
        PieError, match=r"no entry nothing in mapping_file\.json; it holds 8, from 000000000000"
    ):
        choose(entries, ids=["nothing"])
    with pytest.raises(PieError, match="no entry is left of 8"):
        choose(entries, kinds={"9"})
    assert set(TYPES) == {str(number) for number in range(10)}
