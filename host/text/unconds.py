"""What unconditional rows read under a correction: all texts once, and the right one at every
step."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ...core.control import Place
from ...core.correction import Uncond
from ...core.step import EditStep
from ...inversion.null_text import NULLS
from .conditioning import between, equal_lengths, stack_rows, text_of, with_text
from .prompts import Conditioning

Conds = dict[str, list[dict[str, Any]]]
WHERE = "Edit Guider"
_BOTH = f"{WHERE}, the source and the negative prompt as its unconditional rows"


class Unconds:
    """The unconditional conditioning of [source; target 0; target 1; ...] rows at every step.

    `texts` are the conditionings by name. The host processes them all before the run.
    """

    def __init__(
        self,
        step: EditStep,
        source: Conditioning,
        negative: Conditioning,
        targets: int,
    ) -> None:
        self.trajectory, self.correction, self.targets = step.trajectory, step.correction, targets
        self.moments = step.moments
        self.texts: dict[str, Conditioning] = {}
        texts = {"source": source, "negative": negative}
        for moment in self.moments:
            first, rest = (_plain(one) for one in self.pair(moment.place))
            for one in (first, rest):
                if _name(one) not in self.texts:
                    base = texts[one.base]
                    self.texts[_name(one)] = (
                        between(base, negative, one.mix, _BOTH) if one.mix else base
                    )
            if first != rest:
                self._stack(first, rest)

    def pair(self, place: Place) -> tuple[Uncond, Uncond]:
        """What source and target rows read at a step."""
        return self.correction.uncond("source", place), self.correction.uncond("target", place)

    def at(self, conds: Conds, place: Place, rows: slice) -> list[dict[str, Any]]:
        """The processed conds of a slice of the rows, out of all that were processed from
        `texts`."""
        batch = self.trajectory.batch
        source, target = self.pair(place)
        reads = [source if row < batch else target for row in range(rows.start, rows.stop)]
        names = {_name(_plain(one)) for one in reads}
        # rows of two texts are one conditioning of all rows
        name = names.pop() if len(names) == 1 else _both(_plain(source), _plain(target))
        chosen = conds[name]
        return (
            with_text(chosen, self._texts(chosen, reads, rows, place))
            if any(one.null for one in reads)
            else chosen
        )

    def _texts(self, chosen: Any, reads: list[Uncond], rows: slice, place: Place) -> torch.Tensor:
        """The texts of the rows at a step, with its optimised embeddings where a row reads them."""
        step = self.trajectory.steps - self.moments[place.step].upper
        nulls = self.trajectory.extras[NULLS][step]
        text, nulls = equal_lengths(text_of(chosen), nulls.to(text_of(chosen)))
        text = text.expand(len(reads), -1, -1)  # one row stands for all
        pictures = [row % self.trajectory.batch for row in range(rows.start, rows.stop)]
        return torch.stack(
            [
                nulls[picture] if one.null else plain
                for one, picture, plain in zip(reads, pictures, text, strict=True)
            ]
        )

    def _stack(self, first: Uncond, rest: Uncond) -> None:
        """Puts source rows that read `first` and target rows that read `rest` into one
        conditioning."""
        batch = self.trajectory.batch
        below = [
            (text.repeat(self.targets, 1, 1), options) for text, options in self.texts[_name(rest)]
        ]
        below = [(text, _pooled(options, self.targets)) for text, options in below]
        if _both(first, rest) not in self.texts:
            self.texts[_both(first, rest)] = stack_rows(
                self.texts[_name(first)], below, batch, _BOTH
            )


def _pooled(options: dict[str, Any], times: int) -> dict[str, Any]:
    pooled = options.get("pooled_output")
    return options if pooled is None else {**options, "pooled_output": pooled.repeat(times, 1)}


def _plain(one: Uncond) -> Uncond:
    """The text whose place an optimised embedding takes."""
    return dataclasses.replace(one, null=False)


def _name(one: Uncond) -> str:
    """The name of a text. The negative prompt's is the one under which the host's own guider holds
    it."""
    return f"{one.base} {one.mix:g}" if one.mix else one.base


def _both(first: Uncond, rest: Uncond) -> str:
    return f"{_name(first)}, {_name(rest)}"
