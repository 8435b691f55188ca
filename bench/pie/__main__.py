"""Runs PIE-Bench and measures it: `python -m bench.pie FOLDER --checkpoint model.safetensors`.

Goes on where it stopped. Pictures and report: out/pie/<checkpoint>/<method>-<control>/. `--make-toy
FOLDER` draws a small folder of the format for the toy model. docs/PIE_BENCH.md says what every
number means.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.methods import CONTROLS, METHODS, STEPS, Settings
from bench.pie import report, toyset
from bench.pie.dataset import MAPPING, SIDE, TYPES, Entry, PieError, choose, read
from bench.pie.editing import Plan, Runner, check_checkpoint, prepared
from bench.pie.metrics import CLIP, DINO, METRICS, Measures, Pair, Weights
from bench.pie.published import ROWS
from bench.pie.store import Record, Store
from tools import install
from tools.client import Client, ServerError
from tools.server import Server, ServerFailed, stop_on_signals
from toy.scenes import SIZE as TOY_SIZE

OUT = install.ROOT / "out" / "pie"


def parser() -> argparse.ArgumentParser:
    """The command line. Defaults of the edit are those of the reference's run_editing_p2p.py at
    f480116d."""
    made = argparse.ArgumentParser(
        prog="python -m bench.pie",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("folder", type=pathlib.Path, help=f"the benchmark's folder, with {MAPPING}")
    made.add_argument(
        "--make-toy", action="store_true", help="draw a small folder of the format there instead"
    )
    made.add_argument(
        "--checkpoint", default="", help="a file, or its name at the server; without: the toy model"
    )
    made.add_argument("--method", choices=METHODS, default="direct")
    made.add_argument("--control", choices=CONTROLS, default="p2p_blend")
    made.add_argument("--cfg", type=float, default=7.5)
    made.add_argument("--steps", type=int, default=STEPS)
    made.add_argument(
        "--cross",
        type=float,
        default=0.4,
        help="P2P's cross window ends here, a fraction of the steps",
    )
    made.add_argument(
        "--self", type=float, default=0.6, help="P2P's self window ends here", dest="self_"
    )
    made.add_argument("--mode", default="refine", help="P2P's word alignment")
    made.add_argument(
        "--weight", type=float, default=2.0, help="P2P's weight of the target's blend word; 1: none"
    )
    made.add_argument(
        "--size",
        type=int,
        default=None,
        help=f"of the model's pictures ({SIDE}; toy model {TOY_SIZE})",
    )
    made.add_argument(
        "--types", nargs="+", choices=TYPES, default=[], metavar="N", help="editing types, 0 to 9"
    )
    made.add_argument("--ids", nargs="+", default=[])
    made.add_argument("--limit", type=int, default=None, help="the first so many of those")
    made.add_argument(
        "--url", default="", help="a running ComfyUI with this pack, instead of starting one"
    )
    made.add_argument("--out", type=pathlib.Path, default=OUT)
    made.add_argument("--retry", action="store_true", help="try again what failed")
    made.add_argument(
        "--measure-only", action="store_true", help="no edits: measure those that are there"
    )
    made.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    made.add_argument("--dino", default=DINO, help="a folder or a Hugging Face name")
    made.add_argument("--clip", default=CLIP, help="likewise")
    made.add_argument(
        "--lpips",
        default="",
        help="a file of torchvision's squeezenet1_1; without: its own download",
    )
    made.add_argument(
        "--no-parity", action="store_true", help="structure distance without the reference's slip"
    )
    return made


def plan_of(options: argparse.Namespace) -> Plan:
    """What to run; PieError for a size or numbers that no model takes."""
    size = options.size or (SIDE if options.checkpoint else TOY_SIZE)
    if size < 64 or size % 8:
        raise PieError(f"expected --size to be a multiple of 8 and at least 64, got {size}")
    if options.steps < 1 or (options.limit is not None and options.limit < 1):
        raise PieError("expected --steps and --limit to be at least 1")
    windows = {"mode": options.mode, "cross_end": options.cross, "self_end": options.self_}
    settings = Settings(cfg=options.cfg, steps=options.steps, **windows)
    path = pathlib.Path(options.checkpoint).expanduser()
    name = path.name if path.is_file() else options.checkpoint
    return Plan(options.method, options.control, settings, options.weight, size, name)


def settings_of(plan: Plan, options: argparse.Namespace) -> Record:
    """What a finished picture depends on besides its entry; a folder of pictures has one of
    these."""
    mapping = (options.folder / MAPPING).read_bytes()
    return {
        "method": plan.method,
        "control": plan.control,
        "checkpoint": plan.checkpoint or "toy",
        "checkpoint_sha256": checkpoint_hash(options.checkpoint),
        "size": plan.size,
        "cfg": plan.settings.cfg,
        "steps": plan.settings.steps,
        "p2p": {
            "mode": plan.settings.mode,
            "cross": plan.settings.cross_end,
            "self": plan.settings.self_end,
            "weight": plan.word_weight,
        },
        "mapping_sha256": hashlib.sha256(mapping).hexdigest(),
    }


def checkpoint_hash(checkpoint: str) -> str:
    """The sha256 of the weights; "not known" of a file that only the server sees."""
    path = (
        pathlib.Path(checkpoint).expanduser()
        if checkpoint
        else install.ROOT / "toy" / "weights" / "toy.safetensors"
    )
    if not path.is_file():
        return "not known"
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            found.update(part)
    return found.hexdigest()


# -- editing
# -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connected(options: argparse.Namespace, checkpoint: str) -> Iterator[Client]:
    """A client of the given server, or of one that is started for it; PieError for a checkpoint it
    does not have, ServerFailed, with its last words, if the one that was started dies."""
    with contextlib.ExitStack() as stack:
        server = None if options.url else stack.enter_context(started(options.checkpoint))
        client = stack.enter_context(Client(server.url if server else options.url))
        check_checkpoint(client, checkpoint)
        try:
            yield client
        except ServerError:
            if server:
                server.check_alive()
            raise


def started(checkpoint: str) -> Server:
    """A server, not yet running, that offers a checkpoint; PieError if a path to it leads
    nowhere."""
    path = pathlib.Path(checkpoint).expanduser()
    if path.is_absolute() and not path.is_file():
        raise PieError(f"no checkpoint file at {path}")
    print("starting ComfyUI ...", flush=True)
    return Server(checkpoints=(path.absolute().parent,) if path.is_file() else ())


def edit(entries: Sequence[Entry], plan: Plan, store: Store, options: argparse.Namespace) -> None:
    """Edit what is not there yet."""
    todo = [
        one
        for one in entries
        if not store.done(one.id) and (options.retry or not store.failed(one.id))
    ]
    print(f"{len(entries)} cases, {len(todo)} of them to be edited", flush=True)
    if todo:
        with connected(options, plan.checkpoint) as client:
            Runner(client, plan, store).run(todo, lambda line: print(line, flush=True))


# -- measuring
# ---------------------------------------------------------------------------------------------


def pair_of(entry: Entry, store: Store, size: int) -> Pair:
    """An edited picture beside its source, both at the model's size. Where that is smaller than the
    format's 512, a pixel counts as to be changed when any of those it stands for does."""
    mask = torch.from_numpy(entry.mask())[None, None].float()
    smaller = torch.nn.functional.adaptive_max_pool2d(mask, size)[0, 0].bool().numpy()
    with Image.open(store.picture(entry.id)) as opened:
        edited = np.asarray(opened.convert("RGB"))
    if edited.shape[:2] != (size, size):
        raise PieError(
            f"expected {size} x {size} pixels in {store.picture(entry.id)}, got {edited.shape[:2]}"
        )
    return Pair(np.asarray(prepared(entry, size)), edited, smaller, entry.target)


def measure(
    entries: Sequence[Entry], store: Store, settings: Record, options: argparse.Namespace
) -> Record:
    """The report: every case's values, their means, and what is not in them."""
    done = [entry for entry in entries if store.done(entry.id)]
    print(f"measuring {len(done)} pictures", flush=True)
    measures = Measures(
        options.metrics, Weights(options.dino, options.clip, options.lpips, not options.no_parity)
    )
    values = {entry.id: measures(pair_of(entry, store, settings["size"])) for entry in done}
    excluded = {
        entry.id: store.records.get(entry.id, {}).get("error", "not made") for entry in entries
    }
    notes = {
        entry.id: store.records[entry.id]["note"]
        for entry in done
        if "note" in store.records[entry.id]
    }
    notes |= {entry.id: "the mask is cut at the picture's end" for entry in done if entry.cut}
    return {
        "settings": settings | {"dino_parity": not options.no_parity},
        "asked": len(entries),
        "results": report.by_type(values, {entry.id: entry.kind for entry in done}),
        "not_measured": measures.missing,
        "excluded": {name: why for name, why in excluded.items() if name not in values},
        "notes": notes,
        "rows_per_step": mean_rows(store, done),
        "comfyui": sorted({store.records[entry.id]["comfyui"] for entry in done}),
        "versions": report.versions(),
        "cases": values,
        "published": [dataclasses.asdict(row) | {"verified": sorted(row.verified)} for row in ROWS],
        "caveats": report.CAVEATS,
    }


def mean_rows(store: Store, done: Sequence[Entry]) -> float | None:
    """UNet rows a step, over all edits."""
    rows = [store.records[entry.id]["rows"] for entry in done]
    return sum(rows) / len(rows) if rows else None


def run(options: argparse.Namespace) -> None:
    """Edit what is missing, measure all, write and print the report."""
    plan = plan_of(options)
    entries = choose(read(options.folder), options.types, options.ids, options.limit)
    name, settings = pathlib.Path(plan.checkpoint).stem or "toy", settings_of(plan, options)
    store = Store(options.out / name / f"{plan.method}-{plan.control}", settings)
    if not options.measure_only:
        edit(entries, plan, store, options)
    found = measure(entries, store, settings, options)
    report.write(store.folder, found)
    print(f"\n{report.markdown(found)}\npictures and report: {store.folder}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 after an error, which is printed as one line, 130 when stopped."""
    options: Any = parser().parse_args(arguments)
    stop_on_signals()
    try:
        if options.make_toy:
            toyset.write(options.folder, options.limit or 12)
            print(f"a folder in PIE-Bench's format: {options.folder}")
        else:
            run(options)
    except (PieError, ServerError, ServerFailed, install.InstallError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
