"""Inversions in .safetensors files, whose header says what made them. Nothing in a file is ever
run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import platform
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

from .errors import PivotError
from .options import check_text
from .recipe import Recipe
from .trajectory import Trajectory
from .version import pack_version

FORMAT = "pivot_edit.inversion"
VERSION = 2
SUFFIX = ".safetensors"
HASH = "sha256"
_EXTRA = "extras."
_LONGEST_HEADER = 1 << 20
_FIRST: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "model": (str,),
    "conditioning": (str,),
    "prompt": (str,),
    "guidance": (float,),
    "size": (list,),
    "pack": (str,),
    "correction": (dict, type(None)),
}
_FIELDS = {
    "1": _FIRST,
    "2": {**_FIRST, "stepper": (dict, type(None)), "path": (str,), HASH: (str,)},
}
"""What the header of each version tells beside format and version, each as json, and its type."""
_RENAMED = {"1": {"nulls": f"{_EXTRA}nulls"}, "2": {}}
"""Tensors that have another name now; version 1 knew null-text's embeddings alone."""
_PART = re.compile(r"\.[0-9a-f]{32}\.part")
_ABANDONED = 3600.0
"""Seconds after which a part file belongs to nobody. Each write to it sets its time anew, and the
largest inversion is written in seconds; clocks of network shares differ by minutes."""
_CHOOSE = "Choose a file that Save Inversion has written."
_DAMAGED = "The file is damaged; save the inversion again."


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """What a file holds."""

    trajectory: Trajectory
    pack: str
    """The version of the pack that wrote the file."""
    half: bool
    """Whether its numbers were rounded to half precision."""


def write(path: pathlib.Path, trajectory: Trajectory, half: bool = False) -> None:
    """Write an inversion in whole or not at all.

    In fp32 every number comes back bit for bit, `latents[0]`, the encoder's output, among them.
    With half, latents and extras are rounded to fp16, `latents[0]` too, and the picture comes back
    within `rounding`. Levels stay float64. Raises PivotError when the file exists, when a
    number is too large for half precision, or when the prompt is too long for the header or holds
    half of a character.
    """
    with _part(path.parent, _bytes(trajectory, half)) as part:
        try:
            _publish(part, path)
        except FileExistsError as error:
            raise PivotError(
                "a name that is free",
                f"{path.name}, which exists",
                "Choose another one.",
                "write",
            ) from error


def write_numbered(
    folder: pathlib.Path, stem: str, trajectory: Trajectory, half: bool = False, first: int = 1
) -> pathlib.Path:
    """Write an inversion as `write` does, under the first free number from `first` on.

    Returns its path. Several processes may save under one stem at once, and each gets numbers of
    its own.
    """
    with _part(folder, _bytes(trajectory, half)) as part:
        number = first
        while True:
            path = folder / f"{stem}_{number:05}_{SUFFIX}"
            # asking whether the name is free, and taking it afterwards, would lose files
            with contextlib.suppress(FileExistsError):
                _publish(part, path)
                return path
            number += 1


@contextlib.contextmanager
def _part(folder: pathlib.Path, data: bytes) -> Iterator[pathlib.Path]:
    """A finished file under a passing name in the folder, gone afterwards."""
    _clear_parts(folder)
    part, file = _own_part(folder)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file
            yield part
    finally:
        part.unlink(missing_ok=True)


def _own_part(folder: pathlib.Path) -> tuple[pathlib.Path, BinaryIO]:
    """A new file, open and locked, that no other process takes for abandoned."""
    while True:
        part = folder / f".{_machine()}{uuid.uuid4().hex[8:]}.part"
        file = part.open("xb")  # save_file would make it readable for its owner alone
        _lock(file)
        # between the two lines above another process may have cleared it
        if part.exists():
            return part, file
        file.close()


def clear(root: pathlib.Path) -> None:
    """Remove, in a folder and all below it, what saves left behind that were killed."""
    for folder, _, _ in os.walk(root):
        _clear_parts(pathlib.Path(folder))


def _clear_parts(folder: pathlib.Path) -> None:
    """Remove what saves left behind in a folder that were killed."""
    # litter is no reason to fail a save or a start, and another process may be clearing, too
    with contextlib.suppress(OSError):
        for part in folder.glob(".*.part"):
            with contextlib.suppress(OSError):
                if _PART.fullmatch(part.name) and _is_abandoned(part):
                    part.unlink()


def _is_abandoned(part: pathlib.Path) -> bool:
    """Whether nobody writes to a part file any more.

    A process that is killed loses its locks. Network shares may not tell of those of another
    machine, whose files must be old.
    """
    if time.time() - part.stat().st_mtime > _ABANDONED:
        return True
    if not part.name.startswith(f".{_machine()}"):
        return False
    with part.open("rb") as file:
        return _lock(file)


def _machine() -> str:
    """A mark of this machine."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _lock(file: BinaryIO) -> bool:
    """Lock a file for as long as it is open. False where another one holds it, or without locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _publish(part: pathlib.Path, path: pathlib.Path) -> None:
    """Give a finished file its name in one stroke. Raises FileExistsError where the name is
    taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # FAT and some network shares have no links: an empty file holds the name until the
        # finished one replaces it
        path.open("xb").close()
        try:
            os.replace(part, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _bytes(trajectory: Trajectory, half: bool) -> bytes:
    """The bytes of the whole file."""
    check_text(trajectory.prompt, "a prompt", "write")
    tensors = _tensors(trajectory, half)
    data = safetensors.torch.save(tensors, _metadata(trajectory, tensors))
    _check_length(int.from_bytes(data[:8], "little"), "Shorten the prompt.")
    return data


def rounding(x: torch.Tensor) -> float:
    """The relative error (root of the summed squares) that half precision costs."""
    exact = x.double()
    return float((x.half().double() - exact).norm() / exact.norm().clamp_min(1e-12))


def is_inversion(path: pathlib.Path) -> bool:
    """Whether a file says in its header that it is an inversion, of any version."""
    try:
        with path.open("rb") as file:
            return _header(file).get("format") == FORMAT
    except (PivotError, OSError):
        return False


def read(path: pathlib.Path) -> Stored:
    """The inversion of a file.

    Raises PivotError with the reason when it is none, is damaged, or says of itself what its
    tensors are not.
    """
    try:
        with path.open("rb") as file:
            metadata = _header(file)
            fields = _fields(metadata)
            file.seek(0)
            tensors = _load(file.read())
            if HASH in fields and fields[HASH] != content_hash(metadata, tensors):
                raise PivotError("content that its hash fits", "another content", _DAMAGED)
            return _stored(fields, _renamed(tensors, metadata["version"]))
    except PivotError as error:
        raise error.at(path.name) from error


def content_hash(metadata: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """The sha256 of all that a file tells, but for the hash itself.

    It is taken of what was read, rather than of the file. So nothing that is used is left out, and
    two readers of one header cannot disagree about it.
    """
    header = {name: value for name, value in metadata.items() if name != HASH}
    about = [[name, str(x.dtype), list(x.shape)] for name, x in sorted(tensors.items())]
    digest = hashlib.sha256(json.dumps([header, about], sort_keys=True).encode())
    for _, x in sorted(tensors.items()):
        digest.update(x.detach().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(trajectory: Trajectory, half: bool) -> dict[str, torch.Tensor]:
    tensors = {"latents": trajectory.latents} | {
        f"{_EXTRA}{name}": extra for name, extra in trajectory.extras.items()
    }
    rounded = {name: _halved(x, name) if half else x.float() for name, x in tensors.items()}
    return {
        name: x.contiguous()
        for name, x in {"sigmas": trajectory.sigmas.double(), **rounded}.items()
    }


def _halved(x: torch.Tensor, name: str) -> torch.Tensor:
    if not torch.isfinite(x.half()).all():
        raise PivotError(
            f"{name} within the range of half precision (65504)",
            f"{float(x.abs().max()):.3g}",
            "Save it without half_precision.",
            "write",
        )
    return x.half()


def _metadata(trajectory: Trajectory, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    fields = {
        "method": trajectory.method,
        "model": trajectory.model,
        "conditioning": trajectory.conditioning,
        "prompt": trajectory.prompt,
        "guidance": float(trajectory.guidance),
        "size": list(trajectory.latents.shape),
        "pack": pack_version(),
        "correction": _plain(trajectory.correction),
        "stepper": _plain(trajectory.stepper),
        "path": trajectory.path,
    }
    metadata = {"format": FORMAT, "version": str(VERSION)} | {
        name: json.dumps(value) for name, value in fields.items()
    }
    return metadata | {HASH: json.dumps(content_hash(metadata, tensors))}


def _plain(recipe: Recipe | None) -> dict[str, Any] | None:
    return None if recipe is None else {"name": recipe.name, "options": dict(recipe.options)}


def _header(file: BinaryIO) -> dict[str, Any]:
    """What an open file says of itself."""
    # the first eight bytes are a length: a damaged one may ask for more memory than there is
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if len(start) < 8:
        raise PivotError("a safetensors file", f"one of {size} bytes", _CHOOSE)
    length = int.from_bytes(start, "little")
    _check_length(length, _CHOOSE)
    if 8 + length > size:
        raise PivotError(f"a header of {length} bytes", f"a file cut off after {size}", _DAMAGED)
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise PivotError("a safetensors file", "one whose header cannot be read", _CHOOSE)
    metadata = header.get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _check_length(length: int, do: str) -> None:
    if length > _LONGEST_HEADER:
        raise PivotError(f"a header of at most {_LONGEST_HEADER} bytes", f"{length}", do)


def _fields(metadata: dict[str, Any]) -> dict[str, Any]:
    """The header's fields with the types that they must have."""
    if metadata.get("format") != FORMAT:
        raise PivotError(
            f"an inversion ({FORMAT})",
            f"{metadata.get('format', 'a file of another kind')}",
            _CHOOSE,
        )
    version = metadata.get("version")
    if not isinstance(version, str) or version not in _FIELDS:
        raise PivotError(
            f"version {' or '.join(_FIELDS)} of the format",
            f"{version}",
            "Update Pivot Edit, or save it again.",
        )
    types = _FIELDS[version]
    for name in metadata.keys() - types.keys() - {"format", "version"}:
        # a damaged version 2 could pass for a version 1, which has no hash
        raise PivotError(f"a header of version {version}", f"one with {name!r:.100}", _DAMAGED)
    fields = {name: _field(metadata, name, kinds) for name, kinds in types.items()}
    for name in ("correction", "stepper"):
        fields[name] = _recipe(fields.get(name), name)
    for name in ("prompt", "method", "model", "conditioning", "pack"):
        check_text(fields[name], f"a {name}")
    if not math.isfinite(fields["guidance"]):
        raise PivotError("a finite guidance", f"{fields['guidance']}", _DAMAGED)
    return fields


def _field(metadata: dict[str, Any], name: str, kinds: tuple[type, ...]) -> Any:
    if name not in metadata:
        raise PivotError(f"the {name} in its header", "none", _DAMAGED)
    try:
        value = json.loads(metadata[name])
    except (ValueError, TypeError, RecursionError):
        value = NotImplemented
    if not isinstance(value, kinds):
        raise PivotError(f"the {name} in its header", f"{metadata[name]!r:.100}", _DAMAGED)
    return value


def _recipe(plain: dict[str, Any] | None, name: str) -> Recipe | None:
    if plain is None:
        return None
    if [type(plain.get(key)) for key in ("name", "options")] != [str, dict]:
        raise PivotError(f"a {name}'s name and options", f"{json.dumps(plain):.100}", _DAMAGED)
    return Recipe(plain["name"], plain["options"])


def _load(data: bytes) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise PivotError(
            "all of its tensors", f"a truncated or damaged file ({error})", _DAMAGED
        ) from error


def _renamed(tensors: dict[str, torch.Tensor], version: str) -> dict[str, torch.Tensor]:
    names = _RENAMED[version]
    return {names.get(name, name): x for name, x in tensors.items()}


def _stored(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Stored:
    for name in ("sigmas", "latents"):
        if name not in tensors:
            raise PivotError(
                f"a tensor {name}", f"only {', '.join(sorted(tensors)) or 'none'}", _DAMAGED
            )
    checked = {name: _checked(x, name) for name, x in tensors.items()}
    sigmas, latents = checked.pop("sigmas"), checked.pop("latents")
    if list(latents.shape) != fields["size"]:
        raise PivotError(
            f"latents of the size it tells, {fields['size']}", f"{list(latents.shape)}", _DAMAGED
        )
    if (
        sigmas.ndim != 1
        or len(sigmas) < 2
        or float(sigmas[0]) < 0.0
        or not bool((sigmas.diff() > 0.0).all())
    ):
        raise PivotError("ascending levels", f"{sigmas.flatten()[:4].tolist()} ...", _DAMAGED)
    names = {field.name for field in dataclasses.fields(Trajectory)}
    trajectory = Trajectory(
        sigmas,
        latents.float(),
        extras={name.removeprefix(_EXTRA): x.float() for name, x in checked.items()},
        **{name: value for name, value in fields.items() if name in names},
    )
    return Stored(trajectory, fields["pack"], latents.dtype == torch.float16)


def _checked(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if name not in ("sigmas", "latents") and not name.startswith(_EXTRA):
        raise PivotError(f"tensors sigmas, latents and {_EXTRA}<name>", f"{name!r:.100}", _DAMAGED)
    dtypes = (torch.float64,) if name == "sigmas" else (torch.float32, torch.float16)
    if tensor.dtype not in dtypes:
        raise PivotError(f"{name} in {' or '.join(map(str, dtypes))}", str(tensor.dtype), _DAMAGED)
    if not torch.isfinite(tensor).all():
        raise PivotError(f"finite numbers in its {name}", "NaN or infinity", _DAMAGED)
    return tensor
