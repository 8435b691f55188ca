"""Every picture of the benchmark through a real ComfyUI, several jobs queued ahead, each result
stored as it comes."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image, ImageOps

from bench.graphs import edit_graph, rows_per_step
from bench.methods import CONTROLS, Case, Settings
from bench.pie.dataset import Entry, PieError
from bench.pie.store import Store
from tools.client import Client, Graph, Interrupted, JobFailed, Result
from tools.pictures import on_white


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is run: names of bench.methods, nodes' settings, the target blend word's weight, the
    model's picture size.

    checkpoint: its name at the server ("": the toy model).
    """

    method: str
    control: str
    settings: Settings
    word_weight: float
    size: int
    checkpoint: str = ""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A case for the graphs, under which control, and how it differs from what was planned."""

    case: Case
    control: str
    note: str = ""


def prepared(entry: Entry, size: int) -> Image.Image:
    """The source picture as the model gets it and as it is measured against: the middle square, at
    the model's size.

    The benchmark's own pictures are 512 x 512 and stay as they are for a model of that size.
    PieError if unreadable.
    """
    try:
        with Image.open(entry.picture) as opened:
            return ImageOps.fit(on_white(opened), (size, size), Image.Resampling.BICUBIC)
    except OSError as error:
        raise PieError(f"the picture {entry.picture} cannot be read: {error}") from error


def asked(entry: Entry, plan: Plan, picture: str) -> Asked:
    """What to ask the server for. As in the reference's runner: `blended_word` is the source's
    word, then the target's; the second one is weighted; without them Prompt-to-Prompt runs without
    Local Blend.

    Unlike there, words are compared without case and punctuation, and those that do not occur are
    left out.
    """
    bare = words_of()
    first, second = (*map(bare, entry.words[:2]), "", "")[:2]
    old, new = ({bare(word) for word in text.split()} for text in (entry.source, entry.target))
    sides = (("source", first, old), ("target", second, new))
    blend = [f"{side}: {word}" for side, word, words in sides if word in words - {""}]
    weighted = (
        "p2p" in CONTROLS[plan.control].attention
        and plan.word_weight != 1.0
        and second in new - {""}
    )
    weights = f"{second}: {plan.word_weight:g}" if weighted else ""
    control, note = plan.control, ""
    lost = [word for _, word, words in sides if word not in words | {""}]
    if lost:
        note = f"not in the prompts: {', '.join(lost)}"
    if "blend" in CONTROLS[control].attention and not blend:
        control, note = "p2p", "; ".join(filter(None, (note, "no blend words")))
    case = Case(
        picture,
        unweighted(entry.source),
        unweighted(entry.target),
        ", ".join(blend),
        weights=weights,
    )
    return Asked(case, control, note)


def words_of() -> Any:
    """How the pack compares words: without case and surrounding punctuation."""
    from tools.pack import part

    return part("core.words").bare


def unweighted(prompt: str) -> str:
    """A prompt whose parentheses are text, not ComfyUI's weights: the reference's tokenizer knows
    none."""
    return prompt.replace("(", "\\(").replace(")", "\\)")


class Runner:
    """Edits entries through a server and stores each as it is finished."""

    def __init__(self, client: Client, plan: Plan, store: Store) -> None:
        self.client, self.plan, self.store = client, plan, store
        self.host = str(client.system_stats()["system"]["comfyui_version"])
        self._queued: collections.deque[tuple[Entry, Asked]] = collections.deque()

    def run(self, entries: Sequence[Entry], say: Callable[[str], object] = print) -> None:
        """Edit all entries, in their order. A case that a node refuses is stored as failed and the
        others go on; a server that is gone, or that somebody interrupts, raises ServerError."""
        began = time.monotonic()
        for result in self.client.run_all(self._graphs(entries)):
            if isinstance(result, Interrupted):
                raise result
            entry, wish = self._queued.popleft()
            what = self._keep(entry, wish, result)
            say(
                f"{entries.index(entry) + 1}/{len(entries)}  {entry.id}  {what}  "
                f"({time.monotonic() - began:.0f} s)"
            )

    def _graphs(self, entries: Sequence[Entry]) -> Iterator[Graph]:
        """One after the other, when the server has room for it; a picture that cannot be read is
        stored as failed."""
        for entry in entries:
            try:
                picture = prepared(entry, self.plan.size)
            except PieError as error:
                self.store.fail(entry.id, str(error))
                continue
            wish = asked(
                entry,
                self.plan,
                self.client.upload(picture, f"pivot_pie_{self.plan.size}_{entry.id}.png"),
            )
            self._queued.append((entry, wish))
            settings, prefix = {wish.control: self.plan.settings}, f"pivot/pie/{entry.id}"
            yield edit_graph(wish.case, self.plan.method, settings, self.plan.checkpoint, prefix)

    def _keep(self, entry: Entry, wish: Asked, result: Result | JobFailed) -> str:
        """Store what became of a case, and say what that was."""
        if isinstance(result, JobFailed):
            self.store.fail(entry.id, str(result))
            return f"failed: {result}"
        rows = rows_per_step(result.texts[f"{wish.control}.report"][0])
        note = {"note": wish.note} if wish.note else {}
        self.store.keep(
            entry.id, result.images[wish.control][0], rows=rows, comfyui=self.host, **note
        )
        return wish.note or "done"


def check_checkpoint(client: Client, name: str) -> None:
    """Raise PieError listing what there is if the server does not have a checkpoint of this
    name."""
    declared = client.object_info("CheckpointLoaderSimple")["CheckpointLoaderSimple"]["input"][
        "required"
    ]
    kind, *rest = declared["ckpt_name"]
    names = kind if isinstance(kind, list) else rest[0]["options"]
    if name and name not in names:
        raise PieError(
            f"no checkpoint {name}; the server offers {', '.join(names) or 'none'}; a path works "
            "too"
        )
