"""The pack's one public exception."""

from __future__ import annotations

from typing import Any

import torch


class PivotError(ValueError):
    """Says what was expected, what came, where, and what to do.

    ComfyUI shows it on the node that raised it.
    """

    def __init__(self, expected: str, got: str, do: str, where: str = "") -> None:
        self.expected, self.got, self.do, self.where = expected, got, do, where
        place = f" in {where}" if where else ""
        super().__init__(f"Expected {expected}, but got {got}{place}. {do}")

    def at(self, where: str) -> PivotError:
        """The same error with the place filled in, if it had none."""
        return self if self.where else PivotError(self.expected, self.got, self.do, where)


def short(value: Any) -> str:
    """Any value in a few characters, for messages."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return f"{value:g}"
        except OverflowError:  # a whole number beyond every float
            return "a larger number" if value > 0 else "a smaller number"
    return f"{value!r:.100}"


def check_finite(x: torch.Tensor, what: str, where: str) -> torch.Tensor:
    """Return `x` unchanged, or raise PivotError when it holds NaN or infinity.

    The host would make a black picture of them without a word.
    """
    if not torch.isfinite(x).all():
        raise PivotError(
            f"finite numbers in {what}",
            "NaN or infinity",
            "Check the picture and the VAE, or run the model in fp32 (--force-fp32).",
            where,
        )
    return x


def check_fraction(value: float, name: str, where: str) -> None:
    """Raise PivotError unless 0 <= value <= 1."""
    if not 0.0 <= value <= 1.0:
        raise PivotError(f"{name} between 0 and 1", short(value), "0.5 is the middle.", where)


def check_window(window: tuple[float, float], name: str = "", where: str = "") -> None:
    """Raise PivotError unless 0 <= start <= end <= 1; `name` is what the inputs are called before
    start and end."""
    start, end = window
    if not 0.0 <= start <= end <= 1.0:
        raise PivotError(
            f"{name}start and {name}end between 0 and 1, in this order",
            f"{short(start)} and {short(end)}",
            "They are fractions of the steps, counted from noise.",
            where,
        )
