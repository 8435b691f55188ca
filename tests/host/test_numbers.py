"""Numbers that come through links, which ComfyUI does not compare with a node's ranges."""

from __future__ import annotations

from typing import Any

import pytest
from comfy_api.latest import io

from bench import workflows
from pivot_edit.core.errors import PivotError

NODES = {kind.define_schema().node_id: kind for kind in workflows.pack_nodes()}
CHECKED = [
    *("PivotPromptToPrompt", "PivotLocalBlend", "PivotMasaCtrl", "PivotRecordAttention"),
    *("PivotProximalGuidance", "PivotProximalGuider", "PivotAttentionMaps"),
    *("PivotNegativePromptInversion", "PivotDirectInversion", "PivotInversionParts"),
]
SAMPLED = {"cfg"}
"""What the host's own guider is given."""


def numbers() -> list[tuple[str, str]]:
    """Every number of these nodes."""
    return [
        (node, entry.id)
        for node in CHECKED
        for entry in NODES[node].define_schema().inputs
        if isinstance(entry, io.Float.Input | io.Int.Input) and entry.id not in SAMPLED
    ]


@pytest.mark.parametrize(("node", "name"), numbers())
def test_a_number_that_is_none_or_out_of_range_is_refused_by_name(node: str, name: str) -> None:
    """Before anything else of the node is looked at."""
    entries = NODES[node].define_schema().inputs
    usual: dict[str, Any] = {entry.id: getattr(entry, "default", ()) for entry in entries}
    (asked,) = [entry for entry in entries if entry.id == name]
    for value in (float("nan"), asked.min - 1, asked.max + 1):
        with pytest.raises(PivotError, match=rf"Expected .*\b{name}\b.* in [A-Z]"):
            NODES[node].execute(**{**usual, name: value})
