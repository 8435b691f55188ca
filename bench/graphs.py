"""ComfyUI graphs of an edit under any inversion method and attention control, in API format.

One graph makes the edits of one picture under one method, by any number of controls: the host
inverts once. Node ids are names, so that a program finds each control's picture and report again:

    case = Case("photo.png", "a cat", "a dog", "cat, dog")
    result = client.run(edit_graph(case, "direct", {"p2p_blend": Settings()}))
    result.images["p2p_blend"][0].save("dog.png")
    rows_per_step(result.texts["p2p_blend.report"][0])
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench.methods import ATTENTION, CONTROLS, METHODS, Case, Method, Settings, node, proximal
from tools.client import Graph


def edit_graph(
    case: Case,
    method: str,
    controls: Mapping[str, Settings],
    checkpoint: str = "",
    prefix: str = "pivot/bench",
    check: bool = False,
) -> Graph:
    """The graph of one method and some controls, each with its settings; all settings need the same
    steps and, for methods that are matched or optimised to it, the same cfg.

    A control may stand there more than once, as `<control>@<anything>`. Saves a picture at every
    name; `<name>.report` shows the sampler's report. checkpoint: a file for the stock loader ("":
    the toy model). check: saves the autoencoder's round trip as `ceiling`, too.
    """
    steps, cfgs = {one.steps for one in controls.values()}, {one.cfg for one in controls.values()}
    chosen = METHODS[method]
    if len(steps) != 1 or (len(cfgs) != 1 and (chosen.matched or chosen.preset)):
        raise ValueError(
            f"expected one number of steps and one cfg for {method}, got {sorted(steps)}, "
            f"{sorted(cfgs)}"
        )
    graph = _inverted(case, chosen, steps.pop(), min(cfgs), checkpoint)
    for name, settings in controls.items():
        graph |= _edited(case, chosen, name, settings, prefix, graph)
    if check:
        graph |= saved("ceiling", ["encode", 0], prefix)
    return graph


def control_of(name: str) -> str:
    """The control of a name such as `p2p` or `p2p@weak`."""
    return name.partition("@")[0]


def _inverted(case: Case, method: Method, steps: int, cfg: float, checkpoint: str) -> Graph:
    """From the picture to the inversion, at node `inversion` or, optimised, `null_text`."""
    loader = (
        node("CheckpointLoaderSimple", ckpt_name=checkpoint)
        if checkpoint
        else node("PivotToyModel")
    )
    pair = node(
        "PivotPromptPair", clip=["model", 1], source_prompt=["source", 1], target_prompt=case.target
    )
    empty = node("CLIPTextEncode", clip=["model", 1], text="")
    inversion = node(
        "PivotDDIMInversion",
        model=["model", 0],
        latent=["encode", 0],
        source=["source", 0],
        steps=steps,
        levels="reference",
        evaluation="reference",
        check_reconstruction=False,
        method=method.inverter,
    )
    graph = {
        "model": loader,
        "image": node("LoadImage", image=case.picture),
        "encode": node("VAEEncode", pixels=["image", 0], vae=["model", 2]),
        "source": node("PivotSourcePrompt", clip=["model", 1], prompt=case.source),
        "pair": pair,
        "inversion": inversion,
    }
    pair["inputs"]["negative_prompt"] = ""
    if method.matched:
        inversion["inputs"] |= {"cfg": cfg, "negative": ["empty", 0]}
    if method.preset:
        options = {
            "source": ["source", 0],
            "negative": ["empty", 0],
            "cfg": cfg,
            "preset": method.preset,
        }
        options["checkpointing"] = "auto"
        graph["null_text"] = node(
            "PivotNullTextOptimize", model=["model", 0], inversion=["inversion", 0], **options
        )
        graph["null_text.report"] = node("PreviewAny", source=["null_text", 3])
    if method.matched or method.preset:
        graph["empty"] = empty
    return graph


def _edited(
    case: Case, method: Method, name: str, settings: Settings, prefix: str, there: Graph
) -> Graph:
    """From the inversion to a saved picture under one control; a sampler that is there already is
    not run again."""
    control, graph = CONTROLS[control_of(name)], {}
    model: list[Any] = ["model", 0]
    for title in control.attention:
        alone = ATTENTION[title].node(case, settings)
        patched = {**alone, "inputs": {"model": model, **alone["inputs"]}}
        model = [_place(there, patched, f"{name}.{title}"), 0]
        graph[model[0]] = patched
    sampler = node(
        "PivotEditSampler",
        model=model,
        inversion=["null_text" if method.preset else "inversion", 0],
        source=["pair", 0],
        target=["pair", 1],
        negative=["pair", 3],
        cfg=settings.cfg,
        correction=method.correction,
    )
    if control.guidance:
        graph[f"{name}.guidance"] = node(
            "PivotProximalGuidance", **proximal(control.guidance, settings.quantile)
        )
        sampler["inputs"]["guidance"] = [f"{name}.guidance", 0]
    run = _place(there, sampler, f"{name}.edit")
    graph[run] = sampler
    graph[f"{name}.report"] = node("PreviewAny", source=[run, 2])
    graph |= saved(name, [run, control.output], prefix)
    if control.paste:
        graph[f"{name}.paste"] = _pasted(graph[name]["inputs"]["images"], [run, 3])
        graph[name]["inputs"]["images"] = [f"{name}.paste", 0]
    return graph


def _place(there: Graph, made: dict[str, Any], name: str) -> str:
    """The id of a node like this one that is there already, or else its own."""
    return next((key for key, other in there.items() if other == made), name)


def sampler_of(graph: Graph, name: str) -> str:
    """The id of the Edit Sampler that runs for a name; several may share one."""
    found: str = graph[f"{name}.report"]["inputs"]["source"][0]
    return found


def _pasted(edited: list[Any], mask: list[Any]) -> dict[str, Any]:
    """The picture itself, and the edit where the mask is."""
    place = {"x": 0, "y": 0, "resize_source": False}
    return node("ImageCompositeMasked", destination=["image", 0], source=edited, mask=mask, **place)


def saved(name: str, latent: list[Any], prefix: str) -> Graph:
    """A latent decoded, and saved under a name."""
    return {
        f"{name}.decode": node("VAEDecode", samples=latent, vae=["model", 2]),
        name: node("SaveImage", images=[f"{name}.decode", 0], filename_prefix=f"{prefix}/{name}"),
    }


def rows_per_step(report: str) -> float:
    """The UNet rows that an edit ran a step, out of the sampler's report; ValueError if it does not
    say."""
    found = re.search(r"([\d.]+) UNet rows a step", report)
    if found is None:
        raise ValueError(f"expected a sampler's report with UNet rows, got {report!r}")
    return float(found[1])


def prepare_rows(method: str, steps: int, report: str = "") -> float:
    """UNet rows that a picture needs before it is edited: of the inversion, by its formula, and of
    null-text's forward and backward passes, which its report says."""
    chosen = METHODS[method]
    found = re.search(r"(\d+) forward and (\d+) backward UNet rows", report)
    if chosen.preset and found is None:
        raise ValueError(f"expected Null-Text Optimize's report with UNet rows, got {report!r}")
    passes = int(found[1]) + int(found[2]) if found else 0
    return chosen.inversion_rows(steps) + passes
