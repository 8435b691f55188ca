"""Edits by the API, judged and kept: jobs, workers that have ComfyUI servers make them, a line for
each picture.

A job is a case under one method and any controls. Every picture and its line are kept in a folder;
a second run makes only what is missing or was set otherwise.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bench.cases import HELD_OUT, KINDS, Edit
from bench.graphs import (
    control_of,
    edit_graph,
    prepare_rows,
    rows_per_step,
    sampler_of,
    saved,
)
from bench.judge import judge
from bench.methods import Case, Settings, node
from bench.summary import LIMITS, key, read_lines
from tools import install
from tools.client import Client, Graph, JobFailed, Result, ServerError
from tools.pack import digest
from tools.pictures import psnr, to_array, to_image
from tools.server import Server, ServerFailed, has_accelerator, stop_on_signals
from toy.scenes import SIZE, kept

CELL = 8  # pixels of a latent's side


@dataclasses.dataclass(frozen=True)
class Job:
    """A case under one method and some controls; method `autoencoder` makes the limits. first:
    where its scenes come from, by default those that are held out."""

    kind: str
    index: int
    method: str
    controls: tuple[tuple[str, Settings], ...] = ()
    first: int = HELD_OUT

    @property
    def case(self) -> str:
        """The case's name."""
        return f"{self.kind}-{self.index:03d}"

    @property
    def edit(self) -> Edit:
        """What is edited into what."""
        return KINDS[self.kind].cases(self.index + 1, self.first)[self.index]

    def without(self, done: set[str]) -> Job | None:
        """The job's part that is not done, if any."""
        if self.method == "autoencoder":
            return None if self.keys <= done else self
        left = [one for one in self.controls if self._key(*one) not in done]
        return dataclasses.replace(self, controls=tuple(left)) if left else None

    @property
    def keys(self) -> set[str]:
        """What its pictures are known by."""
        if self.method == "autoencoder":
            return {key(self.case, self.method, name, {}) for name in LIMITS}
        return {self._key(*one) for one in self.controls}

    def _key(self, name: str, settings: Settings) -> str:
        return key(self.case, self.method, control_of(name), dataclasses.asdict(settings))


# -- running it
# --------------------------------------------------------------------------------------------


class Uploads:
    """Pictures on a server, each brought there once: jobs that are queued may be reading it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._there: dict[str, str] = {}

    def __call__(self, picture: np.ndarray, name: str) -> str:
        """The name for a LoadImage node of a picture, float [H, W, 3] in [0, 1]."""
        if name not in self._there:
            self._there[name] = self.client.upload(to_image(picture), name)
        return self._there[name]


def graph_of(job: Job, upload: Uploads) -> Graph:
    """The job's graph, its pictures uploaded."""
    edit, name = job.edit, f"pivot_{job.case}"
    case = Case(
        upload(edit.scene.render(), f"{name}.png"),
        edit.source,
        edit.target,
        *_words(job),
        edit.weights,
    )
    if job.method != "autoencoder":
        return edit_graph(case, job.method, dict(job.controls))
    truth = upload(edit.truth.render(), f"{name}_true.png")
    mask = upload(np.repeat(changeable(edit)[..., None], 3, -1), f"{name}_mask.png")
    return limits_graph(case.picture, truth, mask)


def _words(job: Job) -> tuple[str, str]:
    """Words to blend at and words to keep, for Local Blend."""
    words = job.edit.object_words
    return (words, "") if KINDS[job.kind].at_object else ("", words)


def changeable(edit: Edit) -> np.ndarray:
    """1 in the latent's cells where the true edit changes a pixel, and in their neighbours, [H, W]
    of the picture."""
    cells = (
        (kept(edit.scene, edit.truth) < 0.5)
        .reshape(SIZE // CELL, CELL, SIZE // CELL, CELL)
        .any((1, 3))
    )
    wide = np.pad(cells, 1)
    around = np.max(
        [wide[y : y + len(cells), x : x + len(cells)] for y in range(3) for x in range(3)], axis=0
    )
    return np.kron(around, np.ones((CELL, CELL))).astype(np.float32)


def limits_graph(picture: str, truth: str, mask: str) -> Graph:
    """What the autoencoder makes of the source, of the true edit, and of the latter's latents
    within a mask."""
    graph = {
        "model": node("PivotToyModel"),
        "mask": node("LoadImageMask", image=mask, channel="red"),
        "both": node(
            "LatentCompositeMasked",
            destination=["source.latent", 0],
            source=["truth.latent", 0],
            x=0,
            y=0,
            resize_source=False,
            mask=["mask", 0],
        ),
    }
    for name, image in (("source", picture), ("truth", truth)):
        graph[f"{name}.image"] = node("LoadImage", image=image)
        graph[f"{name}.latent"] = node("VAEEncode", pixels=[f"{name}.image", 0], vae=["model", 2])
    for name, latent in (
        ("ceiling", "source.latent"),
        ("true", "truth.latent"),
        ("masked", "both"),
    ):
        graph |= saved(name, [latent, 0], "pivot/limits")
    return graph


@dataclasses.dataclass(frozen=True)
class Done:
    """A job's end: its graph, and what that gave or how it failed."""

    job: Job
    graph: Graph
    result: Result | JobFailed


class Workers:
    """Threads with a ComfyUI server each that take jobs by the case."""

    def __init__(self, jobs: Iterable[list[Job]], count: int) -> None:
        self.jobs = iter(jobs)
        self.count = count
        self.lock = threading.Lock()
        self.results: queue.Queue[Done | Exception | None] = queue.Queue()
        self.versions: dict[str, str] = {}

    def run(self) -> Iterator[Done]:
        """What every job gave, as it comes; its servers end with it, however it ends. What ends a
        worker raises."""
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(Server()) for _ in range(self.count)]
            for server in servers:
                threading.Thread(target=self._work, args=(server,), daemon=True).start()
            running = len(servers)
            while running:
                came = self.results.get()
                if isinstance(came, Exception):
                    raise came
                if came is None:
                    running -= 1
                else:
                    yield came

    def _work(self, server: Server) -> None:
        try:
            with Client(server.url) as client:
                system = client.system_stats()
                self.versions = {
                    key: system["system"][key] for key in ("comfyui_version", "pytorch_version")
                }
                self.versions["device"] = system["devices"][0]["name"]
                posted: collections.deque[tuple[Job, Graph]] = collections.deque()
                for result in client.run_all(self._graphs(client, posted)):
                    self.results.put(Done(*posted.popleft(), result))
            self.results.put(None)
        except Exception as error:
            self.results.put(error)

    def _graphs(
        self, client: Client, posted: collections.deque[tuple[Job, Graph]]
    ) -> Iterator[Graph]:
        upload = Uploads(client)
        while True:
            with self.lock:
                jobs = next(self.jobs, None)
            if jobs is None:
                return
            for job in jobs:
                posted.append((job, graph_of(job, upload)))
                yield posted[-1][1]


# -- what was made
# -----------------------------------------------------------------------------------------


def lines_of(
    job: Job, graph: Graph, result: Result, folder: pathlib.Path
) -> Iterator[dict[str, Any]]:
    """A line for every picture of a job, which is judged and kept."""
    saved = LIMITS if job.method == "autoencoder" else {name: name for name, _ in job.controls}
    settings = dict(job.controls)
    for name, output in saved.items():
        picture, own = result.images[output][0], settings.get(name)
        line = {
            "case": job.case,
            "kind": job.kind,
            "method": job.method,
            "control": control_of(name),
        }
        line |= {"settings": dataclasses.asdict(own) if own else {}, "pack": digest()}
        line["picture"] = picture_name(line)
        keep(picture, folder / line["picture"])
        found = judge(job.edit, to_array(picture))
        line |= {"edit_success": found.success, **dataclasses.asdict(found)}
        yield line | (
            costs(job.method, own.steps, name, graph, result)
            if own
            else _ceiling(job.edit, picture)
        )


def _ceiling(edit: Edit, picture: Image.Image) -> dict[str, float]:
    return {
        "ceiling_psnr": psnr(to_array(picture), edit.scene.render(), kept(edit.scene, edit.truth))
    }


def costs(method: str, steps: int, name: str, graph: Graph, result: Result) -> dict[str, Any]:
    """Rows and seconds, those of the sampler that runs for it; prepare_seconds are None where the
    server had the inversion from the job before."""
    report = result.texts.get("null_text.report", [""])[0]
    inverted, optimised = (result.seconds.get(node) for node in ("inversion", "null_text"))
    return {
        "rows_per_step": rows_per_step(result.texts[f"{name}.report"][0]),
        "prepare_rows": prepare_rows(method, steps, report),
        "seconds": result.seconds[sampler_of(graph, name)],
        "prepare_seconds": None if inverted is None else inverted + (optimised or 0.0),
        "null_text_seconds": optimised,
    }


def picture_name(line: dict[str, Any]) -> str:
    """Where a line's picture is kept: by method, control and a mark of its settings."""
    mark = hashlib.sha256(json.dumps(line["settings"]).encode()).hexdigest()[:8]
    return f"{line['method']}-{line['control'].replace(' ', '_')}-{mark}/{line['case']}.png"


def keep(picture: Image.Image, path: pathlib.Path) -> None:
    """Write a picture, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    picture.save(partial, "PNG")
    partial.rename(path)


# -- making what is missing
# --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Made:
    """What a run has made: with which versions and device (none if nothing was missing), and how
    many jobs failed."""

    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    failed: int = 0


def make(jobs: Sequence[Sequence[Job]], folder: pathlib.Path, name: str, servers: int = 0) -> Made:
    """Make what `folder/name` has no line of.

    servers: side by side; 0: two, or one on a GPU or a single core. Failed jobs are told, and the
    next run tries them again. What another version of the pack has made counts as made, and is
    told, too.
    """
    path, version = folder / name, digest()
    there = read_lines(path)
    done = {key(line["case"], line["method"], line["control"], line["settings"]) for line in there}
    if old := sum(line.get("pack") != version for line in there):
        print(
            f"{old} of {len(there)} pictures are from other versions of the pack; without {path} "
            "all are made anew"
        )
    left = [found for case in jobs if (found := _left(case, done))]
    count = sum(map(len, left))
    print(f"{name}: {count} jobs of {sum(map(len, jobs))} to do", flush=True)
    if not left:
        return Made()
    folder.mkdir(parents=True, exist_ok=True)
    drop_cut_off_line(path)
    workers = Workers(left, min(servers or default_servers(), len(left)))
    failed = 0
    with contextlib.closing(workers.run()) as results, path.open("a") as file:
        for number, one in enumerate(results, 1):
            if isinstance(one.result, JobFailed):
                failed += 1
                print(
                    f"FAILED {one.job.case} {one.job.method}: {one.result}",
                    file=sys.stderr,
                    flush=True,
                )
                continue
            file.writelines(
                json.dumps(line) + "\n" for line in lines_of(one.job, one.graph, one.result, folder)
            )
            file.flush()
            print(f"\r{number}/{count}", end="" if sys.stdout.isatty() else "\n", flush=True)
    return Made({**workers.versions, "servers": str(workers.count)}, failed)


def _left(case: Sequence[Job], done: set[str]) -> list[Job]:
    """What is not done of a case's jobs, each picture once."""
    found = []
    for job in case:
        if (left := job.without(done)) is not None:
            found.append(left)
            done = done | left.keys
    return found


def command(work: Callable[[], int]) -> int:
    """Run a bench's command line: 1 after an error, which is printed as one line, 130 after an
    interrupt; what was made is kept."""
    stop_on_signals()
    try:
        return work()
    except (ServerError, ServerFailed, install.InstallError, ImportError, OSError) as error:
        print(f"error: {error}; what was made is kept, run it again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was made is kept, run it again to go on", file=sys.stderr)
        return 130


def drop_cut_off_line(path: pathlib.Path) -> None:
    """Take back what a run that was killed within a line has written of it, lest the next line is
    lost, too."""
    if path.exists():
        text = path.read_bytes()
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def default_servers() -> int:
    """One on a GPU; else two, if there are two cores for them."""
    return 1 if has_accelerator(install.bench_python()) else min(2, os.cpu_count() or 1)
