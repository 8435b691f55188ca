"""`make demo`: edits one picture in a real ComfyUI and shows what each part of the work
contributes.

The starter workflow is posted to a headless server; then the same workflow with branches for
comparison, for which the server keeps the inversion. Writes `out/demo/grid.png` and
`out/demo/report.json`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from tools import install
from tools.client import Client, Event, Graph, Result, ServerError
from tools.grid import Cell, Sheet
from tools.pictures import on_white, psnr, to_array, to_image
from tools.server import Server, ServerFailed, stop_on_signals
from toy.reader import read
from toy.scenes import EXAMPLE, WORDS, Scene, scene_from_caption
from toy.scenes import SIZE as TOY_SIZE
from toy.scenes import kept as kept_pixels

STARTER = install.ROOT / "workflows" / "api" / "prompt_to_prompt.json"
OUT = install.ROOT / "out" / "demo"
SOURCE, SEED = EXAMPLE
TARGET = "a striped blue star at the left of a meadow"
PHOTO_SIZE = 512
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for files that are no pictures it can read."""
COMPARISONS = ("autoencoder", "reconstruction", "uncontrolled")


class DemoError(RuntimeError):
    """What was asked for cannot be done; the message is one line for the person at the terminal."""


# -- what to edit
# ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture, its prompts, and, of a drawn one, the scene it shows and the scene it should
    become."""

    picture: Image.Image
    source: str
    target: str
    checkpoint: str | None = None
    folder: pathlib.Path | None = None
    scene: Scene | None = None
    truth: Scene | None = None


def scene_job(source: str, target: str) -> Job:
    """A drawn scene, for which the true edit is known; DemoError if a prompt describes none."""
    try:
        scene, wanted = scene_from_caption(source, SEED), scene_from_caption(target, SEED)
    except ValueError as error:
        raise DemoError(f"{error}; for a picture of your own give IMAGE=") from error
    truth = scene.change(**{kind: getattr(wanted, kind) for kind in WORDS})
    return Job(to_image(scene.render()), source, target, scene=scene, truth=truth)


def photo_job(options: argparse.Namespace) -> Job:
    """The user's own picture, cropped to a square; DemoError if it or its prompts are missing."""
    if not options.source or not options.target:
        raise DemoError(
            'IMAGE= needs both prompts: SOURCE="what it shows" TARGET="what it should show"'
        )
    size = options.size or (PHOTO_SIZE if options.checkpoint else TOY_SIZE)
    if size < 64 or size % 8:
        raise DemoError(f"expected SIZE to be a multiple of 8 and at least 64, got {size}")
    try:
        with Image.open(options.image) as opened:
            whole = on_white(opened)
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        raise DemoError(f"cannot read the picture {options.image}: {reason}") from error
    picture = ImageOps.fit(whole, (size, size), Image.Resampling.LANCZOS)
    return Job(picture, options.source, options.target)


def make_job(options: argparse.Namespace) -> Job:
    """The job that the command line asks for."""
    if options.checkpoint and not options.image:
        raise DemoError("CHECKPOINT= needs a picture: IMAGE=photo.png")
    if options.image:
        job = photo_job(options)
    else:
        job = scene_job(options.source or SOURCE, options.target or TARGET)
    if not options.checkpoint:
        return job
    path = pathlib.Path(options.checkpoint).expanduser()
    if path.is_absolute() and not path.is_file():
        raise DemoError(f"no checkpoint file at {path}")
    if path.is_file():
        return dataclasses.replace(job, checkpoint=path.name, folder=path.absolute().parent)
    return dataclasses.replace(job, checkpoint=options.checkpoint)


# -- the two prompts
# ---------------------------------------------------------------------------------------


def only(graph: Graph, node_class: str) -> str:
    """The id of the one node of this class; DemoError if there is not exactly one."""
    found = [node for node, entry in graph.items() if entry["class_type"] == node_class]
    if len(found) != 1:
        raise DemoError(f"expected one {node_class} in {STARTER.name}, found {len(found)}")
    return found[0]


def edit_graph(job: Job, image: str) -> Graph:
    """The starter workflow with the uploaded picture, the prompts and the model filled in."""
    if not STARTER.is_file():
        raise DemoError(f"the starter workflow is missing: {STARTER}")
    graph: Graph = json.loads(STARTER.read_text())
    graph[only(graph, "LoadImage")]["inputs"]["image"] = image
    graph[only(graph, "PivotSourcePrompt")]["inputs"]["prompt"] = job.source
    graph[only(graph, "PivotPromptPair")]["inputs"]["target_prompt"] = job.target
    if job.checkpoint:
        loader = graph[only(graph, "PivotToyModel")]
        loader |= {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": job.checkpoint}}
        loader["_meta"] = {"title": "Load Checkpoint"}
    return graph


def comparison_graph(graph: Graph) -> Graph:
    """The same workflow plus one saved picture for each of COMPARISONS."""
    graph = copy.deepcopy(graph)
    sampler, control = only(graph, "PivotEditSampler"), only(graph, "PivotPromptToPrompt")
    encode = only(graph, "VAEEncode")
    plain = copy.deepcopy(graph[sampler])
    plain["inputs"]["model"] = graph[control]["inputs"]["model"]
    plain["_meta"] = {"title": "Edit Sampler, no attention control"}
    graph["plain"] = plain
    latents = {
        "autoencoder": [encode, 0],
        "reconstruction": [sampler, 1],
        "uncontrolled": ["plain", 0],
    }
    for name, latent in latents.items():
        inputs = {"samples": latent, "vae": graph[encode]["inputs"]["vae"]}
        graph[f"{name}_decode"] = {"class_type": "VAEDecode", "inputs": inputs}
        inputs = {"images": [f"{name}_decode", 0], "filename_prefix": f"demo/{name}"}
        graph[name] = {"class_type": "SaveImage", "inputs": inputs}
    return graph


def check_checkpoint(client: Client, job: Job) -> None:
    """Raise DemoError listing what there is if the server does not have the job's checkpoint."""
    if job.checkpoint is None:
        return
    declared = client.object_info("CheckpointLoaderSimple")["CheckpointLoaderSimple"]["input"][
        "required"
    ]
    kind, *rest = declared["ckpt_name"]
    names = kind if isinstance(kind, list) else rest[0]["options"]
    if job.checkpoint not in names:
        offered = ", ".join(names) or "none at all"
        raise DemoError(
            f"no checkpoint {job.checkpoint}; the server offers {offered}; a path works too"
        )


class Progress:
    """Shows a run in the terminal: a live bar for the node at work, a line for each that took a
    while."""

    def __init__(self, graph: Graph) -> None:
        self.titles = {
            node: entry.get("_meta", {}).get("title", entry["class_type"])
            for node, entry in graph.items()
        }
        self.live = sys.stdout.isatty()
        self.node: str | None = None
        self.steps = ""
        self.began = 0.0

    def __call__(self, event: Event) -> None:
        """Take one message of the server."""
        if event.kind == "executing":
            self._finish()
            self.node, self.steps, self.began = event.node, "", time.monotonic()
        elif event.kind == "progress" and event.node == self.node:
            self._step(event.data["value"], event.data["max"])

    def _step(self, value: int, most: int) -> None:
        self.steps = f"{value}/{most}"
        if self.live:
            done = round(24 * value / max(most, 1))
            print(f"\r  {self._title():36} [{'#' * done:-<24}] {self.steps:>7}", end="", flush=True)

    def _title(self) -> str:
        return str(self.titles.get(self.node or "", self.node))

    def _finish(self) -> None:
        seconds = time.monotonic() - self.began
        if self.node is None or (not self.steps and seconds < 0.5):
            return
        start, end = ("\r", " " * 28) if self.live else ("", "")
        print(
            f"{start}  {self._title():36} {self.steps:>7} {seconds:6.1f} s{end}".rstrip(" "),
            flush=True,
        )


def run_both(client: Client, job: Job) -> tuple[dict[str, Image.Image], dict[str, Any]]:
    """Post the starter and then the comparison; returns the pictures by name and facts for the
    report."""
    check_checkpoint(client, job)
    graph = edit_graph(job, client.upload(job.picture, "pivot_demo.png"))
    began = time.monotonic()
    first = client.run(graph, Progress(graph))
    middle = time.monotonic()
    print("the same with branches for comparison:")
    wide = comparison_graph(graph)
    second = client.run(wide, Progress(wide))
    ended = time.monotonic()
    inversion = only(graph, "PivotDDIMInversion")
    print(f"  {cache_line(second, inversion)}")
    pictures = {name: saved(second, name) for name in COMPARISONS}
    pictures |= {"source": job.picture, "edit": saved(first, only(graph, "PivotCompare"))}
    facts = {
        "edit_seconds": round(middle - began, 2),
        "comparison_seconds": round(ended - middle, 2),
        "inversion_cached": inversion in second.cached and inversion not in second.executed,
        "cached_nodes": [wide[node]["class_type"] for node in second.cached],
        "executed_nodes": [wide[node]["class_type"] for node in second.executed],
    }
    return pictures, facts


def cache_line(result: Result, inversion: str) -> str:
    """What the server said about the inversion in the second prompt."""
    if inversion in result.executed:
        return "the inversion was run again"
    return (
        f"the inversion was not run again ({len(result.cached)} nodes came from the server's cache)"
    )


def saved(result: Result, node: str) -> Image.Image:
    """The picture a node saved; DemoError if it saved none."""
    if not result.images.get(node):
        raise DemoError(f"node {node} of the demo's workflow saved no picture")
    return result.images[node][0]


# -- figures
# -----------------------------------------------------------------------------------------------


def decibels(one: Image.Image, other: Image.Image, where: np.ndarray | None = None) -> float:
    """PSNR of two pictures, to a hundredth of a dB."""
    return round(psnr(to_array(one), to_array(other), where), 2)


def kept(job: Job) -> np.ndarray | None:
    """Weights [H, W] of the pixels the edit must leave alone, or None where that is unknown."""
    if job.scene is None or job.truth is None:
        return None
    weights = kept_pixels(job.scene, job.truth)
    return weights if weights.sum() >= 1.0 else None


def judge(job: Job, edit: Image.Image) -> dict[str, Any]:
    """An edit against the source where nothing should change, and against the true edit. None:
    unknown."""
    where = kept(job)
    return {
        "background_psnr": None if where is None else decibels(edit, job.picture, where),
        "truth_psnr": None if job.truth is None else decibels(edit, to_image(job.truth.render())),
        "edit_success": None if job.truth is None else read(to_array(edit)).matches(job.truth),
    }


def figures(job: Job, pictures: dict[str, Image.Image]) -> dict[str, Any]:
    """The report's figures; dB, or None where the true edit is unknown."""
    return {
        "vae_psnr": decibels(job.picture, pictures["autoencoder"]),
        "reconstruction_psnr": decibels(job.picture, pictures["reconstruction"]),
        **judge(job, pictures["edit"]),
        "without_attention_control": judge(job, pictures["uncontrolled"]),
    }


# -- results
# -----------------------------------------------------------------------------------------------


def cells(job: Job, pictures: dict[str, Image.Image], report: dict[str, Any]) -> list[Cell]:
    """The sheet's cells with their figures."""
    plain, uncontrolled = "edit without attention control", report["without_attention_control"]
    found = [
        Cell(pictures["source"], "source"),
        Cell(pictures["autoencoder"], "autoencoder", closeness(report["vae_psnr"], "source")),
        Cell(
            pictures["reconstruction"],
            "reconstruction",
            closeness(report["reconstruction_psnr"], "source"),
        ),
        Cell(pictures["uncontrolled"], plain, closeness(uncontrolled["truth_psnr"])),
        Cell(pictures["edit"], "edit", closeness(report["truth_psnr"])),
    ]
    if job.truth is not None:
        found.append(Cell(to_image(job.truth.render()), "true edit", "the scene drawn again"))
    return found


def closeness(decibel: float | None, to: str = "true edit") -> str:
    """The line below a picture."""
    return "" if decibel is None else f"{decibel:.1f} dB to the {to}"


def write(job: Job, pictures: dict[str, Image.Image], report: dict[str, Any]) -> None:
    """Write the sheet and the report."""
    OUT.mkdir(parents=True, exist_ok=True)
    sheet = Sheet(max(256, min(512, job.picture.width)))
    sheet.draw(cells(job, pictures, report), job.source, job.target).save(OUT / "grid.png")
    (OUT / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def show(job: Job, report: dict[str, Any]) -> None:
    """Print the figures and where the picture is."""
    names = (
        "vae_psnr",
        "reconstruction_psnr",
        "background_psnr",
        "truth_psnr",
        "edit_success",
        "seconds",
    )
    for name in names:
        value = report[name]
        text = (
            "not known" if value is None else str(value) + (" dB" if name.endswith("psnr") else "")
        )
        print(f"  {name:22}{text}")
    if job.truth is None:
        print("  (only drawn scenes have a known true edit and a mask of what must not change)")
    print(f"picture: {OUT / 'grid.png'}\nreport:  {OUT / 'report.json'}")


def run(options: argparse.Namespace) -> None:
    """The whole demo."""
    began = time.monotonic()
    job = make_job(options)
    print(f"source: {job.source}\ntarget: {job.target}\nstarting ComfyUI ...", flush=True)
    folders = (job.folder,) if job.folder else ()
    with Server(options.port, checkpoints=folders) as server, Client(server.url) as client:
        system = client.system_stats()["system"]
        print(f"ComfyUI {system['comfyui_version']} at {server.url}", flush=True)
        pictures, facts = run_both(client, job)
    report: dict[str, Any] = {
        "source": job.source,
        "target": job.target,
        "checkpoint": job.checkpoint or "toy",
    }
    report |= figures(job, pictures)
    report |= {"seconds": round(time.monotonic() - began, 1), **facts}
    report["versions"] = {
        key: system[key] for key in ("comfyui_version", "pytorch_version", "python_version")
    }
    write(job, pictures, report)
    show(job, report)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; the Makefile hands its variables over in the environment."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo", description="Edit one picture in ComfyUI."
    )
    for name in ("image", "source", "target", "checkpoint"):
        parser.add_argument(f"--{name}", default=os.environ.get(name.upper()) or None)
    for name in ("size", "port"):
        parser.add_argument(f"--{name}", type=int, default=os.environ.get(name.upper()) or 0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 after an error, which is printed without a traceback."""
    stop_on_signals()
    below_bar = "\n" if sys.stdout.isatty() else ""
    try:
        run(parse(arguments))
    except (DemoError, ServerError, ServerFailed, install.InstallError, OSError) as error:
        print(f"{below_bar}error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{below_bar}stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
