"""From words, masks and layer names to controllers on a model: what the control nodes call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...attention import (
    AttentionMaps,
    LocalBlend,
    MasaCtrl,
    PromptToPrompt,
)
from ...attention.local_blend import BlendWords
from ...attention.masactrl import AutoMask, decoder_layers
from ...core.control import Branch, check_window
from ...core.errors import PivotError
from ...core.layers import Layer, select_layers
from ...core.maps import Columns, Groups
from ...core.words import (
    Alignment,
    PromptPair,
    check_among,
    phrases,
    reweighted,
    windowed,
    word_weights,
    word_windows,
)
from ..model.checks import check_unet
from ..model.layers import layers_of, scales_of
from ..run.patching import add_controller

Words = tuple[PromptPair, ...]
"""One pair for each target; all have the same source."""
Window = tuple[float, float]


def prompt_to_prompt(
    model: Any,
    words: Words,
    mode: str,
    cross: Window,
    self_: Window,
    self_limit: float,
    weights: str = "",
    windows: str = "",
    mapper: str = "fixed",
) -> tuple[Any, str]:
    """The model under Prompt-to-Prompt, and what it does with the words, in words."""
    check_unet(model, PromptToPrompt.title)
    targets = [pair.target for pair in words]
    asked, limited = word_weights(weights), word_windows(windows)
    for phrase, _ in (*asked, *limited):
        check_among(targets, phrase)
    alignments = tuple(_alignment(pair, mode, mapper, asked, limited) for pair in words)
    controller = PromptToPrompt(alignments, cross, self_, self_limit)
    return add_controller(model, controller), "\n".join(
        f"{one.mode}: {one.note}" for one in alignments
    )


def _alignment(
    pair: PromptPair,
    mode: str,
    mapper: str,
    weights: Sequence[tuple[str, float]],
    windows: Sequence[tuple[str, Window]],
) -> Alignment:
    """One target's alignment with those of the weights and windows whose words it has."""
    own_weights = [(phrase, weight) for phrase, weight in weights if pair.target.seek(phrase)]
    own_windows = [(phrase, window) for phrase, window in windows if pair.target.seek(phrase)]
    return windowed(
        reweighted(pair.align(mode, mapper), pair.target, own_weights), pair.target, own_windows
    )


def local_blend(
    model: Any,
    words: Words,
    blend_words: str,
    subtract_words: str,
    threshold: float,
    subtract_threshold: float,
    start: float,
    pool: bool,
    mask: torch.Tensor | None = None,
) -> Any:
    """The model under a local blend at words, at a mask, or at words within a mask."""
    check_unet(model, LocalBlend.title)
    blend, subtract = phrases(blend_words), phrases(subtract_words)
    if (blend or subtract) and not words:
        raise PivotError(
            "words to look blend words up in",
            "none",
            "Connect words from Prompt Pair.",
            LocalBlend.title,
        )
    if not blend and not subtract and mask is None:
        there = ", ".join(
            dict.fromkeys(f"{pair.source.listed}, {pair.target.listed}" for pair in words)
        )
        raise PivotError(
            "words to blend at, words to subtract, or a mask",
            "none",
            "Write the words that name what changes, before and after; there are: "
            f"{there or 'none connected'}.",
            LocalBlend.title,
        )
    for phrase in (*blend, *subtract):
        check_among([prompt for pair in words for prompt in (pair.source, pair.target)], phrase)
    columns = (
        tuple(_blend_words(pair, blend, subtract) for pair in words) if blend or subtract else ()
    )
    if blend:
        _check_reachable(columns, blend)
    return add_controller(
        model,
        LocalBlend(
            columns, scales_of(model), threshold, subtract_threshold, start, pool, _batched(mask)
        ),
    )


def _check_reachable(columns: Sequence[BlendWords], blend: Sequence[str]) -> None:
    """Every target needs a word of its own or of the source, else all of it would be undone."""
    for index, one in enumerate(columns):
        if not one.source and not one.target:
            raise PivotError(
                f"words of target prompt {index + 1} or of the source",
                ", ".join(blend),
                "Write a word that this target has.",
                LocalBlend.title,
            )


def _blend_words(pair: PromptPair, blend: Sequence[str], subtract: Sequence[str]) -> BlendWords:
    found, kept = _both(pair, blend), _both(pair, subtract)
    lengths = (len(pair.source.tokens), len(pair.target.tokens))
    return BlendWords(*lengths, found[0], found[1], kept[0], kept[1])


def _both(pair: PromptPair, listed: Sequence[str]) -> tuple[Columns, Columns]:
    """The columns of words in the source and in the target. A word of one prompt stands for its
    counterpart in the other, where the words are aligned one by one."""
    columns: dict[Branch, dict[int, None]] = {"source": {}, "target": {}}
    for phrase in listed:
        old, new = pair.source.seek(phrase), pair.target.seek(phrase)
        columns["source"].update(dict.fromkeys(old or _counterpart(pair, new, "source")))
        columns["target"].update(dict.fromkeys(new or _counterpart(pair, old, "target")))
    return tuple(columns["source"]), tuple(columns["target"])


def _counterpart(pair: PromptPair, columns: Columns, branch: Branch) -> Columns:
    """The columns of the words that stand at the same place of the other prompt, if both have as
    many words."""
    mine, others = (pair.target, pair.source) if branch == "source" else (pair.source, pair.target)
    if len(mine.words) != len(others.words):
        return ()
    at = [index for index, word in enumerate(mine.words) if set(word.core) & set(columns)]
    return tuple(column for index in at for column in others.words[index].core)


def masactrl(
    model: Any,
    layers: str,
    window: Window,
    union: bool,
    words: Words | None = None,
    mask_words: str = "",
    threshold: float = AutoMask.threshold,
    source_mask: torch.Tensor | None = None,
    target_mask: torch.Tensor | None = None,
) -> tuple[Any, str]:
    """The model under mutual self-attention, and the layers it acts in, in words."""
    where = MasaCtrl.title
    check_unet(model, where)
    there = layers_of(model)
    auto = layers.strip().lower() in ("auto", "")
    chosen = decoder_layers(there) if auto else select_layers(layers, there, where)
    check_window(window, "", where)
    masks = _batched(source_mask), _batched(target_mask)
    listed = phrases(mask_words)
    if listed and words is None:
        raise PivotError(
            "words to look mask words up in", "none", "Connect words from Prompt Pair.", where
        )
    found = _auto_mask(words or (), listed, scales_of(model), threshold) if listed else None
    controller = MasaCtrl(chosen, *window, union, *masks, found)
    return add_controller(model, controller), _named(there, chosen)


def _auto_mask(
    words: Words, listed: Sequence[str], scales: tuple[int, ...], threshold: float
) -> AutoMask:
    for phrase in listed:
        check_among([prompt for pair in words for prompt in (pair.source, pair.target)], phrase)
    groups: Groups = {}
    for index, pair in enumerate(words):
        source, target = _both(pair, listed)
        if source:
            groups["source", 0] = (len(pair.source.tokens), (source,))
        if target:
            groups["target", index] = (len(pair.target.tokens), (target,))
    return AutoMask(groups, scales, threshold)


def _named(there: Sequence[Layer], chosen: frozenset[Layer]) -> str:
    names = dict.fromkeys(layer.name for layer in there if layer in chosen)
    blocks = f"{len(chosen)} of {len(there)} self-attention layers"
    return f"{blocks}: {', '.join(names)}" if chosen else f"{blocks}: without effect"


def record(model: Any, start: float, end: float) -> Any:
    """The model, recording where every word is looked at."""
    check_unet(model, AttentionMaps.title)
    check_window((start, end), "", AttentionMaps.title)
    return add_controller(model, AttentionMaps(scales_of(model), start, end))


def _batched(mask: torch.Tensor | None) -> torch.Tensor | None:
    """MASK as [pictures, H, W] on the CPU."""
    if mask is None:
        return None
    return mask.detach().float().cpu().reshape(-1, *mask.shape[-2:])
