"""A day in production: random jobs on one server, and every picture against its run alone.

`python -m bench.stress [--jobs 300] [--seed 0] [--host FOLDER]` (`make stress`). Edits of any kind,
method, control and size, plain sampling, interrupts, deletions and bad jobs share a server's queue.
Afterwards each graph that finished runs alone on a fresh server that has forgotten the one before.
out/stress/<host>.json has the report. The exit code is 1 when a picture differs, a good job fails,
or a bad one is not refused by the right node.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import json
import pathlib
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bench.cases import KINDS
from bench.graphs import edit_graph, saved
from bench.jobs import Uploads, command
from bench.methods import CONTROLS, METHODS, Case, Settings, node
from tools import install
from tools.client import Client, Event, Graph, Interrupted, JobFailed, Result
from tools.pictures import to_array, to_image
from tools.server import Server

OUT = install.ROOT / "out" / "stress"
PICTURE = "picture"
"""The node that saves what a job is judged by."""
SHARES = {"edit": 50, "plain": 12, "interrupt": 18, "delete": 6, "bad": 14}
"""Of a hundred jobs; all but plain ones are edits."""
REPEATED = 0.25
"""The share of jobs that take an earlier job's graph again."""
SIZES = ((128, 128), (96, 128), (160, 128), (128, 192))
STEPS = (4, 10)
SAMPLERS = ("euler", "ddim", "dpmpp_2m", "euler_ancestral")
EXCLUDED = frozenset({"null_text_reference"})
"""Methods that take too long for many jobs."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A graph and what is done with it.

    kind: of SHARES. refuser: the class of the node that must refuse it. stop_at: the number of the
    progress message that interrupts it, 0: none.
    """

    number: int
    kind: str
    graph: Graph
    refuser: str = ""
    stop_at: int = 0

    @property
    def digest(self) -> str:
        """What its graph is known by."""
        return hashlib.sha256(json.dumps(self.graph, sort_keys=True).encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a job: its result, its error, or None where it was deleted in the queue."""

    job: Job
    result: Result | JobFailed | None

    @property
    def pixels(self) -> bytes | None:
        """Shape and pixels of its picture, if it has finished."""
        return pixels(self.result) if isinstance(self.result, Result) else None


def pixels(result: Result) -> bytes:
    """Shape and pixels of a run's picture."""
    picture = result.images[PICTURE][0]
    return repr((picture.size, picture.mode)).encode() + picture.tobytes()


# -- random jobs
# -------------------------------------------------------------------------------------------


def draw(count: int, seed: int, upload: Uploads, steps: tuple[int, int] = STEPS) -> list[Job]:
    """Jobs by a seed, their pictures uploaded."""
    return [_drawn(number, seed, upload, steps) for number in range(count)]


def _drawn(number: int, seed: int, upload: Uploads, steps: tuple[int, int]) -> Job:
    chance = random.Random(f"{seed}/{number}")
    (kind,) = chance.choices(list(SHARES), list(SHARES.values()))
    content = chance.randrange(number) if number and chance.random() < REPEATED else number
    at = random.Random(f"{seed}/graph/{content}")
    if kind == "plain":
        return Job(number, kind, plain_graph(at, steps))
    if kind == "bad":
        refuser = chance.choice(list(BAD))
        # Direct inversion alone: whatever is refused lies on the way to each output.
        graph = random_edit(at, upload, steps, "direct", BAD_CONTROL)
        BAD[refuser](graph)
        return Job(number, kind, graph, refuser)
    stop_at = chance.randint(1, 2 * steps[0]) if kind == "interrupt" else 0
    return Job(number, kind, random_edit(at, upload, steps), stop_at=stop_at)


def random_edit(
    chance: random.Random,
    upload: Uploads,
    steps: tuple[int, int],
    method: str = "",
    control: str = "",
) -> Graph:
    """An edit of a random scene, kind, size, method, control, cfg and step count."""
    kind = KINDS[chance.choice(list(KINDS))]
    index, (width, height) = chance.randrange(20), chance.choice(SIZES)
    edit = kind.cases(index + 1)[index]
    picture = to_array(to_image(edit.scene.render()).resize((width, height)))
    name = upload(np.asarray(picture), f"stress_{kind.name}_{index}_{width}x{height}.png")
    words = (edit.object_words, "") if kind.at_object else ("", edit.object_words)
    case = Case(name, edit.source, edit.target, *words, edit.weights)
    method = method or chance.choice([one for one in METHODS if one not in EXCLUDED])
    control = control or chance.choice(list(CONTROLS))
    graph = edit_graph(case, method, {control: _settings(kind.settings, chance, steps)})
    return _renamed(graph, control)


def _settings(settings: Settings, chance: random.Random, steps: tuple[int, int]) -> Settings:
    cfg = chance.choice((2.0, 4.5, 7.5))
    return dataclasses.replace(settings, steps=chance.randint(*steps), cfg=cfg)


def _renamed(graph: Graph, control: str) -> Graph:
    """The graph with its picture's node under the one name that all jobs share."""
    return {PICTURE if name == control else name: entry for name, entry in graph.items()}


def plain_graph(chance: random.Random, steps: tuple[int, int]) -> Graph:
    """Stock sampling: what no edit before it may change."""
    width, height = chance.choice(SIZES)
    scene = KINDS["color"].cases(5)[chance.randrange(5)]
    return {
        "model": node("PivotToyModel"),
        "positive": node("CLIPTextEncode", clip=["model", 1], text=scene.source),
        "negative": node("CLIPTextEncode", clip=["model", 1], text=""),
        "empty": node("EmptyLatentImage", width=width, height=height, batch_size=1),
        "sampled": node(
            "KSampler",
            model=["model", 0],
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            seed=chance.randrange(1000),
            steps=chance.randint(*steps),
            cfg=chance.choice((1.0, 4.5, 7.5)),
            sampler_name=chance.choice(SAMPLERS),
            scheduler="normal",
            denoise=1.0,
        ),
        **saved(PICTURE, ["sampled", 0], "pivot/stress"),
    }


# -- bad jobs, by the class of the node that must refuse them
# -----------------------------------------------------------------------------------------


BAD_CONTROL = "p2p_blend"


def _inputs(graph: Graph, kind: str) -> dict[str, Any]:
    """The inputs of the only node of a class."""
    (entry,) = (entry for entry in graph.values() if entry["class_type"] == kind)
    inputs: dict[str, Any] = entry["inputs"]
    return inputs


def _no_picture(graph: Graph) -> None:
    _inputs(graph, "LoadImage")["image"] = "no_such_picture.png"


def _nan_latent(graph: Graph) -> None:
    """NaN passes the host's limits, and a stock node multiplies the latent by it."""
    graph["nan"] = node("LatentMultiply", samples=["encode", 0], multiplier=float("nan"))
    _inputs(graph, "PivotDDIMInversion")["latent"] = ["nan", 0]


def _unknown_weight(graph: Graph) -> None:
    _inputs(graph, "PivotPromptToPrompt")["word_weights"] = "zeppelin: 2"


def _unknown_word(graph: Graph) -> None:
    _inputs(graph, "PivotLocalBlend")["blend_words"] = "zeppelin"


def _nan_cfg(graph: Graph) -> None:
    _inputs(graph, "PivotEditSampler")["cfg"] = float("nan")


BAD: dict[str, Callable[[Graph], None]] = {
    "LoadImage": _no_picture,
    "PivotDDIMInversion": _nan_latent,
    "PivotPromptToPrompt": _unknown_weight,
    "PivotLocalBlend": _unknown_word,
    "PivotEditSampler": _nan_cfg,
}


# -- running them
# --------------------------------------------------------------------------------------------


def driven(client: Client, jobs: Iterable[Job], ahead: int = 3) -> Iterator[Outcome]:
    """What becomes of every job, some queued behind the one that runs."""
    queued = collections.deque[Job]()
    deleted: list[tuple[Job, str]] = []
    heard: collections.Counter[str] = collections.Counter()

    def graphs() -> Iterator[Graph]:
        for job in jobs:
            if job.kind != "delete":
                queued.append(job)
                yield job.graph
                continue
            deleted.append((job, client.post(job.graph)))
            client.delete(deleted[-1][1])

    def interrupt(event: Event) -> None:
        if event.kind == "progress":
            prompt_id = event.data["prompt_id"]
            heard[prompt_id] += 1
            if heard[prompt_id] == queued[0].stop_at:
                client.interrupt(prompt_id)

    for result in client.run_all(graphs(), ahead, interrupt):
        yield Outcome(queued.popleft(), result)
    for job, prompt_id in deleted:
        # What had begun before it could be deleted is in the history, and is judged like any other.
        yield Outcome(job, client.past(prompt_id))


TRIES = 10


def alone(client: Client, graph: Graph) -> bytes:
    """The picture of a graph on a quiet server that has forgotten everything before."""
    for _ in range(TRIES):
        client.free()
        result = client.run(graph)
        # The server forgets a moment after it was asked to: a result it still had proves nothing.
        if not result.cached:
            return pixels(result)
    raise RuntimeError(f"expected a run of its own, the server had {result.cached} each time")


def all_alone(
    client: Client, outcomes: Sequence[Outcome], forget: Callable[[str], object] = lambda text: None
) -> dict[str, bytes]:
    """The picture of each graph that has finished, by its digest; plain ones come first, where no
    edit has run yet."""
    finished = {one.job.digest: one.job for one in outcomes if one.pixels is not None}
    order = sorted(finished.items(), key=lambda item: (item[1].kind != "plain", item[0]))
    pictures = {}
    for number, (digest, job) in enumerate(order, 1):
        pictures[digest] = alone(client, job.graph)
        forget(f"alone {number}/{len(order)}")
    return pictures


# -- judging them
# --------------------------------------------------------------------------------------------


def fault(outcome: Outcome, pictures: dict[str, bytes]) -> str:
    """What is wrong with an outcome; "" where nothing is. pictures: those made alone."""
    job, result = outcome.job, outcome.result
    if isinstance(result, Result):
        if job.refuser:
            return f"ran, though {job.refuser} should refuse it"
        return "" if outcome.pixels == pictures[job.digest] else "differs from its run alone"
    if isinstance(result, Interrupted):
        return "" if job.stop_at else "was interrupted, and nobody asked for it"
    if isinstance(result, JobFailed):
        if not job.refuser:
            return f"failed: {result}"
        named = result.node_class == job.refuser
        return "" if named else f"{job.refuser} should refuse it; came: {result}"
    return "" if job.kind == "delete" else "has no result"


def state(outcome: Outcome) -> str:
    """The end of a job in one word."""
    if isinstance(outcome.result, Result):
        return "finished"
    if isinstance(outcome.result, Interrupted):
        return "interrupted"
    return "refused" if isinstance(outcome.result, JobFailed) else "deleted"


def report(outcomes: Sequence[Outcome], pictures: dict[str, bytes]) -> dict[str, Any]:
    """Counts by kind and end, and everything that is wrong."""
    faults = {one.job.number: text for one in outcomes if (text := fault(one, pictures))}
    finished = [one for one in outcomes if one.pixels is not None]
    equal = [one for one in finished if one.pixels == pictures[one.job.digest]]
    counts = collections.Counter(f"{one.job.kind}, {state(one)}" for one in outcomes)
    return {
        "jobs": len(outcomes),
        "counts": dict(sorted(counts.items())),
        "finished": len(finished),
        "cached": sum(PICTURE not in one.result.executed for one in finished),
        "equal": len(equal),
        "plain_equal": sum(one.job.kind == "plain" for one in equal),
        "alone": len(pictures),
        "faults": faults,
    }


def stressed(
    host: pathlib.Path, count: int, seed: int, say: Callable[[str], object]
) -> dict[str, Any]:
    """The report of one ComfyUI."""
    began, outcomes, memory = time.monotonic(), [], []
    with Server(host=host) as server, Client(server.url) as client:
        system = client.system_stats()
        memory.append(server.memory)
        for outcome in driven(client, draw(count, seed, Uploads(client))):
            outcomes.append(outcome)
            memory.append(server.memory)
            say(f"{len(outcomes)}/{count} {outcome.job.kind}, {state(outcome)}")
    with Server(host=host) as server, Client(server.url) as client:
        draw(count, seed, Uploads(client))  # brings the pictures there
        pictures = all_alone(client, outcomes, say)
    return {
        "host": system["system"]["comfyui_version"],
        "torch": system["system"]["pytorch_version"],
        "device": system["devices"][0]["name"],
        "seed": seed,
        **report(outcomes, pictures),
        "memory_mb": {
            "before": memory[0],
            "after_a_tenth": memory[max(1, len(memory) // 10)],
            "after_half": memory[len(memory) // 2],
            "after": memory[-1],
        },
        "seconds": time.monotonic() - began,
    }


def table(found: dict[str, Any]) -> str:
    """A report in some lines."""
    memory = ", ".join(
        f"{name.replace('_', ' ')} {value:.0f}"
        for name, value in found["memory_mb"].items()
        if value is not None
    )
    counts = "; ".join(f"{name} {count}" for name, count in found["counts"].items())
    lines = [
        f"ComfyUI {found['host']}, seed {found['seed']}: {found['jobs']} jobs, "
        f"{found['seconds']:.0f} s",
        f"  {counts}",
        f"  equal to their runs alone: {found['equal']} of {found['finished']}, "
        f"{found['plain_equal']} of them plain, {found['cached']} cached; {found['alone']} graphs",
        f"  the server's memory, MB: {memory or 'unknown'}",
        f"  wrong: {len(found['faults'])}",
    ]
    return "\n".join(lines + [f"    job {job}: {text}" for job, text in found["faults"].items()])


def say_on_terminal(text: str) -> None:
    """Show where it is, on a terminal alone."""
    if sys.stdout.isatty():
        print(f"\r{text:60}", end="", flush=True)


def main() -> int:
    """The command line; 1 when anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.stress", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host", type=pathlib.Path, action="append", help="a ComfyUI folder")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for host in options.host or [install.host_path()]:
        found = stressed(host.absolute(), options.jobs, options.seed, say_on_terminal)
        path = OUT / f"{found['host']}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{table(found)}\n  {path}", flush=True)
        wrong += len(found["faults"])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(command(main))
