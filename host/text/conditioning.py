"""Several prompts as rows of one CONDITIONING, one source and any number of targets in one UNet
call, and texts between two prompts."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ...core.errors import PivotError
from ...core.schedule import slerp
from ...core.words import PromptPair
from .options import alike, read_by_host
from .prompts import PROMPT, Conditioning, encode, read_pair

MARK = "pivot_rows"
"""In a conditioning's options: it holds so many prompts as rows, a source and its targets."""


def rows_in(conditioning: Conditioning) -> int:
    """How many prompts a CONDITIONING holds as rows, which are those of its longest text."""
    return max((len(text) for text, _ in conditioning), default=1)


def one_per_row(conditioning: Conditioning, batch: int) -> Conditioning:
    """Every row once for each of `batch` pictures, [row 0 ...; row 1 ...; ...]."""
    return [
        (_repeat(text, batch), _repeat_pooled(options, batch)) for text, options in conditioning
    ]


def stack_rows(
    source: Conditioning, target: Conditioning, batch: int = 1, where: str = "Edit Guider"
) -> Conditioning:
    """One conditioning of [source ...; target 0 ...; target 1 ...], (1 + n) * batch rows, from one
    row and n rows.

    Texts of unequal length are repeated to their common multiple, which leaves attention over them
    unchanged. Raises PivotError when the two are not built alike (number of entries, areas, masks,
    ControlNets).
    """
    if rows_in(source) != 1:
        raise PivotError(
            "one source prompt",
            f"{rows_in(source)} rows of prompts",
            "Connect the source conditioning of one prompt; several pictures share it.",
            where,
        )
    joined = one_per_row(join_rows(source, target, where), batch)
    return [(text, {**options, MARK: 1 + rows_in(target)}) for text, options in joined]


def add_target(
    clip: Any, words: tuple[PromptPair, ...], target: Conditioning, text: str
) -> tuple[Conditioning, tuple[PromptPair, ...]]:
    """Target conditioning and words with one more target prompt for the same source."""
    pair = read_pair(clip, words[0].source.text, text)
    return join_rows(target, encode(clip, text), "Add Target"), (*words, pair)


def join_rows(source: Conditioning, target: Conditioning, where: str) -> Conditioning:
    """The rows of one conditioning and below them those of another."""
    if len(source) != len(target):
        raise PivotError(
            "source and target conditioning built alike",
            f"{len(source)} and {len(target)} entries",
            "Apply the same Conditioning nodes to both, or to neither.",
            where,
        )
    return [_join_entry(old, new, where) for old, new in zip(source, target, strict=True)]


def _join_entry(old: Any, new: Any, where: str) -> tuple[torch.Tensor, dict[str, Any]]:
    """One entry of the rows of two, whose options have to be alike unless nobody reads them."""
    if old[0].shape[-1] != new[0].shape[-1]:
        raise PivotError(
            "source and target conditioning of one model",
            f"texts of width {old[0].shape[-1]} and {new[0].shape[-1]}",
            "Encode both with the CLIP of the same checkpoint.",
            where,
        )
    merged: dict[str, Any] = {}
    for key in {**old[1], **new[1]}:
        a, b = old[1].get(key), new[1].get(key)
        if key == PROMPT:  # rows of several prompts have no one text
            continue
        if key == "pooled_output" and a is not None and b is not None:
            merged[key] = torch.cat([a, b.to(a)])
        elif alike(a, b):
            merged[key] = a
        elif not read_by_host(key):
            logging.info("%s: the note %r differs between the prompts and is left out", where, key)
        else:
            raise PivotError(
                f"the same {key} on source and target conditioning",
                "two different ones",
                "Apply the same Conditioning nodes with the same settings to both.",
                where,
            )
    return torch.cat(equal_lengths(old[0], new[0])), merged


def between(source: Conditioning, negative: Conditioning, mix: float, where: str) -> Conditioning:
    """A conditioning on the sphere from the source prompt (mix 0) to the negative one (1).

    Pooled vectors are mixed too. Raises PivotError when the two are not built alike.
    """
    joined = join_rows(source, negative, where)
    return [(_between(text, mix), _between_pooled(options, mix)) for text, options in joined]


def _between(rows: torch.Tensor, mix: float) -> torch.Tensor:
    """What lies between the upper and the lower half of the rows."""
    half = len(rows) // 2
    return slerp(mix, rows[:half], rows[half:])


def _between_pooled(options: dict[str, Any], mix: float) -> dict[str, Any]:
    pooled = options.get("pooled_output")
    return options if pooled is None else {**options, "pooled_output": _between(pooled, mix)}


def with_text(conds: list[dict[str, Any]], text: torch.Tensor) -> list[dict[str, Any]]:
    """Processed conds that read another text [rows, T, D], as the host's samplers hold them."""
    import comfy.conds

    read = comfy.conds.CONDCrossAttn(text)
    return [{**cond, "model_conds": {**cond["model_conds"], "c_crossattn": read}} for cond in conds]


def text_of(conds: list[dict[str, Any]]) -> torch.Tensor:
    """The text [rows, T, D] that the first of the processed conds reads."""
    text: torch.Tensor = conds[0]["model_conds"]["c_crossattn"].cond
    return text


def _repeat(rows: torch.Tensor, batch: int) -> torch.Tensor:
    return rows.repeat_interleave(batch, 0)


def _repeat_pooled(options: dict[str, Any], batch: int) -> dict[str, Any]:
    pooled = options.get("pooled_output")
    return options if pooled is None else {**options, "pooled_output": _repeat(pooled, batch)}


def equal_lengths(a: torch.Tensor, b: torch.Tensor) -> list[torch.Tensor]:
    """Both texts [rows, T, D], repeated to their lengths' common multiple, as the host does it."""
    common = int(torch.lcm(torch.tensor(a.shape[1]), torch.tensor(b.shape[1])))
    return [one.repeat(1, common // one.shape[1], 1) for one in (a, b)]
