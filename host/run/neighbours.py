"""Other packs' mechanisms beside which an edit cannot be right, refused by name.

A mechanism is known by what it leaves in a model's options: the class or the qualified name of its
patches. Names of modules say nothing, because the host names a pack's module after its whole path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...core.errors import PivotError

_WHERE = "attention control"
_TILED = {"AbstractDiffusion", "MultiDiffusion", "MixtureOfDiffusers", "SpotDiffusion"}
_CACHES = {"EasyCacheHolder": "EasyCache", "LazyCacheHolder": "LazyCache"}


@dataclasses.dataclass(frozen=True)
class Neighbour:
    """A mechanism that is refused."""

    title: str
    expected: str
    do: str
    recognised: Callable[[dict[str, Any], dict[str, Any]], bool]
    """recognised(transformer_options, model_options): whether it is there."""


def _by_patch(slot: str, begins: str) -> Callable[[dict[str, Any], dict[str, Any]], bool]:
    """A test for a patch whose qualified name begins so, in the lists of a slot or in place of
    it."""

    def recognised(options: dict[str, Any], model_options: dict[str, Any]) -> bool:
        return any(
            name.startswith(begins) for patch in _patches(options, slot) for name in _names(patch)
        )

    return recognised


def _patches(options: dict[str, Any], slot: str) -> Iterator[Any]:
    """The patches of attn1 or attn2 before, in place of and after attention."""
    for name in (f"{slot}_patch", f"{slot}_output_patch"):
        yield from options.get("patches", {}).get(name, ())
    yield from options.get("patches_replace", {}).get(slot, {}).values()


def _names(patch: Any) -> Iterator[str]:
    """The qualified names of a patch, which is a function or an object, and of what it wraps."""
    yield getattr(patch, "__qualname__", "") or type(patch).__qualname__
    for wrapped in ("func", "function", "__wrapped__"):
        inner = getattr(patch, wrapped, None)
        if inner is not None:
            yield getattr(inner, "__qualname__", "") or type(inner).__qualname__


def _tiled(options: dict[str, Any], model_options: dict[str, Any]) -> bool:
    """Whether a model runs in tiles, by its flag or by the class of the function around it."""
    wrapper = model_options.get("model_function_wrapper")
    classes = {kind.__name__ for kind in type(wrapper).__mro__}
    return bool(model_options.get("tiled_diffusion")) or bool(classes & _TILED)


def _cache(options: dict[str, Any]) -> str:
    """The name of the stock cache in a model's options, or nothing."""
    return _CACHES.get(type(options.get("easycache")).__name__, "")


NEIGHBOURS = (
    Neighbour(
        "token merging (Tome Patch Model)",
        "every token in self-attention",
        "Remove it from this model; it costs the edit its exactness.",
        _by_patch("attn1", "TomePatchModel."),
    ),
    Neighbour(
        "HyperTile, which cuts self-attention into tiles of a random size",
        "self-attention over the whole picture",
        "Remove HyperTile from this model; source and target need the same tokens.",
        _by_patch("attn1", "HyperTile."),
    ),
    Neighbour(
        "Tiled Diffusion, which runs the UNet on tiles of the picture",
        "a UNet call over the whole picture",
        "Remove Tiled Diffusion from this model; the edit's rows and maps are of whole pictures.",
        _tiled,
    ),
    Neighbour(
        "Attention Couple, which puts the texts of regions in the prompt's place",
        "cross-attention to the edit's own prompts",
        "Remove Attention Couple from this model and its conditioning; to edit in a region, "
        "connect a mask to Local Blend.",
        _by_patch("attn2", "AttentionCouple"),
    ),
)


def check_neighbours(options: dict[str, Any], model_options: dict[str, Any] | None = None) -> None:
    """Raise PivotError that names another pack's mechanism beside which no control can be right.

    options are the transformer_options of a UNet call or of a model. model_options are the model's,
    where mechanisms around the whole model are to be seen.
    """
    for neighbour in NEIGHBOURS:
        if neighbour.recognised(options, model_options or {}):
            raise PivotError(neighbour.expected, neighbour.title, neighbour.do, _WHERE)
    _check_cached(options, _WHERE, "Remove {} from this model; the edit needs every step.")


def check_edit_model(model: Any, where: str) -> None:
    """Raise PivotError for a model that skips steps, because the picture would not come back.

    It was measured on random weights, with 10 steps and a threshold of 0.2. Nothing fails, and the
    source row is 7 of 100 off under plain DDIM. It is 2 to 4 off under negative_prompt, which is
    exact without.
    """
    options = model.model_options.get("transformer_options", {})
    _check_cached(options, where, "Connect the edit before it: the model from before {}.")


def check_inversion_model(model: Any, where: str) -> None:
    """Raise PivotError for a model that skips steps, because no inversion could be exact.

    The stock caches also take it that noise falls from step to step. It rises in an inversion, so
    that the window is left at its noisy end and the host's code fails with a bare TypeError.
    """
    options = model.model_options.get("transformer_options", {})
    _check_cached(options, where, "Connect the inversion before it: the model from before {}.")


def _check_cached(options: dict[str, Any], where: str, do: str) -> None:
    cache = _cache(options)
    if cache:
        raise PivotError(
            "a model that is run at every step",
            f"one behind {cache}, which skips steps and guesses their result",
            do.format(cache),
            where,
        )


def check_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, where: str) -> None:
    """Raise PivotError where keys or values have other batch rows than queries.

    Normalised attention guidance of ChenDarYen's kind appends rows of its negative prompt to the
    text behind everybody's back. No controller can know what they are.
    """
    if not len(q) == len(k) == len(v):
        raise PivotError(
            f"as many batch rows of keys and values as of queries, {len(q)}",
            f"{len(k)} and {len(v)}: attention guidance (NAG) or another pack has added rows",
            "Sample with the Edit Sampler or a stock guider, without the sampler or guider of an "
            "attention guidance pack.",
            where,
        )
