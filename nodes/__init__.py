"""Node declarations: schema in, one call out, no mathematics."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attention import PivotPromptToPrompt
from .compare import PivotCompare
from .inversion import PivotDDIMInversion, PivotInversionParts
from .loaders import PivotToyModel
from .prompts import PivotPromptPair, PivotSourcePrompt
from .sampling import PivotEditGuider, PivotEditSampler

NODES: list[type[io.ComfyNode]] = [
    PivotToyModel,
    PivotSourcePrompt,
    PivotPromptPair,
    PivotDDIMInversion,
    PivotInversionParts,
    PivotPromptToPrompt,
    PivotEditSampler,
    PivotEditGuider,
    PivotCompare,
]


class PivotEditExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
