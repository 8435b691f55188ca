"""From clean to noise: what an inversion method is, and the loop that methods share."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch

from .errors import check_finite
from .options import Method
from .path import Denoise, Path


@dataclasses.dataclass(frozen=True)
class Move:
    """One step of an inversion: the `index`-th of `steps`, from level `lower` to level `upper`."""

    path: Path
    lower: float
    upper: float
    index: int
    steps: int


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step towards noise."""

    x: torch.Tensor
    """The latents at the upper level [B, C, H, W]."""
    denoised: torch.Tensor
    """The network's last x0 of them, for previews."""
    residual: torch.Tensor | None = None
    """By how much x misses the step that it stands for, relative [B], or None where nothing
    measures it."""
    state: Any = None
    """What the method hands to its next step."""


@dataclasses.dataclass(frozen=True, eq=False)
class Inverted:
    """What an inversion gives."""

    latents: torch.Tensor
    """All of them from clean to noise, [N + 1, B, C, H, W], the first the picture itself."""
    extras: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """Named tensors that a step rule will read, [N, ...], the noisiest step first."""


OnStep = Callable[[int, Step], None]


class Inverter(Method, abc.ABC):
    """An inversion method, a frozen set of options.

    The coordinates of the latents are the model's. What a method remembers between steps travels in
    `Step.state`.
    """

    name: ClassVar[str]
    """Its name in the papers."""
    label: ClassVar[str]
    """One line for people."""

    @abc.abstractmethod
    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        """The latents x [B, C, H, W] taken from the lower level of a move to its upper one.

        `state` is the last step's, and None at the first.
        """

    def rows(self, steps: int) -> int:
        """How many predictions of a picture an inversion of so many steps asks for, at most."""
        return steps

    def invert(
        self,
        denoise: Denoise,
        x0: torch.Tensor,
        sigmas: torch.Tensor,
        path: Path,
        on_step: OnStep | None = None,
    ) -> Inverted:
        """All latents of the ascending levels `sigmas` [N + 1], the first of which is `x0` itself.

        on_step(i, step) is called after each step. Methods that draw latents instead of stepping
        override this. Raises PivotError naming the step when NaN appears.
        """
        levels = [float(sigma) for sigma in sigmas]
        # the first latent is taken as it is, so that the picture itself is in the trajectory, bit
        # for bit
        latents, state = [x0], None
        for i, (lower, upper) in enumerate(zip(levels, levels[1:], strict=False)):
            move = Move(path, lower, upper, i, len(levels) - 1)
            step = self.step(denoise, latents[-1], move, state)
            where = f"{self.name} inversion, step {i + 1}"
            latents.append(check_finite(step.x, "the inverted latent", where))
            state = step.state
            if on_step is not None:
                on_step(i, step)
        return Inverted(torch.stack(latents))
