"""One dispatcher per attention slot, put in place for the length of one UNet call.

The wrapper around the UNet sees the patches exactly as every other pack has left them, whether they
were applied before or after ours. Where a controller wants a site now, the dispatcher takes the
slot and calls the previous occupant as the inner attention; everywhere else the host's own path is
left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ...core.control import (
    Attend,
    AttentionCall,
    Controller,
    Fused,
    Kind,
    Place,
    Row,
    Site,
    in_order,
)
from ...core.errors import PivotError
from ...core.layers import Layer
from ..model.layers import block_layers
from .neighbours import check_neighbours, check_rows
from .runs import (
    CONTROLLERS,
    Run,
    around_prediction,
    around_run,
    place_of,
    run_of,
)

KEY = "pivot_edit"
ROWS = "pivot_rows"
_SLOTS: dict[str, Kind] = {"attn1": "self", "attn2": "cross"}
Patch = Callable[..., torch.Tensor]


def add_controller(model: Any, controller: Controller) -> Any:
    """A clone of the model with the controller appended to its chain; the model itself is left as
    it was."""
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options[CONTROLLERS] = in_order((*options.get(CONTROLLERS, ()), controller))
    if not clone.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, around_run)
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, around_prediction)
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _around_unet)
    return clone


def with_rows(model_options: dict[str, Any], rows: tuple[Row, ...]) -> dict[str, Any]:
    """Options that announce what each batch row of one chunk of the next UNet calls is."""
    transformer = {**model_options.get("transformer_options", {}), ROWS: rows}
    return {**model_options, "transformer_options": transformer}


def _around_unet(
    executor: Any,
    x: Any,
    timesteps: Any,
    context: Any,
    y: Any,
    control: Any,
    options: Any,
    **kw: Any,
) -> Any:
    """The wrapper: within a run of ours, the call runs on patched options; otherwise as it is."""
    run = run_of({"transformer_options": options})
    if run is not None and "sample_sigmas" in options:
        options = _patched(run, executor.class_obj, options)
    return executor(x, timesteps, context, y, control, options, **kw)


def _patched(run: Run, unet: torch.nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """The options with a dispatcher at every site where some controller is at work now."""
    check_neighbours(options)
    rows = _rows_of_call(run, options)
    place = place_of(float(options["sigmas"][0]), options["sample_sigmas"])
    replace = dict(options.get("patches_replace", {}))
    for slot, kind in _SLOTS.items():
        wanting = [one for one in run.states if one[0].wants(kind, place)]
        occupants = replace.get(slot, {})
        filled = dict(occupants)
        for key, layer in block_layers(unet).items():
            active = [one for one in wanting if one[0].at(kind, layer, run.latent)]
            if active:
                previous = occupants.get(key, occupants.get(key[:2]))
                filled[key] = _Dispatcher(kind, layer, run.latent, active, rows, place, previous)
        if filled:
            replace[slot] = filled
    return {**options, "patches_replace": replace}


def _rows_of_call(run: Run, options: dict[str, Any]) -> tuple[Row, ...]:
    """The rows of all chunks of a call, found through cond_or_uncond."""
    chunks = options["cond_or_uncond"]
    uuids = options.get("uuids", [None] * len(chunks))
    rows: list[Row] = []
    for index, uuid in zip(chunks, uuids, strict=True):
        first, cond = len(rows), run.is_cond(index, uuid)
        for row in options.get(ROWS, run.rows):
            source = None if row.source is None else first + row.source
            rows.append(dataclasses.replace(row, cond=cond, source=source))
    return tuple(rows)


@dataclasses.dataclass(frozen=True)
class _Dispatcher:
    """The patch of one site in one UNet call: the controllers' chain over the slot's previous
    occupant."""

    kind: Kind
    layer: Layer
    latent: tuple[int, int]
    active: list[tuple[Controller, Any]]
    rows: tuple[Row, ...]
    place: Place
    previous: Patch | None

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]
    ) -> torch.Tensor:
        height, width = extra["activations_shape"][-2:]
        self._check(q, height * width)
        check_rows(q, k, v, f"{self.kind}-attention {self.layer.name}")

        def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return _host_attention(q, k, v, extra)

        def inner(call: AttentionCall) -> torch.Tensor:
            if self.previous is None:
                return fused(call.q, call.k, call.v)
            return self.previous(call.q, call.k, call.v, extra)

        def probe(values: torch.Tensor) -> torch.Tensor:
            plain: Attend = lambda call: fused(call.q, call.k, call.v)  # noqa: E731
            return self._chain(plain)(self._call(q, k, values, extra, fused))

        whole = (
            tuple(extra["original_shape"][-2:]) == self.latent
        )  # maps of an area's crop are not the picture's
        out = self._chain(inner)(
            dataclasses.replace(self._call(q, k, v, extra, fused), probe=probe if whole else None)
        )
        if self._nobody_keeps(extra):
            _release(k, v)
        return out

    def _nobody_keeps(self, extra: dict[str, Any]) -> bool:
        """Whether keys and values are this call's alone: another pack's patch or attention may have
        kept them."""
        others = self.previous is not None or "optimized_attention_override" in extra
        return self.kind == "self" and not others and not torch.is_grad_enabled()

    def _call(self, q: Any, k: Any, v: Any, extra: dict[str, Any], fused: Fused) -> AttentionCall:
        height, width = extra["activations_shape"][-2:]
        site = Site(self.kind, self.layer, height, width, self.latent)
        return AttentionCall(q, k, v, extra["n_heads"], site, self.place, self.rows, fused)

    def _chain(self, attend: Attend) -> Attend:
        for controller, state in reversed(self.active):
            attend = _link(controller, attend, state)
        return attend

    def _check(self, q: torch.Tensor, tokens: int) -> None:
        where = f"{self.kind}-attention {self.layer.name}"
        if len(q) != len(self.rows):
            raise PivotError(
                f"{len(self.rows)} batch rows in the UNet call",
                str(len(q)),
                "Remove patches that change the batch size inside the UNet.",
                where,
            )
        if q.shape[1] != tokens:
            raise PivotError(
                f"{tokens} tokens",
                f"{q.shape[1]}: token merging or another patch has changed their number",
                "Remove token merging (Tome Patch Model) from this model; attention edits need "
                "every token.",
                where,
            )


def _release(*projected: torch.Tensor) -> None:
    """Free keys and values. The host's block keeps them in its frame through the feed-forward,
    where its peak of memory is, whenever a slot is filled; nothing reads them again."""
    for each in projected:
        each.set_()


def _link(controller: Controller, attend: Attend, state: Any) -> Attend:
    return lambda call: controller(call, attend, state)


def _host_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]
) -> torch.Tensor:
    """The host's attention exactly as its transformer block calls it, overrides of other packs
    included."""
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention(
        q,
        k,
        v,
        extra["n_heads"],
        attn_precision=extra.get("attn_precision"),
        transformer_options=extra,
    )
