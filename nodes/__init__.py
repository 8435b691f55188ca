"""Node declarations: schema in, one call out, no mathematics."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attention import PivotLocalBlend, PivotMasaCtrl, PivotPromptToPrompt
from .compare import PivotCompare
from .guidance import PivotProximalGuidance, PivotProximalGuider
from .inversion import (
    PivotDDIMInversion,
    PivotDirectInversion,
    PivotInversionParts,
    PivotNegativePromptInversion,
)
from .loaders import PivotToyModel
from .maps import PivotAttentionMaps, PivotBlendMask, PivotRecordAttention
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
    PivotNegativePromptInversion,
    PivotDirectInversion,
    PivotInversionParts,
    PivotSaveInversion,
    PivotLoadInversion,
    PivotInversionReport,
    PivotPromptToPrompt,
    PivotLocalBlend,
    PivotMasaCtrl,
    PivotEditSampler,
    PivotEditGuider,
    PivotProximalGuidance,
    PivotProximalGuider,
    PivotRecordAttention,
    PivotAttentionMaps,
    PivotBlendMask,
    PivotCompare,
]


class PivotEditExtension(ComfyExtension):
    """The pack as ComfyUI sees it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
