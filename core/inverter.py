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
    """One step towards noise.

    x: the latents at the upper level [B, C, H, W]; denoised: the network's last x0 of them, for
    previews; residual: by how much x misses the step it stands for, relative, [B], or None where
    nothing measures it; state: what the method hands to its next step.
    """

    x: torch.Tensor
    denoised: torch.Tensor
    residual: torch.Tensor | None = None
    state: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Inverted:
    """latents: all of them from clean to noise, [N + 1, B, C, H, W], the first the picture itself;
    extras: named tensors that a step rule will read, [N, ...], the noisiest step first."""

    latents: torch.Tensor
    extras: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)


OnStep = Callable[[int, Step], None]


class Inverter(Method, abc.ABC):
    """An inversion method, a frozen set of options.

    name: its name in the papers; label: one line for people; path: the latents' coordinates are the
    model's. What a method remembers between steps travels in `Step.state`.
    """

    name: ClassVar[str]
    label: ClassVar[str]

    @abc.abstractmethod
    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        """The latents x [B, C, H, W] taken from the lower level of a move to its upper one; `state`
        is the last step's, None at the first."""

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
        """All latents of the ascending levels `sigmas` [N + 1]; the first is `x0` itself.

        on_step(i, step) after each step. Methods that draw latents instead of stepping override
        this. Raises PivotError naming the step when NaN appears.
        """
        levels = [float(sigma) for sigma in sigmas]
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
