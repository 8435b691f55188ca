"""Edits by the API, judged and kept: jobs, workers that have ComfyUI servers make them, a line for each picture.

A job is a case under one method and any controls. Every picture and its line are kept in a folder; a second run makes
only what is missing or was set otherwise.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from bench import install
from bench.cases import KINDS, Edit
from bench.client import Client, Graph, JobFailed, Result, ServerError
from bench.graphs import Case, Settings, control_of, edit_graph, node, prepare_rows, rows_per_step
from bench.judge import judge, kept, psnr, to_array, to_image
from bench.server import Server, ServerFailed, has_accelerator
from bench.summary import LIMITS, key, read_lines

CELL = 8  # pixels of a latent's side


@dataclasses.dataclass(frozen=True)
class Job:
    """A held-out case under one method and some controls; method `autoencoder` makes the limits."""

    kind: str
    index: int
    method: str
    controls: tuple[tuple[str, Settings], ...] = ()

    @property
    def case(self) -> str:
        """The case's name."""
        return f"{self.kind}-{self.index:03d}"

    @property
    def edit(self) -> Edit:
        """What is edited into what."""
        return KINDS[self.kind].cases(self.index + 1)[self.index]

    def without(self, done: set[str]) -> Job | None:
        """The job's part that is not done, if any."""
        if self.method == "autoencoder":
            return None if key(self.case, self.method, "round trip", {}) in done else self
        left = [one for one in self.controls if self._key(*one) not in done]
        return dataclasses.replace(self, controls=tuple(left)) if left else None

    def _key(self, name: str, settings: Settings) -> str:
        return key(self.case, self.method, control_of(name), dataclasses.asdict(settings))


# -- running it --------------------------------------------------------------------------------------------


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
    """1 in the latent's cells where the true edit changes a pixel, and in their neighbours, [H, W] of the picture."""
    cells = (kept(edit.scene, edit.truth) < 0.5).reshape(128 // CELL, CELL, 128 // CELL, CELL).any((1, 3))
    wide = np.pad(cells, 1)
    around = np.max([wide[y : y + len(cells), x : x + len(cells)] for y in range(3) for x in range(3)], axis=0)
    return np.kron(around, np.ones((CELL, CELL))).astype(np.float32)


def limits_graph(picture: str, truth: str, mask: str) -> Graph:
    """What the autoencoder makes of the source, of the true edit, and of the latter's latents within a mask."""
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
    for name, latent in (("ceiling", "source.latent"), ("true", "truth.latent"), ("masked", "both")):
        graph[f"{name}.decode"] = node("VAEDecode", samples=[latent, 0], vae=["model", 2])
        graph[name] = node("SaveImage", images=[f"{name}.decode", 0], filename_prefix=f"pivot/limits_{name}")
    return graph


class Workers:
    """Threads with a ComfyUI server each that take jobs by the case and give (job, result) in `results`."""

    def __init__(self, jobs: Iterable[list[Job]], count: int) -> None:
        self.jobs = iter(jobs)
        self.lock = threading.Lock()
        self.results: queue.Queue[tuple[Job, Result | JobFailed] | BaseException | None] = queue.Queue()
        self.versions: dict[str, str] = {}
        self.threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def run(self) -> Iterator[tuple[Job, Result | JobFailed]]:
        """What every job gave, as it comes. A server that ends raises, at once."""
        for thread in self.threads:
            thread.start()
        running = len(self.threads)
        while running:
            came = self.results.get()
            if isinstance(came, BaseException):
                raise came
            if came is None:
                running -= 1
            else:
                yield came

    def _work(self) -> None:
        try:
            with Server() as server, Client(server.url) as client:
                system = client.system_stats()
                self.versions = {key: system["system"][key] for key in ("comfyui_version", "pytorch_version")}
                self.versions["device"] = system["devices"][0]["name"]
                posted: collections.deque[Job] = collections.deque()
                for result in client.run_all(self._graphs(client, posted)):
                    self.results.put((posted.popleft(), result))
            self.results.put(None)
        except (ServerError, ServerFailed, install.InstallError, OSError) as error:
            self.results.put(error)

    def _graphs(self, client: Client, posted: collections.deque[Job]) -> Iterator[Graph]:
        upload = Uploads(client)
        while True:
            with self.lock:
                jobs = next(self.jobs, None)
            if jobs is None:
                return
            for job in jobs:
                posted.append(job)
                yield graph_of(job, upload)


# -- what was made -----------------------------------------------------------------------------------------


def lines_of(job: Job, result: Result, folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """A line for every picture of a job, which is judged and kept."""
    saved = LIMITS if job.method == "autoencoder" else {name: name for name, _ in job.controls}
    settings = dict(job.controls)
    for name, output in saved.items():
        picture, own = result.images[output][0], settings.get(name)
        line = {"case": job.case, "kind": job.kind, "method": job.method, "control": control_of(name)}
        line["settings"] = dataclasses.asdict(own) if own else {}
        line["picture"] = picture_name(line)
        keep(picture, folder / line["picture"])
        found = judge(job.edit, to_array(picture))
        line |= {"edit_success": found.success, **dataclasses.asdict(found)}
        yield line | (costs(job.method, own.steps, name, result) if own else _ceiling(job.edit, picture))


def _ceiling(edit: Edit, picture: Image.Image) -> dict[str, float]:
    return {"ceiling_psnr": psnr(to_array(picture), edit.scene.render(), kept(edit.scene, edit.truth))}


def costs(method: str, steps: int, name: str, result: Result) -> dict[str, Any]:
    """Rows and seconds; None where nothing was run for this: the server had the inversion from the job before, or the
    source comes back beside an edit."""
    report = result.texts.get("null_text.report", [""])[0]
    inverted, optimised = (result.seconds.get(node) for node in ("inversion", "null_text"))
    return {
        "rows_per_step": rows_per_step(result.texts[f"{name}.report"][0]),
        "prepare_rows": prepare_rows(method, steps, report),
        "seconds": result.seconds.get(f"{name}.edit"),
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


# -- making what is missing --------------------------------------------------------------------------------


def make(jobs: Sequence[Sequence[Job]], folder: pathlib.Path, name: str, servers: int = 0) -> dict[str, str]:
    """Make what `folder/name` has no line of; returns versions and device, empty if nothing was missing.

    servers: side by side; 0: two, or one on a GPU or a single core. Failed jobs are told, and the next run tries again.
    """
    path = folder / name
    done = {key(line["case"], line["method"], line["control"], line["settings"]) for line in read_lines(path)}
    left = [found for case in jobs if (found := [job for each in case if (job := each.without(done))])]
    count = sum(map(len, left))
    print(f"{name}: {count} jobs of {sum(map(len, jobs))} to do", flush=True)
    if not left:
        return {}
    folder.mkdir(parents=True, exist_ok=True)
    drop_cut_off_line(path)
    workers = Workers(left, min(servers or default_servers(), len(left)))
    with path.open("a") as file:
        for number, (job, result) in enumerate(workers.run(), 1):
            if isinstance(result, JobFailed):
                print(f"FAILED {job.case} {job.method}: {result}", file=sys.stderr, flush=True)
                continue
            file.writelines(json.dumps(line) + "\n" for line in lines_of(job, result, folder))
            file.flush()
            print(f"\r{number}/{count}", end="" if sys.stdout.isatty() else "\n", flush=True)
    return workers.versions


def drop_cut_off_line(path: pathlib.Path) -> None:
    """Take back what a run that was killed within a line has written of it, lest the next line is lost, too."""
    if path.exists():
        text = path.read_bytes()
        path.write_bytes(text[: text.rfind(b"\n") + 1])


def default_servers() -> int:
    """One on a GPU; else two, if there are two cores for them."""
    return 1 if has_accelerator(install.bench_python()) else min(2, os.cpu_count() or 1)
