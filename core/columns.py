"""How the columns of a cross-attention call relate to the columns of a prompt.

A text that reaches the UNet is its prompt's columns, and then whatever was appended to it
(ConditioningConcat). All of that may come several times, because the host repeats short texts to
the common multiple of the lengths. Repeats hold equal keys and share
attention equally, so they count as one; appended columns are columns of their own.
"""

from __future__ import annotations

import torch

from .control import AttentionCall
from .errors import PivotError
from .words import CHUNK


def text_lengths(context: torch.Tensor) -> tuple[int, ...]:
    """How many columns each row's text had before it was repeated, for texts [rows, columns,
    channels]."""
    # no text is shorter than a chunk, so that most calls need no look at the numbers: a look waits
    # for the device
    columns = context.shape[1]
    shorter = [n for n in range(CHUNK, columns // 2 + 1) if columns % n == 0]
    if not shorter:
        return (columns,) * len(context)
    repeats = [(context[:, n:] == context[:, :-n]).flatten(1).all(1) for n in shorter]
    table = torch.stack(repeats, 1).tolist()
    return tuple(
        next((n for n, equal in zip(shorter, row, strict=True) if equal), columns) for row in table
    )


def text_columns(call: AttentionCall, row: int, length: int, where: str) -> int:
    """How many columns the text of a row has that begins with a prompt of `length` columns.

    The call may repeat the text. Raises PivotError if it cannot begin so.
    """
    columns = call.v.shape[1]
    repeated = columns if call.texts is None else call.texts[row]
    # chunks of one prompt may be equal, and then look like repeats
    text = length if repeated < length and length % repeated == 0 else repeated
    if text < length or columns % text:
        raise PivotError(
            f"a text that begins with the {length} columns of its prompt",
            f"{repeated} in a call of {columns}",
            "Encode the prompts that the words were read from with the same CLIP, and remove "
            "patches that add tokens inside the UNet.",
            where,
        )
    return text
