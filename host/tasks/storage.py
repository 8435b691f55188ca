"""Inversions in ComfyUI's folders: saved to the output folder, found by name in it and in the input
folder."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import folder_paths

from ...core.correction import Correction
from ...core.errors import PivotError
from ...core.storage import (
    SUFFIX,
    is_inversion,
    read,
    rounding,
    write,
)
from ...core.trajectory import Trajectory
from ...inversion import correction_named
from ..model.checks import check_same_model
from .masks import PIXELS

PREFIX = "pivot/inversion"
OUTPUT = " [output]"
"""What ComfyUI writes behind the name of a file that lies in the output folder."""
SAVE, LOAD = "Save Inversion", "Load Inversion"


def save(trajectory: Trajectory, prefix: str, half: bool, prompt: str = "") -> tuple[str, str]:
    """Save an inversion in the output folder under the next free number; its name for `load`, and a
    report.

    prompt: in place of the one that the inversion remembers, where it is not empty.
    """
    root = pathlib.Path(folder_paths.get_output_directory()).resolve()
    _check_inside(root / prefix, root, prefix, SAVE)
    height, width = (PIXELS * size for size in trajectory.latents.shape[-2:])
    folder, stem, number, subfolder, _ = folder_paths.get_save_image_path(
        prefix, str(root), width, height
    )
    path = pathlib.Path(folder) / f"{stem}_{number:05}_{SUFFIX}"
    write(path, dataclasses.replace(trajectory, prompt=prompt or trajectory.prompt), half)
    name = (pathlib.Path(subfolder) / path.name).as_posix() + OUTPUT
    report = f"{name}, {path.stat().st_size / 1e6:.1f} MB, {_described(trajectory)}"
    return name, report + (f"; half precision, {_cost(trajectory)}" if half else "")


def _cost(trajectory: Trajectory) -> str:
    kept = {"latents": trajectory.latents, "embeddings": trajectory.nulls}
    return ", ".join(
        f"relative error of {name} {rounding(x):.1e}" for name, x in kept.items() if x is not None
    )


def _described(trajectory: Trajectory) -> str:
    shape = "x".join(map(str, trajectory.latents.shape[1:]))
    own = f", {trajectory.correction.name}" if trajectory.correction else ""
    return (
        f"{trajectory.steps} steps, {trajectory.method}, cfg {trajectory.guidance:g}{own}, latent "
        f"{shape}"
    )


def load(
    name: str, model: Any = None, latent: dict[str, Any] | None = None
) -> tuple[Trajectory, str]:
    """The inversion of a listed name, and a report. Raises PivotError for a name that leads out of
    both folders, a damaged file, another model than `model` and another size than that of `latent`.
    """
    stored = read(find(name))
    trajectory = dataclasses.replace(stored.trajectory, correction=_rebuilt(stored.correction))
    if trajectory.correction:
        trajectory.correction.check(trajectory)
    if model is not None:
        check_same_model(model, trajectory, LOAD)
    if latent is not None:
        trajectory.check_matches(latent["samples"], LOAD)
    precision = "half" if stored.half else "full"
    return (
        trajectory,
        f"{name}, {_described(trajectory)}, {precision} precision, saved by Pivot Edit "
        f"{stored.pack}",
    )


def listed() -> list[str]:
    """The names of all inversions in the input folder and, marked, in the output folder."""
    return [
        name
        for mark, root in _roots()
        for name in sorted(f"{found}{mark}" for found in _inversions(root))
    ]


def find(name: str) -> pathlib.Path:
    """The file of a listed name; PivotError where there is none, or the name leads out of its
    folder."""
    mark, root = next((mark, root) for mark, root in reversed(_roots()) if name.endswith(mark))
    path = _check_inside(root / name.removesuffix(mark), root, name, LOAD)
    if not path.is_file():
        raise PivotError(
            "an inversion in the input or output folder",
            f"{name!r}, which is not there",
            "Choose one from the list; R on the page reads the folders again.",
            LOAD,
        )
    return path


def stamp(name: str) -> str:
    """What changes when the file of a name does."""
    return _stamp(find(name))


def refusal(name: str) -> str:
    """Why there is no file of a name; empty if there is one."""
    try:
        find(name)
    except PivotError as error:
        return str(error)
    return ""


def _roots() -> list[tuple[str, pathlib.Path]]:
    """The mark behind names, and the folder."""
    return [
        ("", pathlib.Path(folder_paths.get_input_directory()).resolve()),
        (OUTPUT, pathlib.Path(folder_paths.get_output_directory()).resolve()),
    ]


def _check_inside(path: pathlib.Path, root: pathlib.Path, name: str, where: str) -> pathlib.Path:
    """The path with every link followed; PivotError unless it lies in `root`."""
    try:
        resolved = path.resolve()
    except (ValueError, OSError, RuntimeError):  # a null byte, a name too long, links in a circle
        resolved = None
    if resolved is None or not resolved.is_relative_to(root):
        raise PivotError(
            f"a name inside of {root}", repr(name), "Use no absolute path and no '..'.", where
        )
    return resolved


def _inversions(root: pathlib.Path) -> Iterator[str]:
    for folder, _, files in os.walk(root):
        for path in (pathlib.Path(folder) / file for file in files if file.endswith(SUFFIX)):
            if _is_listed(path, root):
                yield path.relative_to(root).as_posix()


def _is_listed(path: pathlib.Path, root: pathlib.Path) -> bool:
    try:
        return path.resolve().is_relative_to(root) and path.is_file() and _known(path, _stamp(path))
    except (OSError, RuntimeError):  # gone since, or links in a circle
        return False


@functools.lru_cache(maxsize=4096)
def _known(path: pathlib.Path, stamp: str) -> bool:
    """`is_inversion`, once for every state of a file: the page asks for the list often."""
    return is_inversion(path)


def _stamp(path: pathlib.Path) -> str:
    status = path.stat()
    return f"{status.st_mtime_ns} {status.st_size}"


def _rebuilt(correction: tuple[str, dict[str, Any]] | None) -> Correction | None:
    if correction is None:
        return None
    name, options = correction
    try:
        return correction_named(name, **options)
    except TypeError as error:
        raise PivotError(
            f"options of {name}", f"{options}", "Update Pivot Edit, or save it again.", LOAD
        ) from error
