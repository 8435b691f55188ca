"""Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598), each row with its own
scale."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from ..core.control import Place
from ..core.guidance import Guidance, Guided, source_cfg_option


@dataclasses.dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Guides by all of the difference between the predictions, source rows with a cfg of their own.

    `eps = eps_u + cfg (eps_c - eps_u)`
    """

    title: ClassVar[str] = "classifier-free guidance"
    plain: ClassVar[bool] = True

    source_cfg: float | None = source_cfg_option()
    """The cfg of source rows; None is the targets'."""

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        return Guided(delta)
