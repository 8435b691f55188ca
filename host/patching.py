"""One dispatcher per attention slot, put in place for the length of one UNet call.

The wrapper around the UNet sees the patches exactly as every other pack has left them, whether they were applied
before or after ours. Where a controller wants a site now, the dispatcher takes the slot and calls the previous
occupant as the inner attention; everywhere else the host's own path is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..core.attention import Attend, AttentionCall, Controller, Kind, Place, Row, Site
from ..core.errors import PivotError

KEY = "pivot_edit"
CONTROLLERS = "pivot_controllers"
ROWS = "pivot_rows"
_SLOTS: dict[str, Kind] = {"attn1": "self", "attn2": "cross"}


def add_controller(model: Any, controller: Controller) -> Any:
    """A clone of the model with the controller appended to its chain; the model itself is left as it was."""
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options[CONTROLLERS] = (*options.get(CONTROLLERS, ()), controller)
    if not clone.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _around_unet)
    return clone


def controllers_of(model_options: dict[str, Any]) -> tuple[Controller, ...]:
    """The chain of controllers in a model's options."""
    return model_options.get("transformer_options", {}).get(CONTROLLERS, ())


def wanted(model_options: dict[str, Any], place: Place) -> bool:
    """Whether any controller edits anything at this place of the schedule."""
    return any(
        controller.wants(kind, place) for controller in controllers_of(model_options) for kind in _SLOTS.values()
    )


def with_rows(model_options: dict[str, Any], rows: tuple[Row, ...]) -> dict[str, Any]:
    """Options that announce what each batch row of one chunk of the next UNet calls is."""
    transformer = {**model_options.get("transformer_options", {}), ROWS: rows}
    return {**model_options, "transformer_options": transformer}


def place_of(sigma: float, levels: torch.Tensor) -> Place:
    """The place of a sigma in a descending list of levels, by its value."""
    steps = len(levels) - 1
    step = int((levels[:-1].float().cpu() - sigma).abs().argmin())
    return Place(step, steps, sigma)


def _around_unet(
    executor: Any, x: Any, timesteps: Any, context: Any, y: Any, control: Any, options: Any, **kw: Any
) -> Any:
    """The wrapper: with controllers and announced rows, the call runs on patched options; otherwise as it is."""
    return executor(x, timesteps, context, y, control, _patched(executor.class_obj, options), **kw)


def _patched(unet: torch.nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    controllers: tuple[Controller, ...] = options.get(CONTROLLERS, ())
    if not controllers or "sample_sigmas" not in options:
        return options
    rows = _rows_of_call(options)
    place = place_of(float(options["sigmas"][0]), options["sample_sigmas"])
    replace = dict(options.get("patches_replace", {}))
    for slot, kind in _SLOTS.items():
        active = [controller for controller in controllers if controller.wants(kind, place)]
        if active:
            replace[slot] = _dispatchers(unet, slot, replace.get(slot, {}), active, rows, place)
    return {**options, "patches_replace": replace}


def _rows_of_call(options: dict[str, Any]) -> tuple[Row, ...]:
    """The rows of all chunks of this call, found through cond_or_uncond."""
    announced: tuple[Row, ...] | None = options.get(ROWS)
    if announced is None:
        raise PivotError(
            "a sampler that knows source and target rows",
            "a plain sampler",
            "Sample this model with the Edit Sampler, or with the Edit Guider in SamplerCustomAdvanced.",
            "P2P Attention Controller",
        )
    rows: list[Row] = []
    for index in options["cond_or_uncond"]:
        first = len(rows)
        for row in announced:
            source = None if row.source is None else first + row.source
            rows.append(Row(row.branch, index == 0, source, row.target))
    return tuple(rows)


def _dispatchers(
    unet: torch.nn.Module,
    slot: str,
    occupants: dict[Any, Callable[..., torch.Tensor]],
    controllers: list[Controller],
    rows: tuple[Row, ...],
    place: Place,
) -> dict[Any, Callable[..., torch.Tensor]]:
    """The slot's patches with ours on top, for every transformer block of the UNet."""
    filled = dict(occupants)
    for key in _block_keys(unet):
        previous = occupants.get(key, occupants.get(key[:2]))
        filled[key] = _dispatcher(slot, previous, controllers, rows, place)
    return filled


def _block_keys(unet: Any) -> list[tuple[str, int, int]]:
    """(stage, block, index) of every transformer block, as the host keys its patches."""
    from comfy.ldm.modules.attention import SpatialTransformer

    keys = []
    stages = (("input", unet.input_blocks), ("middle", [unet.middle_block]), ("output", unet.output_blocks))
    for stage, blocks in stages:
        for number, block in enumerate(blocks):
            for layer in block or ():
                if isinstance(layer, SpatialTransformer):
                    keys += [(stage, number, index) for index in range(len(layer.transformer_blocks))]
    return keys


def _dispatcher(
    slot: str,
    previous: Callable[..., torch.Tensor] | None,
    controllers: list[Controller],
    rows: tuple[Row, ...],
    place: Place,
) -> Callable[..., torch.Tensor]:
    def dispatch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        if len(q) != len(rows):
            raise PivotError(
                f"{len(rows)} batch rows in the UNet call",
                str(len(q)),
                "Remove patches that change the batch size inside the UNet.",
                f"{slot} at {extra.get('block')}",
            )

        def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return _host_attention(q, k, v, extra)

        attend: Attend = lambda call: (  # noqa: E731
            fused(call.q, call.k, call.v) if previous is None else previous(call.q, call.k, call.v, extra)
        )
        for controller in reversed(controllers):
            attend = _chain(controller, attend)
        return attend(AttentionCall(q, k, v, extra["n_heads"], _site(slot, extra), place, rows, fused))

    return dispatch


def _chain(controller: Controller, attend: Attend) -> Attend:
    return lambda call: controller(call, attend)


def _host_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
    """The host's attention exactly as its transformer block calls it, overrides of other packs included."""
    from comfy.ldm.modules.attention import optimized_attention

    return optimized_attention(
        q, k, v, extra["n_heads"], attn_precision=extra.get("attn_precision"), transformer_options=extra
    )


def _site(slot: str, extra: dict[str, Any]) -> Site:
    height, width = extra["activations_shape"][-2:]
    stage, block = extra["block"]
    latent = extra["original_shape"]
    return Site(_SLOTS[slot], stage, block, extra["block_index"], height, width, latent[-2] * latent[-1])
