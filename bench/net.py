# ruff: noqa: E501
"""A net before a leap: what every workflow and a table of edits gives, recorded and compared.

`python -m bench.net record FOLDER` runs the API workflows and every correction under every control,
with one and three targets, one and two pictures, and stock samplers, on one server, and keeps all
latents and pictures. `python -m bench.net compare OLD NEW` names what is no longer equal bit for
bit, and by how much.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import safetensors.numpy

from bench.methods import node
from tools import install
from tools.client import Client, Graph, JobFailed
from tools.pictures import to_image
from tools.server import Server
from toy.scenes import Scene

WORKFLOWS = install.ROOT / "workflows" / "api"
STEPS = 6
CORRECTIONS = ("direct", "negative_prompt", "null_text", "none")
TARGETS = ("a striped blue star at the left of a "
           "meadow", "a dotted red star at the left of a meadow",
           "a small striped red circle at the left of a meadow")  # fmt: skip
SOURCE = "a striped red star at the left of a meadow"
CONTROLS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "plain": [],
    "p2p": [("PivotPromptToPrompt", {"mode": "auto", "word_weights": "star: 1.5"})],
    "blend": [
        ("PivotPromptToPrompt", {"mode": "refine"}),
        ("PivotLocalBlend", {"blend_words": "red, star", "threshold": 0.3, "start": 0.2}),
    ],
    "masactrl": [("PivotMasaCtrl", {"mode": "plain", "start": 0.2})],
    "masactrl_words": [("PivotMasaCtrl", {"mode": "union", "start": 0.2, "mask_words": "star"})],
    "all": [
        ("PivotPromptToPrompt", {"self_end": 0.8}),
        ("PivotMasaCtrl", {"start": 0.2}),
        ("PivotRecordAttention", {}),
    ],
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "PivotPromptToPrompt": {
        "mode": "auto", "cross_start": 0.0, "cross_end": 0.8, "self_start": 0.0, "self_end": 0.4, "self_limit": 0.25,
        "word_weights": "", "word_windows": "", "mapper": "fixed",
    },
    "PivotLocalBlend": {
        "blend_words": "", "subtract_words": "", "threshold": 0.3, "subtract_threshold": 0.5, "start": 0.2,
        "pool": False,
    },
    "PivotMasaCtrl": {
        "mode": "plain", "layers": "auto", "start": 0.08, "end": 1.0, "mask_words": "", "mask_threshold": 0.1,
    },
    "PivotRecordAttention": {"start": 0.0, "end": 1.0},
    "PivotProximalGuidance": {
        "preset": "custom", "operator": "soft", "quantile": 0.4, "threshold": 0.0, "population": "target",
        "start": 0.0, "end": 1.0, "inversion_rate": 0.5, "reconstruction_rate": 0.2, "guide_start": 0.0,
        "guide_end": 1.0, "dilation": 1, "source_cfg": 2.0,
    },
}  # fmt: skip


def base(pictures: int, targets: int, method: str = "ddim") -> Graph:
    """Inversion and prompts: nodes `model`, `inversion`, `words`, `target`."""
    graph = {
        "model": node("PivotToyModel"),
        "image0": node("LoadImage", image="net0.png"),
        "image1": node("LoadImage", image="net1.png"),
        "images": node("ImageBatch", image1=["image0", 0], image2=["image1", 0]),
        "encode": node("VAEEncode", pixels=["images" if pictures == 2 else "image0", 0], vae=["model", 2]),
        "source": node("PivotSourcePrompt", clip=["model", 1], prompt=SOURCE),
        "inversion": node(
            "PivotDDIMInversion", model=["model", 0], latent=["encode", 0], source=["source", 0], steps=STEPS,
            levels="reference", evaluation="reference", check_reconstruction=False, method=method,
        ),
        "pair": node(
            "PivotPromptPair", clip=["model", 1], source_prompt=SOURCE, target_prompt=TARGETS[0], negative_prompt="",
        ),
    }  # fmt: skip
    last: tuple[list[Any], list[Any]] = (["pair", 1], ["pair", 2])
    for number in range(1, targets):
        graph[f"add{number}"] = node(
            "PivotAddTarget",
            clip=["model", 1],
            target=last[0],
            words=last[1],
            target_prompt=TARGETS[number],
        )
        last = ([f"add{number}", 0], [f"add{number}", 1])
    graph["null"] = node(
        "PivotNullTextOptimize", model=["model", 0], inversion=["inversion", 0], source=["source", 0],
        negative=["pair", 3], cfg=3.0, preset="fast", checkpointing="off",
    )  # fmt: skip
    graph["controls"] = {"target": last[0], "words": last[1]}
    return graph


def controlled(graph: Graph, control: str) -> tuple[Graph, list[Any]]:
    """The graph with a control's nodes, and the model behind them."""
    model: list[Any] = ["model", 0]
    words = graph["controls"]["words"]
    for kind, options in CONTROLS[control]:
        given = {"words": words} if kind != "PivotRecordAttention" else {}
        graph[kind] = node(kind, model=model, **given, **{**DEFAULTS[kind], **options})
        model = [kind, 0]
    return graph, model


def saved(graph: Graph, **latents: list[Any]) -> Graph:
    """Latents kept under their names."""
    for name, latent in latents.items():
        graph[f"save {name}"] = node("SaveLatent", samples=latent, filename_prefix=f"net/{name}")
    return {key: value for key, value in graph.items() if key != "controls"}


def edits() -> Iterator[tuple[str, Graph]]:
    """Every correction x control x targets x pictures, by the Edit Sampler."""
    for targets, pictures, correction, control in itertools.product(
        (1, 3), (1, 2), CORRECTIONS, CONTROLS
    ):
        graph, model = controlled(base(pictures, targets), control)
        yield (
            f"edit {correction} {control} {targets}t {pictures}p",
            saved(edited(graph, model, correction), edited=["edit", 0], reconstructed=["edit", 1]),
        )
    for correction, control in itertools.product(CORRECTIONS, ("plain", "p2p")):
        graph, model = controlled(base(1, 1), control)
        graph["rule"] = node("PivotProximalGuidance", **DEFAULTS["PivotProximalGuidance"])
        graph = edited(graph, model, correction)
        graph["edit"]["inputs"]["guidance"] = ["rule", 0]
        yield (
            f"proximal {correction} {control}",
            saved(graph, edited=["edit", 0], reconstructed=["edit", 1]),
        )
    graph, model = controlled(base(1, 1, "fixed_point"), "p2p")
    yield (
        "fixed_point p2p",
        saved(edited(graph, model, "none"), edited=["edit", 0], reconstructed=["edit", 1]),
    )


def edited(graph: Graph, model: list[Any], correction: str) -> Graph:
    """The graph with the Edit Sampler behind it."""
    graph["edit"] = node("PivotEditSampler", **_edit_inputs(graph, model, correction))
    return graph


def _edit_inputs(graph: Graph, model: list[Any], correction: str) -> dict[str, Any]:
    return {
        "model": model,
        "inversion": ["null" if correction == "null_text" else "inversion", 0],
        "source": ["pair", 0],
        "target": graph["controls"]["target"],
        "negative": ["pair", 3],
        "cfg": 3.0,
        "correction": correction,
    }


def stock() -> Iterator[tuple[str, Graph]]:
    """Stock samplers: SamplerCustomAdvanced with the parts and with euler, and the KSampler on
    rows."""
    for correction, control, sampler in itertools.product(
        CORRECTIONS, ("plain", "p2p", "blend", "masactrl"), ("parts", "euler")
    ):
        graph, model = controlled(base(1, 1), control)
        given = _edit_inputs(graph, model, correction)
        graph["guider"] = node("PivotEditGuider", **given)
        graph["parts"] = node(
            "PivotInversionParts", model=model, inversion=given["inversion"], correction=correction
        )
        graph["euler"] = node("KSamplerSelect", sampler_name="euler")
        graph["sample"] = node(
            "SamplerCustomAdvanced", noise=["parts", 2], guider=["guider", 0], sigmas=["parts", 1],
            sampler=["parts", 0] if sampler == "parts" else ["euler", 0], latent_image=["parts", 3],
        )  # fmt: skip
        yield f"advanced {sampler} {correction} {control}", saved(graph, sampled=["sample", 0])
    for control, sampler, targets in itertools.product(CONTROLS, ("euler", "dpmpp_2m"), (1, 3)):
        graph, model = controlled(base(1, targets), control)
        graph["rows"] = node(
            "PivotRowsForKSampler", source=["pair", 0], target=graph["controls"]["target"]
        )
        graph["empty"] = node(
            "EmptyLatentImage", width=128, height=128, batch_size=2 * (1 + targets)
        )
        graph["sample"] = node(
            "KSampler", model=model, seed=7, steps=STEPS, cfg=3.0, sampler_name=sampler, scheduler="ddim_uniform",
            positive=["rows", 0], negative=["pair", 3], latent_image=["empty", 0], denoise=1.0,
        )  # fmt: skip
        yield f"ksampler {sampler} {control} {targets}t", saved(graph, sampled=["sample", 0])


def workflows() -> Iterator[tuple[str, Graph]]:
    """The shipped workflows in their API form, as they are."""
    for path in sorted(WORKFLOWS.glob("*.json")):
        graph: Graph = json.loads(path.read_text())
        for value in graph.values():
            if value["class_type"] == "LoadImage":
                value["inputs"]["image"] = "net0.png"
        yield f"workflow {path.stem}", graph


def record(folder: pathlib.Path) -> int:
    """Run everything; a file of tensors for each graph. Returns how many failed."""
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    with Server(cpu=True) as server, Client(server.url) as client:
        star = Scene.sample(10_000_003)
        other = Scene.sample(10_000_004)
        for number, scene in enumerate((star, other)):
            client.upload(to_image(scene.render()), f"net{number}.png")
        for name, graph in itertools.chain(edits(), stock(), workflows()):
            try:
                result = client.run(graph)
            except JobFailed as error:
                failed += 1
                safetensors.numpy.save_file(
                    {"failed": np.frombuffer(str(error).encode(), np.uint8)},
                    folder / f"{name}.safetensors",
                )
                print(f"{name}: {error}", file=sys.stderr)
                continue
            kept = {f"image {key} {i}": np.asarray(image) for key, images in result.images.items()
                    for i, image in enumerate(images)}  # fmt: skip
            kept |= {f"preview {key} "
                     f"{i}": np.asarray(image) for key, images in result.previews.items()
                     for i, image in enumerate(images)}  # fmt: skip
            for key, output in client.history(result.prompt_id).get("outputs", {}).items():
                for reference in output.get("latents", ()):
                    path = server.base / "output" / reference["subfolder"] / reference["filename"]
                    kept[key] = safetensors.numpy.load_file(path)["latent_tensor"]
            safetensors.numpy.save_file(kept, folder / f"{name}.safetensors")
            print(name, flush=True)
    return failed


def compare(old: pathlib.Path, new: pathlib.Path) -> list[str]:
    """What differs, a line each: the largest difference, and its share of the largest value."""
    lines = []
    for path in sorted(old.glob("*.safetensors")):
        if not (new / path.name).exists():
            lines.append(f"{path.stem}: missing")
            continue
        before, after = (
            safetensors.numpy.load_file(path),
            safetensors.numpy.load_file(new / path.name),
        )
        for key in sorted({*before, *after}):
            a, b = before.get(key), after.get(key)
            if a is None or b is None or a.shape != b.shape:
                lines.append(
                    f"{path.stem}, {key}: {a if a is None else a.shape} "
                    f"{b if b is None else b.shape}"
                )
            elif not np.array_equal(a, b):
                away = float(np.abs(a.astype(float) - b.astype(float)).max())
                lines.append(
                    f"{path.stem}, {key}: {away:.2e} of {float(np.abs(a.astype(float)).max()):.2e}"
                )
    return lines


def main() -> int:
    """Record or compare; 1 where something failed or differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    if options.what == "record":
        return min(1, record(options.folders[0]))
    lines = compare(*options.folders)
    print("\n".join(lines) or "everything is equal bit for bit")
    return min(1, len(lines))


if __name__ == "__main__":
    sys.exit(main())
