"""Node declarations: schema in, one call out, no mathematics."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..host.tasks.storage import clear_parts
from .checked import checked
from .compare import PivotCompare, PivotPasteEdit
from .guidance import PivotProximalGuidance, PivotProximalGuider
from .inversion import PivotDDIMInversion, PivotInversionParts
from .loaders import PivotToyModel
from .maps import PivotAttentionMaps, PivotBlendMask
from .methods import method_nodes
from .null_text import PivotNullTextOptimize
from .prompts import (
    PivotAddTarget,
    PivotPromptPair,
    PivotRowsForKSampler,
    PivotSourcePrompt,
)
from .report import PivotInversionReport
from .sampling import PivotEditGuider, PivotEditSampler
from .storage import PivotLoadInversion, PivotSaveInversion

NODES: list[type[io.ComfyNode]] = [
    PivotToyModel,
    PivotSourcePrompt,
    PivotPromptPair,
    PivotAddTarget,
    PivotRowsForKSampler,
    PivotDDIMInversion,
    PivotNullTextOptimize,
    PivotInversionParts,
    PivotSaveInversion,
    PivotLoadInversion,
    PivotInversionReport,
    *method_nodes().values(),
    PivotEditSampler,
    PivotEditGuider,
    PivotProximalGuidance,
    PivotProximalGuider,
    PivotAttentionMaps,
    PivotBlendMask,
    PivotCompare,
    PivotPasteEdit,
]


for _node in NODES:
    checked(_node)


class PivotEditExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def on_load(self) -> None:
        clear_parts()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
