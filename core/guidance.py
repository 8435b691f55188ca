"""How conditioned and unconditioned predictions become one, and what else pulls on a step."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import torch

from .control import Place
from .options import Method, number
from .stepper import Moment


@dataclasses.dataclass(frozen=True, eq=False)
class Guided:
    """What a rule makes of a step."""

    delta: torch.Tensor
    """What cfg multiplies, of the shape of the difference that came."""
    edit: torch.Tensor | None = None
    """1 where the step edits, 0 where it should keep the source; None where the rule does not
    say."""


class Guidance(Method, abc.ABC):
    """A guidance rule, a frozen set of options without state: eps = eps_u + cfg * delta.

    Rows are [source; target 0; target 1; ...], each of B pictures.
    """

    title: ClassVar[str]
    """What people call it."""
    plain: ClassVar[bool] = False
    """Whether differences stay as they are. Then nobody needs unconditional rows at cfg 1."""

    @property
    def source_cfg(self) -> float | None:
        """The cfg of source rows; None: the targets'."""
        return None

    def scale(self, cfg: float, place: Place) -> float:
        """The targets' cfg at a place."""
        return cfg

    @abc.abstractmethod
    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        """What becomes of delta = eps_c - eps_u [(1 + n) * batch, C, H, W]."""

    def limit(self, denoised: torch.Tensor, now: Moment) -> torch.Tensor:
        """What becomes of the guided x0 of all rows, before the step."""
        return denoised

    def after_step(
        self, x: torch.Tensor, denoised: torch.Tensor, guided: Guided, now: Moment
    ) -> torch.Tensor:
        """The latents after a step, where the step rule left them at x on its way to `denoised`."""
        return x


def source_cfg_option() -> Any:
    """The field of rules whose source rows may have a cfg of their own."""
    return number(
        None,
        0.0,
        30.0,
        0.1,
        "Guidance of the source row alone; 0 takes the edit's. ProxMasaCtrl has 1.",
    )
