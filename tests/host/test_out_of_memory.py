"""Memory that runs out in the middle of a loop: the model is as it was, and the next job gives the
same, bit for bit."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_management as management
import comfy.sample
import pytest
import torch

from clean import at_middle, everything
from pivot_edit.host.tasks.editing import edit
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.host.tasks.null_text import null_text
from pivot_edit.host.tasks.report import report
from pivot_edit.host.text.conditioning import stack_rows
from pivot_edit.host.text.prompts import encode
from pivot_edit.inversion import inverter_for
from pivot_edit.toy.loader import load
from test_inputs import run

STEPS = 3
TEXTS = {"source": "a red star on a lake", "target": "a blue star on a lake", "negative": ""}


@dataclasses.dataclass(frozen=True, eq=False)
class Bed:
    """The toy model with all its controls, and a small picture that it has inverted."""

    model: Any
    vae: Any
    controlled: Any
    image: torch.Tensor
    latent: dict[str, torch.Tensor]
    texts: dict[str, Any]
    trajectory: Any

    def invert(self, method: str, cfg: float) -> list[torch.Tensor]:
        negative = self.texts["negative"]
        made = invert_latent(
            *(self.model, self.latent, self.texts["source"], STEPS, "reference"),
            *(inverter_for(method, cfg), False, negative, cfg),
        )
        return [made[0].latents]

    def optimize(self, preset: str, checkpointing: str) -> list[torch.Tensor]:
        prompts = self.texts["source"], self.texts["negative"]
        made = null_text(self.model, self.trajectory, *prompts, 5.0, preset, checkpointing)
        return [made[0].extras["nulls"]]

    def edit(self) -> list[torch.Tensor]:
        made = edit(self.controlled, self.trajectory, **self.texts, cfg=5.0, correction="direct")
        maps = run(
            *("PivotAttentionMaps",),
            **{"model": self.controlled, "samples": made[0], "image": self.image},
            **{"clip": CLIP[0], "prompt": TEXTS["target"], "words": "star"},
            **{"threshold": 0.4, "blur": 0.0, "grow": 0},
        )
        return [made[0]["samples"], made[1]["samples"], made[3], maps[0]]

    def report(self) -> list[torch.Tensor]:
        prompts = {"source": self.texts["source"], "negative": self.texts["negative"]}
        made = report(
            *(self.model, self.vae, self.image, self.trajectory),
            **{**prompts, "cfg": 5.0, "correction": "none"},
        )
        return [made.reconstruction]

    def sample(self, model: Any, positive: Any, batch: int) -> list[torch.Tensor]:
        latent = torch.zeros(batch, 4, 8, 8)
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return [
            comfy.sample.sample(
                *(model, noise.expand(batch, -1, -1, -1).clone(), STEPS, 5.0, "euler", "normal"),
                *(positive, self.texts["negative"], latent),
            )
        ]

    def rows(self) -> list[torch.Tensor]:
        rows = stack_rows(self.texts["source"], self.texts["target"], 1, "Rows for KSampler")
        return self.sample(self.controlled, rows, 2)

    def plain(self) -> list[torch.Tensor]:
        return self.sample(self.model, self.texts["target"], 1)


CLIP: list[Any] = []
LOOPS: dict[str, Callable[[Bed], list[torch.Tensor]]] = {
    "ddim": lambda bed: bed.invert("ddim", 1.0),
    "fixed_point": lambda bed: bed.invert("fixed_point", 3.0),
    "uni": lambda bed: bed.invert("uni", 1.0),
    "null_text": lambda bed: bed.optimize("fast", "off"),
    "null_text checkpointing": lambda bed: bed.optimize("fast", "on"),
    "edit": Bed.edit,
    "report": Bed.report,
    "rows": Bed.rows,
    "plain": Bed.plain,
}


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with torch.inference_mode():
        model, clip, vae = load()
        CLIP[:] = [clip]
        image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        latent = {"samples": vae.encode(image)}
        texts = {name: encode(clip, text) for name, text in TEXTS.items()}
        pair = run(
            "PivotPromptPair",
            **{"clip": clip, "source_prompt": TEXTS["source"], "target_prompt": TEXTS["target"]},
        )
        trajectory = invert_latent(
            model, latent, texts["source"], STEPS, "reference", inverter_for("ddim"), False
        )[0]
        controlled = model
        for node, inputs in CONTROLS.items():
            controlled = run(node, model=controlled, words=pair[2], **inputs)[0]
        controlled = run("PivotRecordAttention", model=controlled, start=0.0, end=1.0)[0]
        yield Bed(model, vae, controlled, image, latent, texts, trajectory)


CONTROLS: dict[str, dict[str, Any]] = {
    "PivotPromptToPrompt": {
        **{"mode": "auto", "cross_start": 0.0, "cross_end": 0.8, "self_start": 0.0},
        **{"self_end": 0.5, "self_limit": 1.0, "word_weights": "blue: 2", "word_windows": ""},
    },
    "PivotLocalBlend": {
        **{"blend_words": "star", "subtract_words": "", "threshold": 0.3, "start": 0.0},
        **{"subtract_threshold": 0.5, "pool": False},
    },
    "PivotMasaCtrl": {
        **{"mode": "plain", "layers": "auto", "start": 0.4, "end": 1.0, "mask_words": "star"},
    },
}


def passes(model: Any, work: Callable[[], object]) -> int:
    """How often a piece of work goes through the network."""
    seen: list[int] = []
    with at_middle(model, seen.append):
        work()
    return len(seen)


def exhausted(last: int) -> Callable[[int], None]:
    """Memory that runs out in a pass."""

    def act(number: int) -> None:
        if number == last:
            raise management.OOM_EXCEPTION("out of memory")

    return act


@pytest.mark.parametrize("loop", LOOPS)
def test_memory_that_runs_out_leaves_the_model_and_the_next_job_alone(bed: Bed, loop: str) -> None:
    """In the first pass through the network, in the middle and in the last. The host then unloads
    all models."""
    work = LOOPS[loop]
    whole, plain = work(bed), bed.plain()
    count = passes(bed.model, lambda: work(bed))
    before = everything(bed.model), everything(bed.controlled)
    assert before[0]["hooks"] == before[0]["replaced"] == []
    for last in sorted({1, count // 2, count}):
        with (
            pytest.raises(management.OOM_EXCEPTION),
            at_middle(bed.model, exhausted(last)),
        ):
            work(bed)
        assert (everything(bed.model), everything(bed.controlled)) == before
        management.unload_all_models()
        for again, first in ((bed.plain(), plain), (work(bed), whole)):
            assert all(map(torch.equal, again, first))


def test_memory_that_runs_out_on_the_way_back_leaves_the_model_alone(bed: Bed) -> None:
    """In the backward passes, of which an optimisation has the most tensors."""
    work = LOOPS["null_text"]
    whole, plain = work(bed), bed.plain()
    before = everything(bed.model)
    assert before["hooks"] == before["replaced"] == []

    def hook(module: Any, args: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: exhausted(1)(1))

    handle = bed.model.model.diffusion_model.middle_block[0].register_forward_hook(hook)
    with pytest.raises(management.OOM_EXCEPTION):
        work(bed)
    handle.remove()
    gc.collect()
    assert everything(bed.model) == before
    for again, first in ((bed.plain(), plain), (work(bed), whole)):
        assert all(map(torch.equal, again, first))
