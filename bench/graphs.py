"""ComfyUI graphs of an edit under any inversion method and attention control, in API format.

One graph makes the edits of one picture under one method, by any number of controls: the host
inverts once. Node ids are names, so that a program finds each control's picture and report again:

    graph = edit_graph(Case("photo.png", "a cat", "a dog", "cat, dog"), "direct", {"p2p_blend":
    Settings()}) result = client.run(graph) result.images["p2p_blend"][0].save("dog.png")
    rows_per_step(result.texts["p2p_blend.report"][0])
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from tools.client import Graph
from tools.pack import part

STEPS = 50


@dataclasses.dataclass(frozen=True)
class Case:
    """An uploaded picture, its prompts, words whose place changes (for Local Blend; subtract: whose
    place stays) and word weights."""

    picture: str
    source: str
    target: str
    blend_words: str = ""
    subtract_words: str = ""
    weights: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an edit's nodes are set to, by the nodes' own names: P2P's windows, Local Blend,
    MasaCtrl, guidance; by default as the papers have it."""

    cfg: float = 7.5
    steps: int = STEPS
    mode: str = "auto"
    cross_end: float = 0.8
    self_end: float = 0.4
    self_limit: float = 0.25
    threshold: float = 0.3
    subtract_threshold: float = 0.3
    blend_start: float = 0.2
    pool: bool = True
    masactrl_start: float = 0.08
    quantile: float | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """How an inversion method's nodes are set. preset: of Null-Text Optimize; matched: inverted at
    the edit's cfg."""

    correction: str
    inverter: str = "ddim"
    preset: str = ""
    matched: bool = False


METHODS = {
    "ddim": Method("none"),
    "negative_prompt": Method("negative_prompt"),
    "null_text_fast": Method("null_text", preset="fast"),
    "null_text_reference": Method("null_text", preset="reference"),
    "direct": Method("direct"),
    "fixed_point": Method("none", inverter="fixed_point", matched=True),
}


@dataclasses.dataclass(frozen=True)
class Control:
    """What acts while the edit is sampled: P2P, Local Blend, MasaCtrl, and a preset of CFG /
    Proximal Guidance. paste: the edit is pasted into the picture at Local Blend's mask. output:
    what the Edit Sampler gives, the edit (0) or the source as it comes back (1)."""

    p2p: bool = False
    blend: bool = False
    masactrl: bool = False
    guidance: str = ""
    paste: bool = False
    output: int = 0


CONTROLS = {
    "none": Control(),
    "p2p": Control(p2p=True),
    "p2p_blend": Control(p2p=True, blend=True),
    "proxnpi": Control(p2p=True, guidance="proxnpi"),
    "masactrl": Control(masactrl=True),
    "proxmasactrl": Control(masactrl=True, guidance="proxmasactrl"),
    "p2p_blend_paste": Control(p2p=True, blend=True, paste=True),
    "proxnpi_pie": Control(p2p=True, blend=True, guidance="proxnpi_pie_bench"),
    "reconstruction": Control(output=1),
}
EDITS = ("none", "p2p", "p2p_blend", "proxnpi", "masactrl", "proxmasactrl")
"""The controls that are compared with each other."""
PASTED = "p2p_blend_paste"


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


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of an API graph."""
    return {"class_type": kind, "inputs": inputs}


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
    for title, made in _controllers(case, control, settings):
        patched = {**made, "inputs": {"model": model, **made["inputs"]}}
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


def _controllers(
    case: Case, control: Control, settings: Settings
) -> list[tuple[str, dict[str, Any]]]:
    """The nodes that take a model and give one, in their order."""
    found = []
    if control.p2p:
        windows = {
            "cross_start": 0.0,
            "cross_end": settings.cross_end,
            "self_start": 0.0,
            "self_end": settings.self_end,
        }
        others = {
            "mode": settings.mode,
            "self_limit": settings.self_limit,
            "word_weights": case.weights,
        }
        found.append(("p2p", node("PivotPromptToPrompt", words=["pair", 2], **windows, **others)))
    if control.masactrl:
        options = {"mode": "plain", "layers": "auto", "start": settings.masactrl_start, "end": 1.0}
        found.append(("masactrl", node("PivotMasaCtrl", **options)))
    if control.blend:
        options = {
            "blend_words": case.blend_words,
            "subtract_words": case.subtract_words,
            "threshold": settings.threshold,
            "subtract_threshold": settings.subtract_threshold,
            "start": settings.blend_start,
            "pool": settings.pool,
        }
        found.append(("blend", node("PivotLocalBlend", words=["pair", 2], **options)))
    return found


def proximal(preset: str, quantile: float | None = None) -> dict[str, Any]:
    """Inputs of CFG / Proximal Guidance: a preset, or the same with another quantile, as custom
    values."""
    rule = part("host.tasks.guidance").PRESETS[preset]
    return {
        "preset": preset if quantile is None else "custom",
        "operator": rule.operator,
        "quantile": rule.quantile if quantile is None else quantile,
        "threshold": rule.threshold,
        "population": rule.population,
        "start": rule.window[0],
        "end": rule.window[1],
        "inversion_rate": rule.inversion_rate,
        "reconstruction_rate": rule.reconstruction_rate,
        "guide_start": rule.guide_window[0],
        "guide_end": rule.guide_window[1],
        "dilation": rule.dilation,
        "source_cfg": rule.source_cfg or 0.0,
    }


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
    calls = 1 + part("inversion").FixedPoint.iterations if chosen.matched else 1
    found = re.search(r"(\d+) forward and (\d+) backward UNet rows", report)
    if chosen.preset and found is None:
        raise ValueError(f"expected Null-Text Optimize's report with UNet rows, got {report!r}")
    return steps * calls * (2 if chosen.matched else 1) + (
        int(found[1]) + int(found[2]) if found else 0
    )
