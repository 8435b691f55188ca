"""Starts a headless ComfyUI with this pack in it, on loopback, and always stops it again.

with Server() as server:
    print(server.url)

`python -m tools.server` (`make comfy`) keeps one running for a person, with its web page.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
import urllib.request

from tools import install

RUN = install.ROOT / ".run"
READY_SECONDS = 180.0
STOP_SECONDS = 10.0
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
MODEL_FOLDERS = ("checkpoints", "vae", "text_encoders", "diffusion_models", "loras", "embeddings")


class ServerFailed(RuntimeError):
    """The server could not be started or has died; the message says why and ends with its last
    output."""


def free_port(port: int = 0) -> int:
    """`port` if nothing listens there (0: any free one); raises ServerFailed if it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ServerFailed(
                f"port {port} cannot be used ({error}); choose another with PORT="
            ) from error
        return int(probe.getsockname()[1])


def has_accelerator(python: pathlib.Path) -> bool:
    """Whether the torch of this Python sees a CUDA (or ROCm) device."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def end_with_parent() -> None:
    """Runs in the new process: let Linux end it when the one that started it is killed outright."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Server:
    """A ComfyUI process with a base folder of its own; a context manager.

    Args:
        port: 0 takes a free one.
        base: where its folders live; by default a temporary one below `.run/`, deleted at the end.
        checkpoints: folders whose model files the server offers besides the user's own.
        host: a ComfyUI folder; by default `install.host_path()`.
        cpu: None looks for a CUDA device.
        flags: more of ComfyUI's command line, such as `--cache-none`.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        base: pathlib.Path | None = None,
        checkpoints: tuple[pathlib.Path, ...] = (),
        host: pathlib.Path | None = None,
        cpu: bool | None = None,
        flags: tuple[str, ...] = (),
    ) -> None:
        self.host = host or install.host_path()
        self.python = install.user_python()
        self.port = free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.checkpoints = checkpoints
        self._temporary = base is None
        self._base = base
        self._cpu = cpu
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> pathlib.Path:
        """The folder that holds the server's models, input and output."""
        if self._base is None:
            RUN.mkdir(exist_ok=True)
            self._base = pathlib.Path(tempfile.mkdtemp(dir=RUN, prefix="server-"))
        return self._base

    @property
    def log(self) -> pathlib.Path:
        """The file with everything the server has printed."""
        return self.base / "server.log"

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers; raises ServerFailed if it does not."""
        self._make_folders()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.host,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        self._wait_until_ready()

    def stop(self) -> None:
        """Stop the process if it runs, politely at first, and delete a temporary base folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._temporary and self._base is not None:
            shutil.rmtree(self._base, ignore_errors=True)
            self._base = None

    @property
    def memory(self) -> float | None:
        """MB of memory that the process holds; None where the system does not say (not Linux)."""
        status = pathlib.Path(f"/proc/{self._process.pid if self._process else 0}/status")
        found = re.search(r"VmRSS:\s*(\d+) kB", status.read_text()) if status.exists() else None
        return int(found[1]) / 1024.0 if found else None

    def tail(self, lines: int = 15) -> str:
        """The last lines the server has printed."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def check_alive(self) -> None:
        """Raise ServerFailed with the end of its output if the process has ended."""
        if self._process is not None and self._process.poll() is not None:
            code = self._process.returncode
            raise ServerFailed(f"ComfyUI ended with code {code}. Its last output:\n{self.tail()}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5):  # noqa: S310 (our own URL)
                    return
            except OSError:
                time.sleep(0.2)
        raise ServerFailed(
            f"no answer in {READY_SECONDS:.0f} s. ComfyUI's last output:\n{self.tail()}"
        )

    def _make_folders(self) -> None:
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / "pivot-edit"
        if not link.is_symlink():
            link.symlink_to(install.ROOT, target_is_directory=True)
        self._model_paths().write_text(json.dumps(self._model_folders(), indent=1))  # JSON is YAML

    def _model_paths(self) -> pathlib.Path:
        return self.base / "extra_model_paths.yaml"

    def _model_folders(self) -> dict[str, dict[str, str]]:
        folders = {"user": {name: str(self.host / "models" / name) for name in MODEL_FOLDERS}}
        for index, folder in enumerate(self.checkpoints):
            folders[f"given_{index}"] = {"checkpoints": str(folder)}
        return folders

    def _command(self) -> list[str]:
        python = self.python or pathlib.Path(sys.executable)
        cpu = self._cpu if self._cpu is not None else not has_accelerator(python)
        flags = {
            "--listen": "127.0.0.1",
            "--port": str(self.port),
            "--base-directory": str(self.base),
            "--database-url": "sqlite:///:memory:",
            "--extra-model-paths-config": str(self._model_paths()),
        }
        switches = ["--disable-api-nodes", "--disable-auto-launch", "--dont-print-server"]
        pairs = [part for flag in flags.items() for part in flag]
        return [
            str(python),
            "main.py",
            *pairs,
            *switches,
            *(["--cpu"] if cpu else []),
            *self._flags,
        ]

    def _environment(self) -> dict[str, str]:
        environment = {
            "OMP_WAIT_POLICY": "PASSIVE",
            **os.environ,
            "PYTHONUNBUFFERED": "1",
        }  # share the cores
        if self.python is None and install.torchaudio_missing():
            paths = [str(install.SHIMS), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        return environment


def stop_on_signals() -> None:
    """Let a termination request unwind the program, so that it stops its server like after
    Ctrl-C."""

    def stop(number: int, frame: types.FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def put_example(path: pathlib.Path) -> None:
    """Draw the picture that the shipped workflow names and describes, unless there is one
    already."""
    import numpy as np
    from PIL import Image

    from toy.scenes import EXAMPLE, scene_from_caption

    if not path.exists():
        picture = scene_from_caption(*EXAMPLE).render()
        Image.fromarray((picture * 255.0).round().astype(np.uint8)).save(path)


def main() -> int:
    """`make comfy`: run the server until Ctrl-C; its folders stay in `.run/comfy`."""
    parser = argparse.ArgumentParser(prog="python -m tools.server")
    parser.add_argument("--port", type=int, default=8188)
    options = parser.parse_args()
    stop_on_signals()
    try:
        with Server(options.port, base=RUN / "comfy") as server:
            put_example(server.base / "input" / "example.png")
            print(f"ComfyUI with Pivot Edit: {server.url} (Ctrl-C stops it)", flush=True)
            print(f"its input and output folders: {server.base}", flush=True)
            while True:
                time.sleep(1.0)
                server.check_alive()
    except (ServerFailed, install.InstallError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped")
        return 0


if __name__ == "__main__":
    sys.exit(main())
