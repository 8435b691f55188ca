"""From noise back to a picture: what a step rule is."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import torch

from .control import Place, Reads
from .options import Method
from .path import Path
from .trajectory import Trajectory


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """One step of an edit, from level index `upper` of the trajectory to level index `lower`."""

    trajectory: Trajectory
    path: Path
    place: Place
    """When it is, among the steps of this run."""
    upper: int
    lower: int

    @property
    def sigma(self) -> float:
        """The level that the step begins at."""
        return float(self.trajectory.sigmas[self.upper])

    @property
    def sigma_next(self) -> float:
        """The level that it ends at."""
        return float(self.trajectory.sigmas[self.lower])

    def extra(self, name: str) -> torch.Tensor:
        """A named tensor of the trajectory at this step."""
        # levels ascend from the picture, extras descend from noise
        return self.trajectory.extras[name][self.trajectory.steps - self.upper]


class StepRule(Method, abc.ABC):
    """How latents get from one level to the next, a frozen set of options.

    A rule is deterministic, or has its noise from the trajectory. Rows are [source; target 0; ...],
    each of B pictures. What a rule remembers during a run is in the `state` that `begin` made.
    """

    name: ClassVar[str]
    """Its name in the papers."""
    label: ClassVar[str]
    """One line for people."""

    def check(self, trajectory: Trajectory) -> None:
        """Raise PivotError where the trajectory lacks what the rule needs."""
        return None

    def levels(self, steps: int) -> tuple[int, ...]:
        """The level indices of a trajectory of `steps` steps that a run visits, from noise on.

        By default it visits all. A run that starts late leaves out the first of them, and a run of
        few steps most.
        """
        return tuple(range(steps, -1, -1))

    def descending(self, trajectory: Trajectory) -> torch.Tensor:
        """Those levels in sampling order, noise first, fp32: ComfyUI's SIGMAS."""
        return trajectory.sigmas[list(self.levels(trajectory.steps))].float()

    def repeats(self, place: Place) -> int:
        """How often the step at a place is made. `again` goes back up before each repeat."""
        return 1

    def reads(self, place: Place) -> Reads:
        """Which source predictions the rule reads now."""
        return "nothing"

    def begin(self, trajectory: Trajectory) -> Any:
        """Fresh state for one run."""
        return None

    @abc.abstractmethod
    def step(
        self, x: torch.Tensor, denoised: torch.Tensor, now: Moment, state: Any
    ) -> torch.Tensor:
        """The latents [rows, C, H, W] at the lower level, from the guided x0 predicted at x."""

    def again(self, x: torch.Tensor, now: Moment, state: Any) -> torch.Tensor:
        """The latents x of the lower level taken back to the upper one (time travel)."""
        raise NotImplementedError(f"{type(self).__name__} repeats steps and cannot go back")
