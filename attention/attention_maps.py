"""Attention maps of every word, recorded from any sampling (Tang et al. 2022, DAAM, arXiv
2210.04885).

A map says where a word is looked at: the mean over heads and layers of one scale, summed over a
window of the steps. All columns of the text are recorded, so that words are chosen afterwards. The
maps are folded: one-hot values go through fused attention, edits of other controllers included.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from ..core import options
from ..core.columns import text_columns
from ..core.control import (
    Attend,
    AttentionCall,
    Controller,
    Kind,
    ModelFacts,
    Place,
    Row,
    window_open,
)
from ..core.errors import check_window
from ..core.layers import Layer, map_scale
from ..core.maps import Groups, MapSum, Results, key_of, word_maps
from ..core.options import NodeText


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps(Controller):
    """Records the cross-attention maps of a run."""

    title: ClassVar[str] = "Record Attention"
    node: ClassVar[NodeText] = NodeText(
        "PivotRecordAttention",
        title,
        "Makes a model note where it looks for every word, with any sampler. Sample with it, then "
        "show the heat maps with Attention Maps. The picture stays the same.",
        ("daam", "attention heat map", "cross attention map", "record maps"),
        model="The model to watch; the model itself is left as it is.",
    )
    needs_source: ClassVar[bool] = False
    same_noise: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    scales: tuple[int, ...] = ()
    """The scales that the model has attention at."""
    start: float = options.fraction(
        0.0,
        "From which fraction of the steps on. Early steps show the layout, late ones details.",
    )
    end: float = options.fraction(
        1.0,
        "Until which fraction of the steps. A shorter window costs less; usually 1.",
    )
    results: Results = dataclasses.field(default_factory=Results)
    """The maps of runs, [h, w, columns], by the latent that they gave."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window((self.start, self.end), "", self.title)

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "cross" and window_open((self.start, self.end), place, place.steps)

    def at(self, kind: Kind, layer: Layer, latent: tuple[int, int]) -> bool:
        """Layers of the one scale at which maps are read."""
        return layer.scale == map_scale(latent, self.scales)

    def begin(self) -> MapSum:
        """Sums of no maps yet."""
        return MapSum()

    def __call__(self, call: AttentionCall, attend: Attend, state: MapSum) -> torch.Tensor:
        if self.works(call.site, call.place):
            state.add(call, word_maps(call, self._groups(call), state.values))
        return attend(call)

    @staticmethod
    def _groups(call: AttentionCall) -> Groups:
        """Every column of the texts as a word of its own, repeats counted once."""
        groups: Groups = {}
        for index, row in enumerate(call.rows):
            if row.cond:
                columns = text_columns(call, index, 1, AttentionMaps.title)
                every = (columns, tuple((column,) for column in range(columns)))
                groups.setdefault((row.branch, row.target), every)
        return groups

    def finish(self, samples: torch.Tensor, rows: tuple[Row, ...], state: MapSum) -> None:
        """Keeps each row's maps, to be shown."""
        samples = samples.cpu()
        for index, row in enumerate(rows):
            maps = state.sums.get(key_of(row))
            if maps is not None:
                self.results.put(samples[index], maps.cpu())

    def build(self, model: ModelFacts) -> tuple[AttentionMaps, str]:
        """The recorder of a model's own scales."""
        return AttentionMaps(model.scales, self.start, self.end), ""
