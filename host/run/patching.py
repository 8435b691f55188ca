"""One dispatcher per attention slot, put in place for the length of one UNet call.

The wrapper around the UNet sees the patches exactly as every other pack has left them, whether they
were applied before or after ours. Where a controller wants a site now, the dispatcher takes the
slot and calls the previous occupant as the inner attention. Everywhere else the host's own path is
left alone. Features are reached by forward hooks, for the length of the call too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...core.columns import text_lengths
from ...core.control import (
    Attend,
    AttentionCall,
    Controller,
    FeatureCall,
    Fused,
    Kind,
    Place,
    Proceed,
    Row,
    Site,
    in_order,
)
from ...core.errors import PivotError
from ...core.layers import Layer
from ..model.layers import block_layers, feature_sites
from .neighbours import check_neighbours, check_rows
from .runs import (
    CONTROLLERS,
    Run,
    around_prediction,
    around_run,
    run_of,
)

KEY = "pivot_edit"
_SLOTS: dict[str, Kind] = {"attn1": "self", "attn2": "cross"}
Patch = Callable[..., torch.Tensor]


def add_controller(model: Any, controller: Controller) -> Any:
    """A clone of the model with the controller appended to its chain.

    The model itself is left as it was.
    """
    clone = watched(model)
    options = clone.model_options.setdefault("transformer_options", {})
    options[CONTROLLERS] = in_order((*options.get(CONTROLLERS, ()), controller))
    return clone


def watched(model: Any) -> Any:
    """A clone of the model with the wrappers of this room around its runs."""
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    clone.model_options.setdefault("transformer_options", {})
    if not clone.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, around_run)
        clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, around_prediction)
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _around_unet)
    return clone


@torch.compiler.disable
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
    """The wrapper around a call of the UNet.

    Within a run of ours the call has patched options, and leaves out the rows that nobody reads.
    Otherwise it is left as it is.

    A compiled network (Torch Compile Model) runs uncompiled here. It drops every guard on its
    options, so that the graph traced at one step would serve all others, with that step's edits.
    """
    run = run_of({"transformer_options": options})
    if run is None or "sample_sigmas" not in options:
        return executor(x, timesteps, context, y, control, options, **kw)
    with torch.compiler.set_stance("force_eager"):
        return _controlled(run, executor, (x, timesteps, context, y), control, options, kw)


def _controlled(
    run: Run,
    executor: Any,
    inputs: tuple[Any, ...],
    control: Any,
    options: dict[str, Any],
    kw: dict[str, Any],
) -> Any:
    """The network's answer to `inputs` (x, timesteps, context, y) under the controllers of a
    run."""
    call, count = _UnetCall(run, executor.class_obj, options), len(inputs[0])
    read = call.read_rows(count)
    if read is None or control is not None:
        with call.patched(inputs[2]) as options:
            return executor(*inputs, control, options, **kw)
    chosen = run.index(tuple(read), inputs[0].device)
    part = {key: _rows_of(value, chosen, count) for key, value in kw.items()}
    inputs = tuple(_rows_of(value, chosen, count) for value in inputs)
    with call.patched(inputs[2], read) as options:
        answer = executor(*inputs, control, options, **part)
    return answer.new_zeros(count, *answer.shape[1:]).index_copy_(0, chosen, answer)


def _rows_of(value: Any, chosen: torch.Tensor, rows: int) -> Any:
    """Some rows of an input of a UNet, and all of one that does not hold a row for each."""
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == rows:
        return value.index_select(0, chosen)
    return value


class _UnetCall:
    """One call of the UNet: what its rows are, when it is, and who is at work in it."""

    def __init__(self, run: Run, unet: torch.nn.Module, options: dict[str, Any]) -> None:
        if run.states:
            check_neighbours(options)
        self.run, self.unet, self.options = run, unet, options
        self.place = run.place(options["sigmas"])

    def read_rows(self, count: int) -> list[int] | None:
        """The rows of the call that somebody reads, or None where that is all of them."""
        rows = _rows_of_call(self.run, self.options)
        part = len(self.run.rows)
        read = [i for i, row in enumerate(rows) if (i % part, row.cond) not in self.run.unread]
        return read if len(read) < len(rows) == count else None

    @contextlib.contextmanager
    def patched(
        self, context: torch.Tensor, read: list[int] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The options with dispatchers in them, while features are hooked for the length of the
        call.

        Only sites where some controller is at work now have a dispatcher or a hook.
        """
        rows = _rows_of_call(self.run, self.options)
        rows = rows if read is None else _selected(rows, read)
        replace = dict(self.options.get("patches_replace", {}))
        for slot, kind in _SLOTS.items():
            wanting = [one for one in self.run.states if one[0].wants(kind, self.place)]
            texts = self._texts(context, read) if wanting and kind == "cross" else {}
            occupants = replace.get(slot, {})
            filled = dict(occupants)
            for key, layer in block_layers(self.unet).items():
                active = self._active(wanting, kind, layer)
                if active:
                    previous = occupants.get(key, occupants.get(key[:2]))
                    filled[key] = _Dispatcher(
                        kind, layer, self.run.latent, active, rows, self.place, previous, texts
                    )
            if filled:
                replace[slot] = filled
        with contextlib.ExitStack() as hooks:
            for kind, layer, module in feature_sites(self.unet):
                wanting = [one for one in self.run.states if one[0].wants(kind, self.place)]
                active = self._active(wanting, kind, layer)
                if active:
                    hook = _FeatureHook(kind, layer, self.run.latent, active, rows, self.place)
                    hooks.callback(module.register_forward_hook(hook).remove)
            yield {**self.options, "patches_replace": replace}

    def _texts(self, context: torch.Tensor, read: list[int] | None) -> dict[int, tuple[int, ...]]:
        """The lengths of the rows' texts, by the number of columns that they are repeated to.

        The conditionings of a chunk stay the same in a run, so that each is looked at once.
        """
        rows, columns = context.shape[:2]
        names = tuple(self.options.get("uuids", ()))
        key = (names, self.run.rows, None if read is None else tuple(read), rows, columns)
        if key not in self.run.texts:
            self.run.texts[key] = text_lengths(context)
        return {columns: self.run.texts[key]}

    def _active(
        self, wanting: list[tuple[Controller, Any]], kind: Kind, layer: Layer
    ) -> list[tuple[Controller, Any]]:
        return [one for one in wanting if one[0].at(kind, layer, self.run.latent)]


def _selected(rows: tuple[Row, ...], read: list[int]) -> tuple[Row, ...]:
    """Some rows of a call, each with its source's new number."""
    now = {row: index for index, row in enumerate(read)}
    return tuple(
        dataclasses.replace(
            rows[row], source=now.get(rows[row].source) if rows[row].source is not None else None
        )
        for row in read
    )


def _rows_of_call(run: Run, options: dict[str, Any]) -> tuple[Row, ...]:
    """The rows of all chunks of a call, found through cond_or_uncond and the texts' names."""
    chunks = options["cond_or_uncond"]
    uuids = options.get("uuids", [None] * len(chunks))
    rows: list[Row] = []
    for chunk, (index, uuid) in enumerate(zip(chunks, uuids, strict=True)):
        first, cond = len(rows), run.is_cond(index, uuid)
        for row in run.rows:
            source = None if row.source is None else first + row.source
            rows.append(dataclasses.replace(row, cond=cond, source=source, chunk=chunk))
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
    texts: dict[int, tuple[int, ...]]

    def __call__(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]
    ) -> torch.Tensor:
        height, width = extra["activations_shape"][-2:]
        self._check(q, height * width)
        check_rows(q, k, v, f"{self.kind}-attention {self.layer.name}")

        def fused(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            return _host_attention(q, k, v, extra, bias)

        def inner(call: AttentionCall) -> torch.Tensor:
            if self.previous is None:
                return fused(call.q, call.k, call.v)
            return self.previous(call.q, call.k, call.v, extra)

        def probe(values: torch.Tensor) -> torch.Tensor:
            plain: Attend = lambda call: fused(call.q, call.k, call.v)  # noqa: E731
            return self._chain(plain)(self._call(q, k, values, extra, fused))

        # Controllers get aliases: the host's own k and v can then be emptied, and who keeps a
        # controller's tensor keeps its values.
        call = self._call(q, k.detach(), v.detach(), extra, fused)
        # maps of an area's crop are not the picture's
        whole = tuple(extra["original_shape"][-2:]) == self.latent
        out = self._chain(inner)(dataclasses.replace(call, probe=probe if whole else None))
        if self._nobody_keeps(extra):
            _release(k, v)
        return out

    def _nobody_keeps(self, extra: dict[str, Any]) -> bool:
        """Whether keys and values are this call's alone.

        Another pack's patch or attention may have kept them.
        """
        shared = self.previous is not None or "optimized_attention_override" in extra
        return self.kind == "self" and not shared and not torch.is_grad_enabled()

    def _call(self, q: Any, k: Any, v: Any, extra: dict[str, Any], fused: Fused) -> AttentionCall:
        height, width = extra["activations_shape"][-2:]
        site = Site(self.kind, self.layer, height, width, self.latent)
        texts = self.texts.get(k.shape[1])  # another pack may have added tokens
        return AttentionCall(
            q, k, v, extra["n_heads"], site, self.place, self.rows, fused, None, texts
        )

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
    """Free keys and values, which nothing reads again.

    Whenever a slot is filled, the host's block keeps them in its frame through the feed-forward,
    where its peak of memory is.
    """
    for each in projected:
        each.set_()


def _link(controller: Controller, attend: Attend, state: Any) -> Attend:
    return lambda call: controller(call, attend, state)


def _host_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    extra: dict[str, Any],
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The host's attention exactly as its transformer block calls it, with overrides of other
    packs."""
    from comfy.ldm.modules.attention import optimized_attention

    if bias is not None:
        bias = bias.to(q).expand(len(q), q.shape[1], k.shape[1])[:, None]
    return optimized_attention(
        q,
        k,
        v,
        extra["n_heads"],
        mask=bias,
        attn_precision=extra.get("attn_precision"),
        transformer_options=extra,
    )


@dataclasses.dataclass(frozen=True)
class _FeatureHook:
    """The forward hook of one site of features in one UNet call: the controllers' chain over what
    the module gives."""

    kind: Kind
    layer: Layer
    latent: tuple[int, int]
    active: list[tuple[Controller, Any]]
    rows: tuple[Row, ...]
    place: Place

    def __call__(self, module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        site = Site(self.kind, self.layer, output.shape[-2], output.shape[-1], self.latent)
        if len(output) != len(self.rows):
            raise PivotError(
                f"{len(self.rows)} batch rows in the UNet call",
                str(len(output)),
                "Remove patches that change the batch size inside the UNet.",
                f"{self.kind} features {self.layer.name}",
            )
        proceed: Proceed = lambda call: call.x  # noqa: E731
        for controller, state in reversed(self.active):
            proceed = _feature_link(controller, proceed, state)
        return proceed(FeatureCall(output, site, self.place, self.rows))


def _feature_link(controller: Controller, proceed: Proceed, state: Any) -> Proceed:
    return lambda call: controller.feature(call, proceed, state)
