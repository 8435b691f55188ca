"""Inversions in ComfyUI's folders: saved to the output folder, and loaded by name from it and from
the input folder."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import folder_paths

from ...core.errors import PivotError, short
from ...core.options import check_text
from ...core.storage import (
    SUFFIX,
    clear,
    is_inversion,
    read,
    rounding,
    write_numbered,
)
from ...core.trajectory import Trajectory
from ...inversion import correction_for, rule_for
from ..model.checks import check_same_model
from ..run.sampling import check_unmasked
from .folders import check_inside, checked_prefix, explained, output_root
from .masks import PIXELS

PREFIX = "pivot/inversion"
OUTPUT = " [output]"
"""What ComfyUI writes behind the name of a file that lies in the output folder."""
SAVE, LOAD = "Save Inversion", "Load Inversion"


def save(trajectory: Trajectory, prefix: str, half: bool, prompt: str = "") -> tuple[str, str]:
    """Save an inversion in the output folder under the next free number.

    Returns its name for `load`, and a report. A prompt that is not empty takes the place of the one
    that the inversion remembers.
    """
    prefix = checked_prefix(prefix, os.path.basename(PREFIX), SAVE)
    height, width = (PIXELS * size for size in trajectory.latents.shape[-2:])
    trajectory = dataclasses.replace(trajectory, prompt=prompt or trajectory.prompt)
    check_text(trajectory.prompt, "prompt", SAVE)
    with explained(prefix, SAVE):
        folder, stem, number, subfolder, _ = folder_paths.get_save_image_path(
            prefix, str(output_root()), width, height
        )
        path = write_numbered(pathlib.Path(folder), stem, trajectory, half, number)
    name = (pathlib.Path(subfolder) / path.name).as_posix() + OUTPUT
    report = f"{name}, {path.stat().st_size / 1e6:.1f} MB, {_described(trajectory)}"
    return name, report + (f"; half precision, {_cost(trajectory)}" if half else "")


def _cost(trajectory: Trajectory) -> str:
    """What half precision costs, in words."""
    errors = {"latents": rounding(trajectory.latents)} | {
        name: rounding(extra) for name, extra in trajectory.extras.items()
    }
    return ", ".join(f"relative error of {name} {error:.1e}" for name, error in errors.items())


def _described(trajectory: Trajectory) -> str:
    """An inversion in words."""
    shape = "x".join(map(str, trajectory.latents.shape[1:]))
    correction = f", {trajectory.correction.name}" if trajectory.correction else ""
    return (
        f"{trajectory.steps} steps, {trajectory.method}, cfg {trajectory.guidance:g}{correction}, "
        f"latent {shape}"
    )


def load(
    name: str, model: Any = None, latent: dict[str, Any] | None = None
) -> tuple[Trajectory, str]:
    """The inversion of a listed name, and a report.

    Raises PivotError for a name that leads out of both folders and for a damaged file. It does so
    for another model than `model` and another size than that of `latent`, too.
    """
    stored = read(find(name))
    trajectory = stored.trajectory
    _check_recipes(trajectory)
    if model is not None:
        check_same_model(model, trajectory, LOAD)
    if latent is not None:
        check_unmasked(latent, LOAD)
        trajectory.check_matches(latent["samples"], LOAD)
    precision = "half" if stored.half else "full"
    return (
        trajectory,
        f"{name}, {_described(trajectory)}, {precision} precision, saved by Pivot Edit "
        f"{stored.pack}",
    )


def clear_parts() -> None:
    """Remove what saves into the output folder left behind that were killed."""
    clear(output_root())


def listed() -> list[str]:
    """The names of all inversions in the input folder and, marked, in the output folder."""
    return [
        name
        for mark, root in _roots()
        for name in sorted(f"{path}{mark}" for path in _inversions(root))
    ]


def find(name: str) -> pathlib.Path:
    """The file of a listed name.

    Raises PivotError where there is none, or where the name leads out of its folder.
    """
    # the output folder first, because every name ends with the input folder's empty mark
    text = name if isinstance(name, str) else ""
    mark, root = next((mark, root) for mark, root in reversed(_roots()) if text.endswith(mark))
    with explained(name, LOAD):
        path = check_inside(root / text.removesuffix(mark), root, name, LOAD)
        exists = path.is_file()
    if not exists:
        raise PivotError(
            "an inversion in the input or output folder",
            f"{short(name)}, which is not there",
            "Choose one from the list; R on the page reads the folders again.",
            LOAD,
        )
    return path


def stamp(name: str) -> str:
    """A text that changes when the file of a name does."""
    return _stamp(find(name))


def refusal(name: str) -> str:
    """The reason why there is no file of a name; empty if there is one."""
    try:
        find(name)
    except PivotError as error:
        return str(error)
    return ""


def _roots() -> list[tuple[str, pathlib.Path]]:
    """The folders of inversions, each behind the mark of its names."""
    return [
        ("", pathlib.Path(folder_paths.get_input_directory()).resolve()),
        (OUTPUT, output_root()),
    ]


def _inversions(root: pathlib.Path) -> Iterator[str]:
    """The paths of all inversions in a folder, as names."""
    for folder, _, files in os.walk(root):
        for path in (pathlib.Path(folder) / file for file in files if file.endswith(SUFFIX)):
            if _is_listed(path, root):
                yield path.relative_to(root).as_posix()


def _is_listed(path: pathlib.Path, root: pathlib.Path) -> bool:
    """Whether a file is an inversion and lies, with links followed, in the folder."""
    try:
        return (
            path.resolve().is_relative_to(root)
            and path.is_file()
            and _is_inversion(path, _stamp(path))
        )
    except (OSError, RuntimeError):  # gone since, or links in a circle
        return False


@functools.lru_cache(maxsize=4096)
def _is_inversion(path: pathlib.Path, stamp: str) -> bool:
    """The answer of `is_inversion`, once for every state of a file.

    The page asks for the list often.
    """
    return is_inversion(path)


def _stamp(path: pathlib.Path) -> str:
    status = path.stat()
    return f"{status.st_mtime_ns} {status.st_size}"


def _check_recipes(trajectory: Trajectory) -> None:
    """Raise PivotError unless a replay can follow what the inversion says of itself."""
    try:
        if trajectory.correction is not None:
            correction_for(trajectory)
        rule_for(trajectory)
    except PivotError as error:
        raise error.at(LOAD) from error
