"""Inversion and correction methods: one file per method."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..core.correction import Correction
from ..core.errors import PivotError
from ..core.inverter import Inverter
from ..core.recipe import Recipe, built, recipe_of
from ..core.registry import discover
from ..core.stepper import StepRule
from ..core.trajectory import Trajectory

INVERTERS = {kind.name: kind for kind in discover(__name__, Inverter)}
CORRECTIONS = {kind.name: kind for kind in discover(__name__, Correction)}
STEPPERS = {kind.name: kind for kind in discover(__name__, StepRule)}
for _each in (INVERTERS, CORRECTIONS, STEPPERS):
    globals().update({kind.__name__: kind for kind in _each.values()})  # as if listed
PLAIN = "ddim"
"""The step rule of inversions that say none."""
EXACT = "uni"
"""The inverter that `auto` takes where the picture must come back without a correction."""
AUTO = "auto"


def inverter_named(name: str, **options: Any) -> Inverter:
    """The inversion method of a name, with those of the options that it has.

    Raises PivotError, with all the names, for a name that no method has.
    """
    if name not in INVERTERS:
        raise PivotError(
            f"method to be one of {tuple(INVERTERS)}", repr(name), "Choose one of them."
        )
    kind: Any = INVERTERS[name]
    fields = {field.name for field in dataclasses.fields(kind)}
    # one node offers every method's options, so that those of other methods come along
    inverter: Inverter = kind(**{key: value for key, value in options.items() if key in fields})
    return inverter


def inverter_for(name: str, cfg: float = 1.0, **options: Any) -> Inverter:
    """The inversion method of a name at a cfg, with those of the options that it has.

    `auto`: at cfg 1 edits are under direct (`correction_for`), which brings the picture back in any
    case, and those of ddim stay nearer to it. At another cfg nothing corrects the way back: the
    method that mostly returns more exactly at ddim's cost. docs/BENCHMARKS.md, "Few steps".
    """
    if name == AUTO:
        name = PLAIN if cfg == 1.0 else EXACT
    elif name not in INVERTERS:
        raise PivotError(
            f"method to be one of {(*INVERTERS, AUTO)}", repr(name), "Choose one of them."
        )
    return inverter_named(name, **options)


def correction_named(name: str, /, **options: Any) -> Correction:
    """The correction method of a name, with options of its own.

    Raises PivotError, with all the names, for a name that no method has.
    """
    return built(Recipe(name, options), CORRECTIONS, "correction")


def correction_for(trajectory: Trajectory, name: str = AUTO) -> Correction:
    """The correction of a name, with the options that the inversion's recipe has for it.

    The name `auto` asks for the recipe's correction. An inversion without one is replayed by
    `direct` where it was made at cfg 1, and by `none` where it was made at another cfg.
    """
    recipe = trajectory.correction
    if name == AUTO:
        # the replay of an inversion at cfg > 1 is exact at that cfg without any correction
        name = recipe.name if recipe else "direct" if trajectory.guidance == 1.0 else "none"
    options = recipe.options if recipe and recipe.name == name else {}
    chosen = built(Recipe(name, options), CORRECTIONS, "correction")
    chosen.check(trajectory)
    return chosen


def with_stepper(trajectory: Trajectory, rule: StepRule) -> Trajectory:
    """The inversion with a step rule's recipe, which every replay follows."""
    rule.check(trajectory)
    return dataclasses.replace(trajectory, stepper=recipe_of(rule))


def rule_for(trajectory: Trajectory) -> StepRule:
    """The step rule that an inversion is replayed by, which is plain DDIM unless it says
    another."""
    recipe = trajectory.stepper
    rule = built(recipe, STEPPERS, "step rule") if recipe else STEPPERS[PLAIN]()
    rule.check(trajectory)
    return rule
