"""Everything on a pretended GPU: no operator mixes devices, and our lines seldom wait for it.

The whole of what is registered passes here, so that a new method is seen as well. Limits are those
of issue 11: at most two waits a step by a controller, and 1.15 of a plain step's launches on
SD1.5's shape.

What is asked of our own lines alone is marked `once`; workflows bring all nodes to both hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

import unets
from bench import thumbnails, workflows
from pivot_edit.attention import CONTROLLERS
from pivot_edit.attention.masactrl import AutoMask
from pivot_edit.core.guidance import Guidance
from pivot_edit.core.layers import map_scale
from pivot_edit.features import CONTROLLERS as FEATURES
from pivot_edit.guidance import RULES
from pivot_edit.host.model.layers import layers_of, scales_of
from pivot_edit.host.run.runs import controllers_of
from pivot_edit.host.tasks.controls import controlled
from pivot_edit.host.tasks.editing import edit
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.host.tasks.masks import blend_mask
from pivot_edit.host.tasks.null_text import null_text
from pivot_edit.inversion import CORRECTIONS, INVERTERS, Ddim, inverter_named
from pivot_edit.inversion.null_text import PRESETS
from pretended_gpu import GPU, DevicesMixed, OnGpu, Seen, pretended_gpu
from test_controls import blend, masa, p2p, recorded
from test_editing import p2p as p2p_of_mode

STEPS = 4
Case = Callable[[Any], Any]
WORDS = AutoMask({("source", 0): (77, ((1, 2),)), ("target", 0): (77, ((3,),))}, (1, 2, 4, 8), 0.5)


def mask(seed: int) -> torch.Tensor:
    """A mask [1, 64, 64] of noise."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(1, 64, 64, generator=generator) > 0.5).float()


CASES: dict[str, Case] = {
    "replace": lambda model: p2p(model, cross=(0, 1), self_=(0, 1)),
    "refine": lambda model: p2p_of_mode(model, mode="refine", cross=(0, 1), self_=(0, 1)),
    "blend": blend,
    "blend at a mask": lambda model: blend(model, mask=mask(0)),
    "mutual": lambda model: masa(model, start=0.0),
    "union": lambda model: masa(model, start=0.0, union=True),
    "masks": lambda model: masa(model, start=0.0, source_mask=mask(0), target_mask=mask(1)),
    "masks of words": lambda model: masa(model, start=0.0, auto=WORDS),
    "record": lambda model: recorded(model)[0],
}
"""Every controller, open at every step; those of which defaults are enough come of themselves."""
ALL = (*CONTROLLERS, *FEATURES)
CASES |= {
    kind.__name__: lambda model, kind=kind: controlled(model, kind())[0]
    for kind in ALL
    if kind.node and kind.node.id not in ("PivotRecordAttention",)
}


@pytest.fixture(autouse=True)
def short_optimisations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two inner steps are as good as ten to see where tensors lie."""
    for name, settings in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, dataclasses.replace(settings, inner_steps=2))


def on_gpu(model: Any) -> Any:
    """A small model that loads to the GPU."""
    model.load_device = GPU
    return model


def texts() -> list[Any]:
    return [unets.conditioning("SD15", seed) for seed in range(3)]


def inverted(model: Any, steps: int) -> Any:
    return invert_latent(
        model, unets.latent(16, 24), texts()[0], steps, "reference", Ddim(), False
    )[0]


@functools.cache
def trajectory() -> Any:
    """One for all edits: it lies on the CPU, whatever device it comes from."""
    return inverted(unets.build("SD15"), STEPS)


def edited(seen: Seen, case: Case, correction: str = "none") -> tuple[Any, torch.Tensor]:
    """The model and the edit of a case, counted from where an inversion has put it on the GPU."""
    model = on_gpu(unets.build("SD15"))
    inverted(model, 1)
    model = case(model)
    seen.launches.clear()
    seen.waits.clear()
    return model, edit(model, trajectory(), *texts(), cfg=5.0, correction=correction)[0]["samples"]


@pytest.fixture(scope="module")
def plain_launches() -> int:
    with torch.inference_mode():
        trajectory()  # outside the pretended GPU, whose waits and launches are counted
        with pretended_gpu() as seen:
            edited(seen, lambda model: model)
    return seen.launches.total()


def test_the_cases_are_every_controller() -> None:
    used = {
        type(one)
        for case in CASES.values()
        for one in controllers_of(case(unets.build("SD15")).model_options)
    }
    assert used == set(ALL)


@pytest.mark.once("newest")
@pytest.mark.parametrize("correction", ["none", "direct"])
@pytest.mark.parametrize("name", CASES)
def test_a_controller_seldom_waits_and_launches_little(
    name: str, correction: str, plain_launches: int
) -> None:
    """Also where the source's unconditioned row is left out: that costs no second call."""
    with pretended_gpu() as seen:
        model, samples = edited(seen, CASES[name], correction)
        blend_mask(model, samples)
    waits = seen.waits_in("attention/", "features/", "core/maps.py", "core/columns.py")
    changes = map_layers(model) if name == "masks of words" else 1
    assert waits <= 2 * STEPS * changes + ENDS.get(name, 0), seen.waits
    run_waits = seen.waits_in("host/run/", "host/tasks/", "host/model/", "core/errors.py")
    assert run_waits <= 3 * STEPS + ONCE, seen.waits
    if name not in SECOND_ATTENTION:
        assert seen.launches.total() <= 1.15 * plain_launches
    assert torch.isfinite(samples).all()


def map_layers(model: Any) -> int:
    """How many layers give word maps: masks of the step's own maps may change behind each."""
    scale = map_scale((16, 24), scales_of(model))
    return sum(layer.scale == scale for layer in layers_of(model))


ONCE = 8
"""Waits of a run's beginning and end: fingerprint, levels, noise, what is handed over."""
SECOND_ATTENTION = {"StyleAligned"}
"""What the paper's formula makes of each self-attention: statistics, and a call over more keys."""
ENDS = {"record": 3, "blend": 3, "blend at a mask": 3}
"""Waits once a run, for what is kept to be shown."""


@pytest.mark.once("oldest")
@pytest.mark.parametrize("correction", sorted(CORRECTIONS))
@pytest.mark.parametrize("rule", RULES)
def test_corrections_and_rules_do_not_mix_devices(correction: str, rule: type[Guidance]) -> None:
    with pretended_gpu():
        model = on_gpu(unets.build("SD15", shallow=True))
        source, target, negative = texts()
        trajectory = invert_latent(
            model, unets.latent(8, 12), source, 2, "reference", Ddim(), True
        )[0]
        if correction == "null_text":
            trajectory = null_text(
                model, trajectory, source, negative, 5.0, preset="fast", checkpointing="off"
            )[0]
        model = p2p(blend(masa(model)))
        back = edit(model, trajectory, source, target, negative, 5.0, correction, rule())
    assert torch.isfinite(back[0]["samples"]).all()


@pytest.mark.once("oldest")
@pytest.mark.parametrize(("preset", "checkpointing"), [("fast", "auto"), ("reference", "off")])
def test_null_text_does_not_mix_devices(preset: str, checkpointing: str) -> None:
    with pretended_gpu():
        model = on_gpu(unets.build("SD15", shallow=True))
        source, _, negative = texts()
        trajectory = invert_latent(
            model, unets.latent(8, 12), source, 2, "reference", Ddim(), False
        )[0]
        optimised = null_text(
            model, trajectory, source, negative, 5.0, preset=preset, checkpointing=checkpointing
        )[0]
    assert optimised.extras["nulls"] is not None and not isinstance(
        optimised.extras["nulls"], OnGpu
    )


@pytest.mark.once("oldest")
@pytest.mark.parametrize("inverter", sorted(INVERTERS))
def test_inverters_do_not_mix_devices(inverter: str) -> None:
    with pretended_gpu():
        model = on_gpu(unets.build("SD15", shallow=True))
        source, _, negative = texts()
        trajectory, psnr, _ = invert_latent(
            model,
            unets.latent(8, 12),
            source,
            2,
            "reference",
            inverter_named(inverter),
            True,
            negative,
            2.0,
        )
    assert not isinstance(trajectory.latents, OnGpu) and math.isfinite(psnr)


# nodes


def executed(graph: dict[str, Any]) -> None:
    """Run a graph by the host's own executor in this process; AssertionError with its message."""
    import execution
    import server

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        memory = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
        executor = execution.PromptExecutor(
            server.PromptServer(loop), execution.CacheType.CLASSIC, memory
        )
        ends = [key for key, node in graph.items() if output_node(node["class_type"])]
        loop.run_until_complete(executor.execute_async(graph, "pretended", {}, ends))
    errors = [told for event, told in executor.status_messages if event == "execution_error"]
    assert executor.success and not errors, errors[0]["exception_message"]


def output_node(name: str) -> bool:
    import nodes

    return bool(getattr(nodes.NODE_CLASS_MAPPINGS[name], "OUTPUT_NODE", False))


@pytest.fixture
def all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's nodes with the pack's among them."""
    import nodes

    workflows.declarations()
    for kind in workflows.pack_nodes():
        name = kind.GET_SCHEMA().node_id
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, name, kind)


def workflow(name: str, folders: pathlib.Path, steps: int = 2) -> dict[str, Any]:
    """A shipped workflow with a picture and a few steps."""
    thumbnails.example().save(folders / "input" / "scene.png")
    graph = thumbnails.filled(name, "scene.png")
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = steps
    return graph


@pytest.mark.parametrize("gpu_only", [False, True])
@pytest.mark.parametrize("name", [path.stem for path in sorted(workflows.API.glob("*.json"))])
def test_workflows_do_not_mix_devices(name, gpu_only, folders, all_nodes) -> None:
    with pretended_gpu(gpu_only):
        executed(workflow(name, folders))


@pytest.mark.parametrize("gpu_only", [False, True])
def test_saving_and_loading_do_not_mix_devices(gpu_only, folders, all_nodes) -> None:
    graph = workflow("null_text", folders)
    (inversion,) = (
        key for key, node in graph.items() if node["class_type"] == "PivotNullTextOptimize"
    )
    save = {"inversion": [inversion, 0], "filename_prefix": "kept", "half_precision": True}
    with pretended_gpu(gpu_only):
        executed({**graph, "save": {"class_type": "PivotSaveInversion", "inputs": save}})
        (file,) = (folders / "output").glob("kept*")
        load = {"file": f"{file.name} [output]"}
        graph["load"] = {"class_type": "PivotLoadInversion", "inputs": load}
        executed(json.loads(json.dumps(graph).replace(f'["{inversion}", 0]', '["load", 0]')))


# the pretended GPU itself


def test_operands_on_two_devices_are_refused() -> None:
    with pretended_gpu():
        here, there = torch.ones(3), torch.ones(3, device=GPU)
        assert there.device == GPU and here.to(GPU).device == GPU and there.cpu().device != GPU
        for mixed in (
            lambda: here + there,
            lambda: torch.cat([here, there]),
            lambda: here.add_(there),
            lambda: here[torch.tensor([0], device=GPU)],
            lambda: torch.nn.functional.linear(there[None], torch.ones(2, 3)),
        ):
            with pytest.raises(DevicesMixed):
                mixed()
        assert (there * torch.tensor(2.0)).device == GPU
        assert there[torch.tensor([0])].device == GPU
        here.copy_(there)


def test_waits_and_launches_are_counted() -> None:
    from pivot_edit.core.columns import text_lengths

    with pretended_gpu() as seen:
        assert text_lengths(torch.ones(2, 154, 3, device=GPU)) == (77, 77)
    assert seen.waits_in("core/columns.py") == 1 and seen.launches["eq"] == 1
    assert seen.waits_in("attention/") == 0
