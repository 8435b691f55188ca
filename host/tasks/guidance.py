"""From a node's settings to a guidance rule."""

from __future__ import annotations

from typing import Any

from ...core.guidance import Guidance
from ...core.options import from_inputs, in_words
from ...guidance import ClassifierFree, Proximal

CUSTOM, PLAIN = "custom", "cfg"
PRESETS: dict[str, Proximal] = {
    "proxnpi": Proximal("soft", 0.7, population="legacy", inversion_rate=1.0, guide_time=400.0),
    "proxnpi_pie_bench": Proximal("soft", 0.75, population="legacy"),
    "proxmasactrl": Proximal("soft", 0.6, source_cfg=1.0),
}
"""The papers' settings as their public code runs them: README's ProxNPI, the runner of PIE-Bench
and README's ProxMasaCtrl. The runner asks for inversion guidance and never passes it on."""


def described(rule: Guidance) -> str:
    """A rule and the values that it uses, in one line."""
    return f"{rule.title}: {in_words(rule)}."


def guidance(preset: str, operator: str, source_cfg: float, **inputs: Any) -> Guidance:
    """A preset, or the rule that the other inputs describe. source_cfg 0 is the targets' cfg."""
    if preset != CUSTOM:
        return PRESETS[preset]
    scale = source_cfg or None
    if operator == PLAIN:
        return ClassifierFree(scale)
    return from_inputs(Proximal, {"operator": operator, "source_cfg": scale, **inputs})
