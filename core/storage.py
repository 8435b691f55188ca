"""Inversions in files: .safetensors whose header says what made them. Nothing in a file is ever
run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import uuid
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch

from .errors import PivotError
from .trajectory import Trajectory
from .version import pack_version

FORMAT = "pivot_edit.inversion"
VERSION = 1
SUFFIX = ".safetensors"
_LONGEST_HEADER = 1 << 20
_FIELDS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "model": (str,),
    "conditioning": (str,),
    "prompt": (str,),
    "guidance": (float,),
    "size": (list,),
    "pack": (str,),
    "correction": (dict, type(None)),
}
"""What the header tells beside format and version, each as json, and its type."""
_DTYPES = {
    "sigmas": (torch.float64,),
    "latents": (torch.float32, torch.float16),
    "nulls": (torch.float32, torch.float16),
}
_CHOOSE = "Choose a file that Save Inversion has written."
_DAMAGED = "The file is damaged; save the inversion again."


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """What a file holds.

    trajectory: without its correction, which is kept as plain data; correction: its name and
    options, or None;
    pack: the version that wrote the file; half: whether its numbers were rounded to half precision.
    """

    trajectory: Trajectory
    correction: tuple[str, dict[str, Any]] | None
    pack: str
    half: bool


def write(path: pathlib.Path, trajectory: Trajectory, half: bool = False) -> None:
    """Write an inversion in whole or not at all.

    In fp32 every number comes back bit for bit, `latents[0]`, the encoder's output, among them.
    half: latents and embeddings are rounded to fp16, `latents[0]` too, so that the picture comes
    back within `rounding`; levels stay float64. Raises PivotError when the file exists, when a
    number is too large for half precision, or when the prompt is too long for the header.
    """
    if path.exists():
        raise PivotError(
            "a name that is free", f"{path.name}, which exists", "Choose another one.", "write"
        )
    data = safetensors.torch.save(_tensors(trajectory, half), _metadata(trajectory))
    _check_length(int.from_bytes(data[:8], "little"), "Shorten the prompt.")
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:  # save_file would make it readable for its owner alone
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def rounding(x: torch.Tensor) -> float:
    """The relative error (root of the summed squares) that half precision costs."""
    exact = x.double()
    return float((x.half().double() - exact).norm() / exact.norm().clamp_min(1e-12))


def is_inversion(path: pathlib.Path) -> bool:
    """Whether a file says that it is an inversion, of any version; reads its header only."""
    try:
        with path.open("rb") as file:
            return _header(file).get("format") == FORMAT
    except (PivotError, OSError):
        return False


def read(path: pathlib.Path) -> Stored:
    """The inversion of a file. Raises PivotError with the reason when it is none, is damaged, or
    says of itself what its tensors are not."""
    try:
        with path.open("rb") as file:
            fields = _fields(_header(file))
            file.seek(0)
            return _stored(fields, _load(file.read()))
    except PivotError as error:
        raise error.at(path.name) from error


def _tensors(trajectory: Trajectory, half: bool) -> dict[str, torch.Tensor]:
    tensors = {"latents": trajectory.latents} | (
        {} if trajectory.nulls is None else {"nulls": trajectory.nulls}
    )
    kept = {name: _halved(x, name) if half else x.float() for name, x in tensors.items()}
    return {
        name: x.contiguous() for name, x in {"sigmas": trajectory.sigmas.double(), **kept}.items()
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


def _metadata(trajectory: Trajectory) -> dict[str, str]:
    own = trajectory.correction
    fields = {
        "method": trajectory.method,
        "model": trajectory.model,
        "conditioning": trajectory.conditioning,
        "prompt": trajectory.prompt,
        "guidance": float(trajectory.guidance),
        "size": list(trajectory.latents.shape),
        "pack": pack_version(),
        "correction": own and {"name": own.name, "options": dataclasses.asdict(own)},  # type: ignore[call-overload]
    }
    return {"format": FORMAT, "version": str(VERSION)} | {
        name: json.dumps(value) for name, value in fields.items()
    }


def _header(file: BinaryIO) -> dict[str, Any]:
    """What an open file says of itself; its first eight bytes are checked before anything trusts
    them."""
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
    told = header.get("__metadata__")
    return told if isinstance(told, dict) else {}


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
    version = str(metadata.get("version"))
    if version != str(VERSION):
        raise PivotError(
            f"version {VERSION} of the format", version, "Update Pivot Edit, or save it again."
        )
    fields = {name: _field(metadata, name) for name in _FIELDS}
    correction = fields["correction"]
    if correction is not None and [type(correction.get(key)) for key in ("name", "options")] != [
        str,
        dict,
    ]:
        raise PivotError("a correction's name and options", json.dumps(correction), _DAMAGED)
    if not math.isfinite(fields["guidance"]):
        raise PivotError("a finite guidance", f"{fields['guidance']}", _DAMAGED)
    return fields


def _field(metadata: dict[str, Any], name: str) -> Any:
    if name not in metadata:
        raise PivotError(f"the {name} in its header", "none", _DAMAGED)
    try:
        value = json.loads(metadata[name])
    except (ValueError, TypeError, RecursionError):
        value = NotImplemented
    if not isinstance(value, _FIELDS[name]):
        raise PivotError(f"the {name} in its header", f"{metadata[name]!r:.100}", _DAMAGED)
    return value


def _load(data: bytes) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise PivotError(
            "all of its tensors", f"a truncated or damaged file ({error})", _DAMAGED
        ) from error


def _stored(fields: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Stored:
    for name in ("sigmas", "latents"):
        if name not in tensors:
            raise PivotError(
                f"a tensor {name}", f"only {', '.join(sorted(tensors)) or 'none'}", _DAMAGED
            )
    kept = {name: _checked(tensors[name], name) for name in _DTYPES if name in tensors}
    sigmas, latents, nulls = kept["sigmas"], kept["latents"], kept.get("nulls")
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
    told = {
        name: fields[name] for name in ("method", "model", "conditioning", "prompt", "guidance")
    }
    trajectory = Trajectory(
        sigmas, latents.float(), nulls=None if nulls is None else nulls.float(), **told
    )
    own = fields["correction"]
    return Stored(
        trajectory,
        own and (own["name"], own["options"]),
        fields["pack"],
        latents.dtype == torch.float16,
    )


def _checked(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if tensor.dtype not in _DTYPES[name]:
        raise PivotError(
            f"{name} in {' or '.join(map(str, _DTYPES[name]))}", str(tensor.dtype), _DAMAGED
        )
    if not torch.isfinite(tensor).all():
        raise PivotError(f"finite numbers in its {name}", "NaN or infinity", _DAMAGED)
    return tensor
