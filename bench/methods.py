"""The methods and controls that all benches compare: one entry each, for the API and in process.

A method says how a picture is inverted and prepared; a control says what acts while the edit is
sampled. `bench/graphs.py` makes API graphs of them; the inversion, null-text, speed and seconds
benches call the pack through them. A new method of inversion is a line in `METHODS`. A new
attention method is an entry in `ATTENTION` and a line in `CONTROLS`; its settings go into
`Settings`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from tools.pack import part

STEPS = 50
WORDS = ["pair", 2]
"""The link to the words in every graph of `bench/graphs.py`."""


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
    MasaCtrl, guidance. The defaults are the papers'."""

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


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of an API graph."""
    return {"class_type": kind, "inputs": inputs}


# -- methods: from a picture to its trajectory
# ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Method:
    """How a picture is inverted, and which correction its edits have.

    inverter: its name in the pack. preset: of Null-Text Optimize, "" where nothing is optimised.
    matched: inverted at the edit's own cfg. few: it costs so much that benches run it on few
    pictures.
    """

    correction: str
    inverter: str = "ddim"
    preset: str = ""
    matched: bool = False
    few: bool = False

    def inversion_rows(self, steps: int) -> int:
        """UNet rows that inverting a picture takes at most."""
        inverter = part("inversion").inverter_named(self.inverter)
        rows: int = inverter.rows(steps) * (2 if self.matched else 1)
        return rows

    def prepared(
        self, model: Any, latent: Any, source: Any, negative: Any, steps: int, cfg: float
    ) -> Any:
        """The trajectory of a LATENT, ready for edits at a cfg."""
        at = cfg if self.matched else 1.0
        pivot = inverted(model, latent, source, steps, self.inverter, negative, at)
        if not self.preset:
            return pivot
        settings = part("inversion.null_text").PRESETS[self.preset]
        found = optimized(model, pivot, source, negative, cfg, self.preset)[0]
        return part("host.tasks.null_text").with_embeddings(pivot, found, negative, cfg, settings)


METHODS = {
    "direct": Method("direct"),
    "null_text_fast": Method("null_text", preset="fast"),
    "null_text_reference": Method("null_text", preset="reference", few=True),
    "negative_prompt": Method("negative_prompt"),
    "ddim": Method("none"),
    "fixed_point": Method("none", inverter="fixed_point", matched=True),
    "uni": Method("none", inverter="uni"),
    "uni_direct": Method("direct", inverter="uni"),
}
"""By name. Those that start from the same inversion stand together: a server then runs it once."""
UNCORRECTED = "ddim"
"""The method without any correction, which the others are compared with."""


def inverted(
    model: Any,
    latent: Any,
    source: Any,
    steps: int,
    inverter: str,
    negative: Any = None,
    cfg: float = 1.0,
) -> Any:
    """The trajectory of a LATENT by an inverter's name."""
    run, chosen = (
        part("host.tasks.inversion").invert_latent,
        part("inversion").inverter_named(inverter),
    )
    return run(model, latent, source, steps, "reference", chosen, False, negative, cfg)[0]


def optimized(
    model: Any,
    pivot: Any,
    source: Any,
    negative: Any,
    cfg: float,
    preset: str,
    checkpointing: str = "off",
) -> tuple[Any, str]:
    """What null-text optimisation gives for a trajectory, and what it planned for its memory."""
    run, settings = (
        part("host.tasks.null_text").run_optimization,
        part("inversion.null_text").PRESETS[preset],
    )
    found, plan = run(model, pivot, source, negative, cfg, settings, checkpointing)[:2]
    return found, plan


# -- controls: what acts while the edit is sampled
# -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Attention:
    """An attention method.

    title: its name in figures. node: its node for a case, without the model. apply: the model under
    it, in process, for words of one or more targets; None where no bench runs it alone. rows: UNet
    rows that a step takes under direct inversion while it is open, for one target. modes: the word
    alignments under which its steps are timed.
    """

    title: str
    node: Callable[[Case, Settings], dict[str, Any]]
    apply: Callable[[Any, Any, Settings], Any] | None = None
    rows: int = 3
    modes: tuple[str, ...] = ("",)


def _p2p_node(case: Case, settings: Settings) -> dict[str, Any]:
    return node(
        "PivotPromptToPrompt",
        words=WORDS,
        cross_start=0.0,
        cross_end=settings.cross_end,
        self_start=0.0,
        self_end=settings.self_end,
        mode=settings.mode,
        self_limit=settings.self_limit,
        word_weights=case.weights,
    )


def _p2p(model: Any, words: Any, settings: Settings) -> Any:
    windows = ((0.0, settings.cross_end), (0.0, settings.self_end))
    kind = part("attention.prompt_to_prompt").PromptToPromptOptions
    return _controlled(model, kind(words, settings.mode, *windows, settings.self_limit))


def _controlled(model: Any, options: Any) -> Any:
    """The model under the controller that options are of."""
    return part("host.tasks.controls").controlled(model, options)[0]


def _masactrl_node(case: Case, settings: Settings) -> dict[str, Any]:
    return node(
        "PivotMasaCtrl", mode="plain", layers="auto", start=settings.masactrl_start, end=1.0
    )


def _masactrl(model: Any, words: Any, settings: Settings) -> Any:
    kind = part("attention.masactrl").MasaCtrlOptions
    return _controlled(model, kind(window=(settings.masactrl_start, 1.0)))


def _plain_node(kind: str) -> Callable[[Case, Settings], dict[str, Any]]:
    """A control node with the defaults of its inputs."""
    return lambda case, settings: node(kind, **_defaults(kind))


def _defaults(kind: str) -> dict[str, Any]:
    """The defaults of a control node's inputs, as its method's fields have them."""
    methods = (*part("attention").OPTIONS, *part("features").OPTIONS)
    (method,) = (each for each in methods if each.node and each.node.id == kind)
    defaults: dict[str, Any] = part("core.options").defaults(method)
    return defaults


def _blend_node(case: Case, settings: Settings) -> dict[str, Any]:
    return node(
        "PivotLocalBlend",
        words=WORDS,
        blend_words=case.blend_words,
        subtract_words=case.subtract_words,
        threshold=settings.threshold,
        subtract_threshold=settings.subtract_threshold,
        start=settings.blend_start,
        pool=settings.pool,
    )


ATTENTION = {
    "p2p": Attention("P2P", _p2p_node, _p2p, modes=("replace", "refine")),
    "masactrl": Attention("MasaCtrl", _masactrl_node, _masactrl, rows=4),
    "blend": Attention("Local Blend", _blend_node),
    "plug_and_play": Attention("Plug-and-Play", _plain_node("PivotPlugAndPlay"), rows=4),
    "style_aligned": Attention("StyleAligned", _plain_node("PivotStyleAligned"), rows=4),
}


@dataclasses.dataclass(frozen=True)
class Control:
    """What acts while the edit is sampled.

    attention: names in ATTENTION, in the order of their nodes. guidance: a preset of CFG / Proximal
    Guidance. paste: the edit is pasted into the picture at Local Blend's mask. output: what the
    Edit Sampler gives, the edit (0) or the source as it comes back (1). compared: it stands beside
    the others in every comparison of controls.
    """

    attention: tuple[str, ...] = ()
    guidance: str = ""
    paste: bool = False
    output: int = 0
    compared: bool = True


CONTROLS = {
    "none": Control(),
    "p2p": Control(("p2p",)),
    "p2p_blend": Control(("p2p", "blend")),
    "proxnpi": Control(("p2p",), guidance="proxnpi"),
    "masactrl": Control(("masactrl",)),
    "plug_and_play": Control(("plug_and_play",), compared=False),
    "style_aligned": Control(("style_aligned",), compared=False),
    "proxmasactrl": Control(("masactrl",), guidance="proxmasactrl"),
    "p2p_blend_paste": Control(("p2p", "blend"), paste=True, compared=False),
    "proxnpi_pie": Control(("p2p", "blend"), guidance="proxnpi_pie_bench", compared=False),
    "reconstruction": Control(output=1, compared=False),
}
EDITS = tuple(name for name, control in CONTROLS.items() if control.compared)
"""The controls that are compared with each other."""
PASTED = "p2p_blend_paste"


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
        "guide_time": rule.guide_time,
    }
