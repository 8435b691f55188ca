"""Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626), folded into V.

Every edit of the paper is linear in the attention probabilities, so it can be applied to V instead and computed
by fused attention: `(P_source M) V_target = P_source (M V_target)`. No map is ever built (METHODS 29.1).
"""

from __future__ import annotations

import dataclasses

import torch

from ..core.attention import Attend, AttentionCall, Kind, Place, edited_rows
from ..core.errors import PivotError
from ..core.words import Alignment


@dataclasses.dataclass(frozen=True, eq=False)
class PromptToPrompt:
    """Replace and refine edits of cross-attention, and source self-attention.

    alignment: how target columns read source columns.
    cross, self_: windows (start, end) as fractions of the steps, noise first; start = end is never.
    self_limit: self-attention is edited where a site has at most this fraction of the latent's tokens.
    """

    alignment: Alignment
    cross: tuple[float, float] = (0.0, 0.8)
    self_: tuple[float, float] = (0.0, 0.4)
    self_limit: float = 0.25

    def __post_init__(self) -> None:
        for name, (start, end) in (("cross", self.cross), ("self", self.self_)):
            if not 0.0 <= start <= 1.0 or not 0.0 <= end <= 1.0:
                raise PivotError(
                    f"{name}_start and {name}_end between 0 and 1",
                    f"{start} and {end}",
                    "They are fractions of the steps, counted from noise.",
                )

    def wants(self, kind: Kind, place: Place) -> bool:
        """Cross windows count on a table of N + 1 rows, self windows on N, as in the reference (METHODS 3.3)."""
        (start, end), rows = (self.cross, place.steps + 1) if kind == "cross" else (self.self_, place.steps)
        return int(start * rows) <= place.step < int(end * rows)

    def __call__(self, call: AttentionCall, attend: Attend) -> torch.Tensor:
        pairs = edited_rows(call.rows)
        if not pairs or not self.wants(call.site.kind, call.place):
            return attend(call)
        if call.site.kind == "cross":
            return self._cross(call, attend, pairs)
        return attend(_with_source_maps(call, pairs)) if call.site.area <= self.self_limit else attend(call)

    def _cross(self, call: AttentionCall, attend: Attend, pairs: list[tuple[int, int]]) -> torch.Tensor:
        targets = [target for target, _ in pairs]
        mapper, own = _fit_columns(self.alignment, call.v)
        edited = call.v.clone()
        mapped = torch.einsum("st,rtc->rsc", mapper, call.v[targets].to(mapper.dtype))
        edited[targets] = mapped.to(call.v.dtype)
        out = attend(_with_source_maps(call.replace(call.q, call.k, edited), pairs))
        if self.alignment.own.any():
            kept = call.v[targets] * own[:, None].to(call.v.dtype)
            out = out.clone()
            out[targets] += call.fused(call.q[targets], call.k[targets], kept)
        return out


def _with_source_maps(call: AttentionCall, pairs: list[tuple[int, int]]) -> AttentionCall:
    """The call with q and k of every target row replaced by its source's: the source's map on the target's v."""
    order = list(range(len(call.q)))
    for target, source in pairs:
        order[target] = source
    return call.replace(call.q[order], call.k[order], call.v)


def _fit_columns(alignment: Alignment, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mapper [T, T] and own [T] for the T columns of this call, on v's device, in its precision or fp32.

    Prompts of unequal length reach the UNet repeated to their common multiple. Repeats hold equal keys and
    values and share the attention equally, so the source's repeats all map to one copy of the target's columns.
    """
    mapper, own = alignment.mapper, alignment.own
    columns = v.shape[1]
    if columns % mapper.shape[0] or columns % mapper.shape[1]:
        raise PivotError(
            f"text context of a multiple of {mapper.shape[0]} and {mapper.shape[1]} tokens",
            f"{columns} tokens",
            "Encode both prompts with the same CLIP and do not append tokens to the conditioning.",
            "P2P Attention Controller",
        )
    fitted = torch.zeros(columns, columns)
    fitted[:, : mapper.shape[1]] = mapper.repeat(columns // mapper.shape[0], 1)
    precision = torch.promote_types(v.dtype, torch.float32)
    return fitted.to(v.device, precision), own.repeat(columns // len(own)).to(v.device)
