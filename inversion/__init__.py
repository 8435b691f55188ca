"""Inversion and correction methods: one file per method."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..core.correction import Correction
from ..core.errors import PivotError
from ..core.inverter import Inverter
from ..core.recipe import Recipe, built
from ..core.stepper import StepRule
from ..core.trajectory import Trajectory
from .ddim import Ddim, DdimStep, Uncorrected
from .direct import Direct
from .fixed_point import FixedPoint
from .negative_prompt import NegativePrompt
from .null_text import NullText
from .uni import Uni

INVERTERS: dict[str, type[Inverter]] = {kind.name: kind for kind in (Ddim, FixedPoint, Uni)}
CORRECTIONS: dict[str, type[Correction]] = {
    kind.name: kind for kind in (Direct, NegativePrompt, NullText, Uncorrected)
}
STEPPERS: dict[str, type[StepRule]] = {kind.name: kind for kind in (DdimStep,)}
AUTO = "auto"


def inverter_named(name: str, **options: Any) -> Inverter:
    """The inversion method of a name, with those of the options that it has; PivotError lists the
    names there are."""
    if name not in INVERTERS:
        raise PivotError(
            f"method to be one of {tuple(INVERTERS)}", repr(name), "Choose one of them."
        )
    kind: Any = INVERTERS[name]
    own = {field.name for field in dataclasses.fields(kind)}
    made: Inverter = kind(**{key: value for key, value in options.items() if key in own})
    return made


def correction_named(name: str, /, **options: Any) -> Correction:
    """The correction method of a name; PivotError lists the names there are."""
    return built(Recipe(name, options), CORRECTIONS, "correction")


def correction_for(trajectory: Trajectory, name: str = AUTO) -> Correction:
    """The correction of a name, with the options that the inversion's recipe has for it.

    `auto`: the one of the recipe; else, for an inversion made at a cfg of its own, none; else
    direct.
    """
    recipe = trajectory.correction
    if name == AUTO:
        name = recipe.name if recipe else "direct" if trajectory.guidance == 1.0 else "none"
    options = recipe.options if recipe and recipe.name == name else {}
    chosen = built(Recipe(name, options), CORRECTIONS, "correction")
    chosen.check(trajectory)
    return chosen


def rule_for(trajectory: Trajectory) -> StepRule:
    """The step rule that an inversion is replayed by: plain DDIM unless it says another."""
    recipe = trajectory.stepper or Recipe(DdimStep.name)
    rule = built(recipe, STEPPERS, "step rule")
    rule.check(trajectory)
    return rule
