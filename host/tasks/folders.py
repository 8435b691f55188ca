"""Names that people write for files in ComfyUI's folders: where they lead, and what is wrong with
them."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

import folder_paths

from ...core.errors import PivotError, short
from ...core.options import check_text


def output_root() -> pathlib.Path:
    """The output folder, with every link followed."""
    return pathlib.Path(folder_paths.get_output_directory()).resolve()


def checked_prefix(prefix: str, stem: str, where: str) -> str:
    """A prefix of files in the output folder, whose last part is `stem` where it has none.

    ComfyUI cannot count the files of a prefix without a last part, such as "folder/". Raises
    PivotError for a prefix that leads out of the folder, before ComfyUI makes its folders.
    """
    _check_name(prefix, "filename_prefix", where)
    if os.path.basename(prefix) in ("", os.curdir, os.pardir):
        prefix = os.path.join(prefix, stem)
    root = output_root()
    with explained(prefix, where):
        check_inside(root / prefix, root, prefix, where)
    return prefix


def check_inside(path: pathlib.Path, root: pathlib.Path, name: str, where: str) -> pathlib.Path:
    """The path with every link followed. Raises PivotError unless it lies in `root`."""
    _check_name(name, "a file's name", where)
    try:
        resolved = path.resolve()
    except (ValueError, RuntimeError):  # a null byte, links in a circle
        resolved = None
    if resolved is None or not resolved.is_relative_to(root):
        link = _link_to_outside(path, root)
        if link is not None:
            raise PivotError(
                f"a name inside of {root}",
                f"{short(name)}, where {link.name!r} is a link to {os.readlink(link)}",
                "Links that lead out of the folder are not followed. Choose another folder, or "
                "start ComfyUI with --output-directory or --input-directory: these may be links.",
                where,
            )
        do = "Use no absolute path and no '..'."
        raise PivotError(f"a name inside of {root}", short(name), do, where)
    return resolved


def _link_to_outside(path: pathlib.Path, root: pathlib.Path) -> pathlib.Path | None:
    """The first link on a path within `root` that leads out of it."""
    with contextlib.suppress(ValueError, OSError, RuntimeError):
        parts = pathlib.Path(os.path.abspath(path)).relative_to(root).parts
        for count in range(1, len(parts) + 1):
            step = root.joinpath(*parts[:count])
            if step.is_symlink() and not step.resolve().is_relative_to(root):
                return step
    return None


@contextlib.contextmanager
def explained(name: str, where: str) -> Iterator[None]:
    """Raise what the file system refuses as a PivotError that says what to do."""
    try:
        yield
    except OSError as error:
        expected, do = _REASONS.get(error.errno or 0, _OTHERWISE)
        got = f"{short(name)}: {error.strerror or type(error).__name__}"
        raise PivotError(expected, got, do, where) from error


_OTHERWISE = ("a folder that can be used", "Look at its rights and its free space.")
_NO_FOLDER = ("folders on the way to the file", "A file has that name: choose another one.")
_REASONS = {
    errno.ENAMETOOLONG: (
        "a name that the file system can hold",
        "Shorten it; most hold 255 bytes with the number.",
    ),
    errno.ENOTDIR: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
}
"""Error numbers of the file system: what was expected, and what to do."""


def _check_name(name: str, what: str, where: str) -> None:
    """Raise PivotError for what no file can be called."""
    if not isinstance(name, str):
        raise PivotError(f"{what} as text", short(name), "Type it, or choose it.", where)
    check_text(name, what, where)
