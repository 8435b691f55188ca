"""Inversions in files: every number comes back, and every damaged file is refused with its
reason."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import json
import multiprocessing
import os
import pathlib
import signal
import stat
import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest
import safetensors.torch
import torch
from reference import noise, sd_sigmas

from pivot_edit.core import storage, version
from pivot_edit.core.errors import PivotError
from pivot_edit.core.path import VP
from pivot_edit.core.recipe import Recipe, recipe_of
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.inversion import Direct, NegativePrompt, NullText, correction_for, correction_named

STEPS = 5
SIGMAS = VP.levels(sd_sigmas(), STEPS)
ROOT = pathlib.Path(__file__).absolute().parents[2]


def trajectory(**other: Any) -> Trajectory:
    latents = noise(0, STEPS + 1, 2, 4, 3, 5).float()
    made = Trajectory(
        SIGMAS,
        latents,
        "fixed_point",
        "a model",
        "a text",
        "un chat “gris”\nsur un lit 🛏",
        7.5,
    )
    return dataclasses.replace(made, **other)


def whole(**other: Any) -> Trajectory:
    """One with everything that it can have."""
    return trajectory(
        **{
            "extras": {
                "nulls": noise(1, STEPS, 2, 7, 6).float(),
                "noises": noise(2, STEPS, 2, 4, 3, 5).float(),
            },
            "correction": recipe_of(NullText(single_branch=True)),
            "stepper": Recipe("ancestral", {"eta": 0.5, "seed": 3, "legacy": False, "kind": "a"}),
            **other,
        }
    )


def video() -> Trajectory:
    return trajectory(latents=noise(0, STEPS + 1, 1, 4, 3, 2, 5).float())


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "kept.safetensors"


def same(one: Any, other: Any) -> bool:
    """Whether two fields of a trajectory are equal, tensors bit for bit (0 is not -0)."""
    if isinstance(one, torch.Tensor):
        bits, others = one.view(torch.uint8), other.view(torch.uint8)
        return one.dtype == other.dtype and torch.equal(bits, others)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def unequal(one: Trajectory, other: Trajectory) -> list[str]:
    """The names of the fields in which two trajectories differ."""
    names = [field.name for field in dataclasses.fields(Trajectory)]
    return [name for name in names if not same(getattr(one, name), getattr(other, name))]


@pytest.mark.parametrize(
    "made", [trajectory(), whole(), trajectory(guidance=1), trajectory(prompt=""), video()]
)
def test_everything_comes_back_bit_for_bit(path: pathlib.Path, made: Trajectory) -> None:
    storage.write(path, made)
    stored = storage.read(path)
    assert unequal(made, stored.trajectory) == []
    assert not stored.half
    assert stored.pack == version.pack_version()


@pytest.mark.parametrize(
    "correction",
    [
        None,
        Direct(),
        Direct(True, 0.4, 3),
        NegativePrompt(0.25, True, 0.1),
        NullText(),
        correction_named("none"),
    ],
)
def test_a_correction_comes_back_from_its_name_and_options(
    path: pathlib.Path, correction: Any
) -> None:
    storage.write(path, whole(correction=correction and recipe_of(correction)))
    recipe = storage.read(path).trajectory.correction
    if correction is None:
        assert recipe is None
    else:
        assert recipe is not None
        assert correction_named(recipe.name, **recipe.options) == correction


def test_latents_of_any_layout_are_kept(path: pathlib.Path) -> None:
    latents = noise(0, 2, STEPS + 1, 4, 3, 5).float().transpose(0, 1)
    storage.write(path, trajectory(latents=latents))
    assert torch.equal(storage.read(path).trajectory.latents, latents)


def test_half_precision_costs_what_it_says_and_takes_half_the_space(path: pathlib.Path) -> None:
    nulls = noise(1, STEPS, 2, 7, 6).float()
    large = trajectory(latents=noise(0, STEPS + 1, 2, 4, 64, 64).float(), extras={"nulls": nulls})
    storage.write(path, large)
    full = path.stat().st_size
    path.unlink()
    storage.write(path, large, half=True)
    stored = storage.read(path)
    back = stored.trajectory
    assert stored.half and back.latents.dtype == back.extras["nulls"].dtype == torch.float32
    assert path.stat().st_size == pytest.approx(full / 2, rel=0.01)
    assert torch.equal(back.sigmas, SIGMAS)
    for exact, rounded in ((large.latents, back.latents), (nulls, back.extras["nulls"])):
        assert torch.equal(rounded, exact.half().float())
        error = float((rounded.double() - exact.double()).norm() / exact.double().norm())
        assert storage.rounding(exact) == pytest.approx(error)
        assert 1e-4 < error < 2**-11


def test_what_is_exact_in_half_precision_costs_nothing() -> None:
    assert storage.rounding(torch.tensor([1.0, -0.5, 0.0])) == 0.0
    assert storage.rounding(torch.zeros(3)) == 0.0


def test_numbers_beyond_half_precision_are_refused_and_leave_no_file(path: pathlib.Path) -> None:
    latents = trajectory().latents.clone()
    latents[2, 1, 0, 0, 0] = -7e4
    with pytest.raises(
        PivotError, match=r"latents within the range of half precision \(65504\), but got 7e\+04"
    ):
        storage.write(path, trajectory(latents=latents), half=True)
    assert not list(path.parent.iterdir())


def test_a_prompt_that_no_header_can_hold_is_refused(path: pathlib.Path) -> None:
    with pytest.raises(PivotError, match="Shorten the prompt"):
        storage.write(path, trajectory(prompt="a cat " * 200_000))
    assert not list(path.parent.iterdir())


def test_an_existing_file_is_never_overwritten(path: pathlib.Path) -> None:
    path.write_bytes(b"somebody's")
    with pytest.raises(PivotError, match="kept.safetensors, which exists"):
        storage.write(path, trajectory())
    assert path.read_bytes() == b"somebody's"


def test_a_write_that_fails_leaves_nothing(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the very last moment there is no file of that name, and after a failure no other
    either."""
    seen = []

    def fail(source: Any, target: Any) -> None:
        seen.append((storage.is_inversion(pathlib.Path(source)), path.exists()))
        raise OSError("planted")

    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="planted"):
        storage.write(path, trajectory())
    assert seen == [(True, False), (True, True)]  # the second attempt holds the name
    assert not list(path.parent.iterdir())


def test_a_file_is_readable_for_whom_the_umask_says(path: pathlib.Path) -> None:
    before = os.umask(0o022)
    try:
        storage.write(path, trajectory())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_version_is_that_of_the_project(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        f'version = "{version.pack_version()}"'
        in (ROOT / "pyproject.toml").read_text().splitlines()
    )
    monkeypatch.setattr(version, "_WRITTEN", tmp_path / "pyproject.toml")
    assert version.pack_version() == "unknown"


# -- damaged files
# ----------------------------------------------------------------------------------------

Spoil = Callable[[bytes], bytes]


def header(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(told: Any, tensors: bytes) -> bytes:
    text = told if isinstance(told, bytes) else json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def telling(**fields: Any) -> Spoil:
    """The file with other fields in its header; None takes one away."""

    def spoil(data: bytes) -> bytes:
        told, tensors = header(data)
        merged = {**told["__metadata__"], **fields}
        return with_header(
            {**told, "__metadata__": {k: v for k, v in merged.items() if v is not None}}, tensors
        )

    return spoil


def holding(**others: torch.Tensor | None) -> Spoil:
    """The file with other tensors; None takes one away."""

    def spoil(data: bytes) -> bytes:
        merged = {**safetensors.torch.load(data), **others}
        kept = {name: x for name, x in merged.items() if x is not None}
        return safetensors.torch.save(kept, header(data)[0]["__metadata__"])

    return spoil


def with_nan(name: str, value: float) -> Spoil:
    def spoil(data: bytes) -> bytes:
        tensor = safetensors.torch.load(data)[name].clone()
        tensor.view(-1)[-2] = value
        return holding(**{name: tensor})(data)

    return spoil


def moved(data: bytes) -> bytes:
    """One tensor's place reaches beyond the file."""
    told, tensors = header(data)
    told["latents"]["data_offsets"][1] += 4
    return with_header(told, tensors)


def unknown_kind(data: bytes) -> bytes:
    told, tensors = header(data)
    told["latents"]["dtype"] = "F99"
    return with_header(told, tensors)


def signed(spoil: Spoil) -> Spoil:
    """The spoilt file with the hash of what it now holds: whoever wrote it, wrote it so."""

    def sign(data: bytes) -> bytes:
        data = spoil(data)
        told, tensors = header(data)
        metadata = told["__metadata__"]
        metadata["sha256"] = json.dumps(
            storage.content_hash(metadata, safetensors.torch.load(data))
        )
        return with_header(told, tensors)

    return sign


def plain(data: bytes) -> bytes:
    return safetensors.torch.save({"weight": torch.zeros(3)})


def png(data: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + data


SPOILT: dict[str, tuple[Spoil, str]] = {
    "empty": (lambda data: b"", "a safetensors file, but got one of 0 bytes"),
    "five bytes": (lambda data: data[:5], "a safetensors file, but got one of 5 bytes"),
    "cut in its header": (lambda data: data[:100], "a header of .* cut off after 100"),
    "cut in its tensors": (
        lambda data: data[:-1],
        r"truncated or damaged file \(.*not fully covered",
    ),
    "bytes after its end": (lambda data: data + b"x", "truncated or damaged file"),
    "oversized header": (
        lambda data: (1 << 40).to_bytes(8, "little") + data[8:],
        "at most 1048576 bytes, but got 109951",
    ),
    "header just too long": (
        lambda data: with_header(b" " * ((1 << 20) + 1), b""),
        "but got 1048577",
    ),
    "picture": (png, "a header of at most .* Choose a file that Save Inversion"),
    "text": (lambda data: b"a cat on a sofa", "a header of at most"),
    "no json": (lambda data: with_header(b"{not json", b""), "whose header cannot be read"),
    "no text": (lambda data: with_header(b"\xff\xfe\xfd", b""), "whose header cannot be read"),
    "a list": (lambda data: with_header([], b""), "whose header cannot be read"),
    "very deep": (lambda data: with_header(b"[" * 500_000, b""), "whose header cannot be read"),
    "metadata no table": (
        lambda data: with_header({"__metadata__": 3}, b""),
        "a file of another kind",
    ),
    "weights": (plain, "an inversion .* but got a file of another kind"),
    "another format": (telling(format="pt"), "an inversion .* but got pt"),
    "newer": (telling(version="3"), "version 1 or 2 of the format, but got 3 .* Update Pivot Edit"),
    "no version": (telling(version=None), "version 1 or 2 of the format, but got None"),
    "tensor's place": (moved, "truncated or damaged file"),
    "tensor's kind": (unknown_kind, "truncated or damaged file"),
    "no sigmas": (signed(holding(sigmas=None)), "a tensor sigmas, but got only extras.* latents"),
    "no latents": (signed(holding(latents=None)), "a tensor latents, but got only extras.* sigmas"),
    "latents of integers": (
        signed(holding(latents=torch.zeros(6, 2, 4, 3, 5, dtype=torch.int32))),
        "float16, but got .*int32",
    ),
    "levels in fp32": (
        signed(holding(sigmas=SIGMAS.float())),
        "sigmas in torch.float64, but got torch.float32",
    ),
    "another size": (
        signed(telling(size="[6, 2, 4, 3, 6]")),
        r"it tells, \[6, 2, 4, 3, 6\], but got \[6, 2, 4, 3, 5\]",
    ),
    "another layout": (
        signed(holding(latents=torch.zeros(6, 2, 4, 5, 3))),
        r"but got \[6, 2, 4, 5, 3\]",
    ),
    "fewer levels": (
        signed(holding(sigmas=SIGMAS[:4].contiguous())),
        r"latents \[4, B, C, H, W\] or .* but got \[6, 2",
    ),
    "one level": (signed(holding(sigmas=SIGMAS[:1].contiguous())), "ascending levels"),
    "levels in a table": (signed(holding(sigmas=SIGMAS[None].contiguous())), "ascending levels"),
    "levels that descend": (
        signed(holding(sigmas=SIGMAS.flip(0).contiguous())),
        "ascending levels",
    ),
    "a level twice": (
        signed(holding(sigmas=SIGMAS[[0, 1, 2, 2, 4, 5]].contiguous())),
        "ascending levels",
    ),
    "a level below 0": (signed(holding(sigmas=(SIGMAS - 1.0))), "ascending levels, but got .-0.97"),
    "nulls of another count": (
        signed(holding(**{"extras.nulls": torch.zeros(4, 2, 7, 6)})),
        r"extra nulls as \[5, \.\.\.\], but got \[4, 2, 7, 6\]",
    ),
    "NaN in latents": (
        signed(with_nan("latents", float("nan"))),
        "finite numbers in its latents, but got NaN",
    ),
    "infinity in latents": (
        signed(with_nan("latents", float("-inf"))),
        "finite numbers in its latents",
    ),
    "NaN in nulls": (
        signed(with_nan("extras.nulls", float("nan"))),
        "finite numbers in its extras.nulls",
    ),
    "NaN in sigmas": (signed(with_nan("sigmas", float("nan"))), "finite numbers in its sigmas"),
    "guidance no number": (
        telling(guidance='"high"'),
        "the guidance in its header, but got '\"high\"'",
    ),
    "guidance NaN": (telling(guidance="NaN"), "a finite guidance, but got nan"),
    "prompt no text": (telling(prompt="[1]"), "the prompt in its header"),
    "prompt no json": (telling(prompt="a cat"), "the prompt in its header, but got 'a cat'"),
    "prompt very deep": (telling(prompt="[" * 200_000), "the prompt in its header"),
    "correction a text": (telling(correction='"direct"'), "the correction in its header"),
    "correction without options": (
        telling(correction='{"name": "direct"}'),
        "a correction's name and options",
    ),
    "correction of no plain data": (
        telling(correction='{"name": "direct", "options": {"every": [1]}}'),
        "option every of direct as text, a finite number",
    ),
    "stepper a text": (telling(stepper='"ddim"'), "the stepper in its header"),
    "stepper without options": (telling(stepper='{"name": "a"}'), "a stepper's name and options"),
    "unknown path": (signed(telling(path='"polar"')), r"path to be one of \('vp', 'flow'\)"),
    "hash no text": (telling(sha256="3"), "the sha256 in its header, but got '3'"),
    "another hash": (telling(sha256='"0"'), "content that its hash fits, but got another content"),
    "another prompt": (telling(prompt='"a dog"'), "content that its hash fits"),
    "another latent": (holding(latents=torch.zeros(6, 2, 4, 3, 5)), "content that its hash fits"),
    "one tensor more": (
        signed(holding(other=torch.zeros(3))),
        r"tensors sigmas, latents and extras.<name>, but got 'other'",
    ),
    "an extra without name": (
        signed(holding(**{"extras.": torch.zeros(5)})),
        "name of an extra as one plain word",
    ),
    "one field more": (telling(colour='"red"'), "a header of version 2, but got one with 'colour'"),
    "an older version's number": (telling(version="1"), "a header of version 1, but got one with"),
    "correction without name": (
        telling(correction='{"name": 1, "options": {}}'),
        "a correction's name and options",
    ),
    **{
        f"no {name}": (telling(**{name: None}), f"the {name} in its header, but got none")
        for name in storage._FIELDS["2"]
    },
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_damaged_file_is_refused_with_its_reason(path: pathlib.Path, what: str) -> None:
    spoil, message = SPOILT[what]
    storage.write(path, whole())
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(PivotError, match=message) as caught:
        storage.read(path)
    assert caught.value.where


def test_nothing_is_read_of_a_file_that_is_none(path: pathlib.Path) -> None:
    """A large file of another kind costs its header."""
    with path.open("wb") as file:
        file.write(plain(b""))
        file.truncate(1 << 36)  # holes: more than memory holds
    with pytest.raises(PivotError, match="a file of another kind in kept.safetensors"):
        storage.read(path)


ARE = ["cut in its tensors", "newer", "no latents", "no prompt", "NaN in latents"]
ARE_NOT = [
    "empty",
    "five bytes",
    "oversized header",
    "picture",
    "no json",
    "a list",
    "weights",
    "another format",
]


@pytest.mark.parametrize("what", [None, *ARE, *ARE_NOT])
def test_a_file_is_known_by_its_header(path: pathlib.Path, what: str | None) -> None:
    storage.write(path, whole())
    if what is not None:
        path.write_bytes(SPOILT[what][0](path.read_bytes()))
    assert storage.is_inversion(path) == (what not in ARE_NOT)


def test_what_cannot_be_opened_is_no_inversion(tmp_path: pathlib.Path) -> None:
    assert not storage.is_inversion(tmp_path)
    assert not storage.is_inversion(tmp_path / "missing.safetensors")


# -- mutated files, older files
# ----------------------------------------------------------------------------------------


def mutated(data: bytes, random: Random) -> bytes:
    """One byte is another; of every second file, one of the header, which is short."""
    length = 8 + int.from_bytes(data[:8], "little")
    place = random.randrange(length if random.random() < 0.5 else len(data))
    change = 1 << random.randrange(8) if random.random() < 0.5 else random.randrange(1, 256)
    return data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]


def test_no_mutated_file_loads_with_another_content(path: pathlib.Path) -> None:
    storage.write(path, whole())
    data, exact = path.read_bytes(), storage.read(path)
    random, refused = Random(0), 0
    for _ in range(1000):
        path.write_bytes(mutated(data, random))
        try:
            stored = storage.read(path)
        except PivotError:
            refused += 1
        else:
            assert unequal(exact.trajectory, stored.trajectory) == []
            assert (stored.half, stored.pack) == (exact.half, exact.pack)
    assert refused > 900  # what is left changes how the header is written, and not what it says


OLDER = pathlib.Path(__file__).with_name("files") / "inversion_v1.safetensors"


def test_a_file_of_version_1_loads_as_it_was_saved() -> None:
    """The file was written by the pack before there was a version 2."""
    expected = Trajectory(
        torch.tensor([0.03, 1.5, 14.6], dtype=torch.float64),
        noise(0, 3, 2, 4, 2, 3).float(),
        "fixed_point",
        "a model",
        "a text",
        "un chat “gris”",
        7.5,
        {"nulls": noise(1, 2, 2, 3, 4).float()},
        recipe_of(NullText(True, "source", 7.5, "mark")),
    )
    stored = storage.read(OLDER)
    assert unequal(expected, stored.trajectory) == []
    assert correction_for(stored.trajectory) == NullText(True, "source", 7.5, "mark")
    assert not stored.half


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (telling(sha256='"0"'), "a header of version 1, but got one with 'sha256'"),
        (telling(version="2"), "the stepper in its header, but got none"),
        (holding(nulls=torch.zeros(3, 2, 3, 4)), r"extra nulls as \[2, \.\.\.\]"),
        (with_nan("nulls", float("nan")), "finite numbers in its extras.nulls"),
    ],
)
def test_a_damaged_file_of_version_1_is_refused(
    path: pathlib.Path, spoil: Spoil, message: str
) -> None:
    path.write_bytes(spoil(OLDER.read_bytes()))
    with pytest.raises(PivotError, match=message):
        storage.read(path)


# -- many savers
# ----------------------------------------------------------------------------------------

SAVES = 20


def saves(folder: pathlib.Path, name: str) -> list[str]:
    """The names that a process gets for its saves, which begin when the other process is there."""
    (folder / f"ready {name}").touch()
    while len(list(folder.glob("ready *"))) < 2:
        time.sleep(0.001)
    ones = [
        Trajectory(SIGMAS[:2], torch.full((2, 1, 4, 2, 2), float(i)), "ddim", "a model", name)
        for i in range(SAVES)
    ]
    return [storage.write_numbered(folder, "kept", one).name for one in ones]


def test_two_processes_that_save_at_once_lose_nothing(tmp_path: pathlib.Path) -> None:
    context = multiprocessing.get_context("fork")  # a new process would import torch for seconds
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        answers = [pool.submit(saves, tmp_path, name) for name in "ab"]
        names = {name: answer.result(60) for name, answer in zip("ab", answers, strict=True)}
    for name, files in names.items():
        for i, file in enumerate(files):
            back = storage.read(tmp_path / file).trajectory
            assert back.conditioning == name and float(back.noise.mean()) == i
    files = {path.name for path in tmp_path.iterdir() if not path.name.startswith("ready")}
    assert files == {f"kept_{number:05}_.safetensors" for number in range(1, 2 * SAVES + 1)}


def no_links(source: Any, target: Any) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_a_save_takes_the_first_free_number_with_links_and_without(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    taken = tmp_path / "kept_00003_.safetensors"
    taken.write_bytes(b"somebody's")
    paths = [storage.write_numbered(tmp_path, "kept", whole(), first=2) for _ in range(3)]
    assert [path.name[5:10] for path in paths] == ["00002", "00004", "00005"]
    assert all(unequal(whole(), storage.read(path).trajectory) == [] for path in paths)
    assert taken.read_bytes() == b"somebody's"
    assert sorted(tmp_path.iterdir()) == sorted([taken, *paths])
    with pytest.raises(PivotError, match="kept_00003_.safetensors, which exists"):
        storage.write(taken, whole())


def test_a_save_clears_what_killed_saves_left_and_nothing_else(tmp_path: pathlib.Path) -> None:
    old, young, other = (tmp_path / f".{name}.part" for name in ("0" * 32, "f" * 32, "download"))
    folder = tmp_path / f".{'1' * 32}.part"
    folder.mkdir()
    for path, age in ((old, 3700), (young, 3500), (other, 10**6), (folder, 10**6)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    storage.write_numbered(tmp_path, "kept", trajectory())
    assert set(tmp_path.iterdir()) == {young, other, folder, tmp_path / "kept_00001_.safetensors"}


def test_a_folder_that_cannot_be_listed_is_no_reason_to_fail(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def glob(folder: pathlib.Path, pattern: str) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(pathlib.Path, "glob", glob)
    storage.clear(tmp_path)
    assert storage.write_numbered(tmp_path, "kept", trajectory()).exists()


def killed_save(folder: pathlib.Path) -> None:
    """A process that is killed while it saves."""
    pid = os.fork()  # a new process would import torch for seconds
    if pid == 0:
        with storage._part(folder, b"x"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def parts(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob("*") if storage._PART.fullmatch(path.name)]


@pytest.mark.skipif(storage.fcntl is None, reason="without locks only age tells")
def test_what_a_killed_save_leaves_goes_at_once_and_a_running_one_stays(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "deep" / "er"
    deep.mkdir(parents=True)
    with storage._part(deep, b"x") as running:
        killed_save(tmp_path)
        killed_save(deep)
        assert len(parts(tmp_path)) == 3
        storage.write_numbered(tmp_path, "kept", trajectory())
        assert len(parts(tmp_path)) == 2
        monkeypatch.setattr("platform.node", lambda: "another machine")
        storage.clear(tmp_path)
        assert len(parts(tmp_path)) == 2
        monkeypatch.undo()
        storage.clear(tmp_path)
        assert parts(tmp_path) == [running]
    assert parts(tmp_path) == []


def test_a_save_begins_again_where_its_part_was_cleared_before_it_was_locked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, cleared = storage._lock, list[pathlib.Path]()

    def late(file: Any) -> bool:
        if not cleared:
            cleared.append(pathlib.Path(file.name))
            cleared[0].unlink()
        return lock(file)

    monkeypatch.setattr(storage, "_lock", late)
    path = storage.write_numbered(tmp_path, "kept", whole())
    assert cleared and unequal(whole(), storage.read(path).trajectory) == []


def test_a_prompt_with_half_of_a_character_is_neither_written_nor_read(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = whole(prompt="a cat \ud83d")
    with pytest.raises(PivotError, match="a prompt of whole characters, but got half of one"):
        storage.write(path, lone)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "check_text", lambda *args: None)
        storage.write(path, lone)
    with pytest.raises(PivotError, match=r"a prompt of whole characters, .* in kept\.safetensors"):
        storage.read(path)
