"""The benchmark's folder: `mapping_file.json` beside `annotation_images/`.

Format as read in cure-lab/PnPInversion (README.md at 07f97f44, run_editing_p2p.py and
evaluation/evaluate.py at f480116d): ids with image_path, original_prompt, editing_prompt,
editing_instruction, editing_type_id, blended_word and a mask of (start, length) pairs over 512 x
512 pixels, row by row, 1 where the picture is to change.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

SIDE = 512
MAPPING, PICTURES = "mapping_file.json", "annotation_images"
TYPES = {
    "0": "random",
    "1": "change object",
    "2": "add object",
    "3": "delete object",
    "4": "change content",
    "5": "change pose",
    "6": "change color",
    "7": "change material",
    "8": "change background",
    "9": "change style",
}
_TEXTS = (
    "image_path",
    "original_prompt",
    "editing_prompt",
    "editing_instruction",
    "editing_type_id",
    "blended_word",
)


class PieError(RuntimeError):
    """What was asked for cannot be done; the message is one line for the person at the terminal."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One picture of the benchmark and what it should become. words: `blended_word`, split as the
    reference does."""

    id: str
    picture: pathlib.Path
    source: str
    target: str
    instruction: str
    kind: str
    words: tuple[str, ...]
    runs: tuple[int, ...]

    @property
    def cut(self) -> bool:
        """Whether a run of the mask ends behind the picture's end."""
        return any(start + length > SIDE * SIDE for start, length in _pairs(self.runs))

    def mask(self) -> np.ndarray:
        """Bool [512, 512], True where the picture is to change, and at its border: the reference's
        own guard."""
        return bordered(decode(self.runs))


def plain(prompt: str) -> str:
    """A prompt without the brackets that mark, for people, what differs between the two."""
    return prompt.replace("[", "").replace("]", "")


def read(folder: pathlib.Path) -> list[Entry]:
    """All entries, in the file's order. PieError names the file and the entry that is not as it
    should be."""
    path = folder / MAPPING
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PieError(f"no {MAPPING} in {folder}; give the benchmark's folder") from error
    except (OSError, ValueError) as error:
        raise PieError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not found:
        raise PieError(
            f"{path}: expected entries by id, got {type(found).__name__} of {len(found or ())}"
        )
    return [_entry(folder, path, key, value) for key, value in found.items()]


def choose(
    entries: Sequence[Entry],
    kinds: Collection[str] = (),
    ids: Sequence[str] = (),
    limit: int | None = None,
) -> list[Entry]:
    """Those of some types, or ids, or the first ones; PieError if an id or a picture is missing, or
    none is left."""
    unknown = [name for name in ids if name not in {entry.id for entry in entries}]
    if unknown:
        raise PieError(
            f"no entry {unknown[0]} in {MAPPING}; it holds {len(entries)}, from {entries[0].id}"
        )
    chosen = [
        one for one in entries if (not kinds or one.kind in kinds) and (not ids or one.id in ids)
    ][:limit]
    if not chosen:
        raise PieError(f"no entry is left of {len(entries)}; check --types, --ids and --limit")
    missing = [entry.picture for entry in chosen if not entry.picture.is_file()]
    if missing:
        raise PieError(
            f"{len(missing)} of {len(chosen)} pictures are missing, the first is {missing[0]}"
        )
    return chosen


def decode(runs: Sequence[int], side: int = SIDE) -> np.ndarray:
    """Bool [side, side] from (start, length) pairs. A run that ends behind the picture is cut
    there, as the reference does; PieError for one that begins there, a negative number or half a
    pair."""
    flat = np.zeros(side * side, dtype=bool)
    if len(runs) % 2:
        raise PieError(f"expected a mask of (start, length) pairs, got {len(runs)} numbers")
    for start, length in _pairs(runs):
        if not 0 <= start < flat.size or length < 0:
            raise PieError(
                f"a run of the mask leaves the picture of {side} x {side}: start {start}, length "
                f"{length}"
            )
        flat[start : start + length] = True
    return flat.reshape(side, side)


def encode(mask: np.ndarray) -> list[int]:
    """(start, length) pairs of a bool mask, row by row; the inverse of `decode`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel().astype(np.int8), [0]])))
    return [int(number) for start, end in edges.reshape(-1, 2) for number in (start, end - start)]


def bordered(mask: np.ndarray) -> np.ndarray:
    """A copy whose outermost rows and columns are True."""
    mask = mask.copy()
    mask[[0, -1], :] = True
    mask[:, [0, -1]] = True
    return mask


def _pairs(runs: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(runs[::2], runs[1::2], strict=False))


def _entry(folder: pathlib.Path, path: pathlib.Path, key: str, value: Any) -> Entry:
    """An entry, checked; its mask is decoded once, so that a damaged one is found before hours of
    work."""
    where = f"{path}: entry {key!r}"
    if not re.fullmatch(r"[\w.-]+", key):
        raise PieError(f"{where}: expected an id that can be a file name")
    fields = value if isinstance(value, dict) else {}
    wrong = [name for name in _TEXTS if not isinstance(fields.get(name), str)]
    if wrong:
        raise PieError(f"{where}: expected a text {wrong[0]!r}, got {fields.get(wrong[0])!r}")
    if fields["editing_type_id"] not in TYPES:
        raise PieError(
            f"{where}: expected an editing_type_id from 0 to 9, got {fields['editing_type_id']!r}"
        )
    runs = fields.get("mask")
    if not isinstance(runs, list) or not all(type(number) is int for number in runs):
        raise PieError(f"{where}: expected a mask as a list of whole numbers")
    try:
        decode(runs)
    except PieError as error:
        raise PieError(f"{where}: {error}") from error
    prompts = plain(fields["original_prompt"]), plain(fields["editing_prompt"])
    words = tuple(fields["blended_word"].split())
    picture = folder / PICTURES / fields["image_path"]
    return Entry(
        key,
        picture,
        *prompts,
        fields["editing_instruction"],
        fields["editing_type_id"],
        words,
        tuple(runs),
    )
