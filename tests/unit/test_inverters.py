"""What every inversion method is held to: the order in which it converges, and its options by
name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference import all_latents, gaussian, noise, sd_sigmas

from pivot_edit.core.errors import PivotError
from pivot_edit.core.inverter import Inverter
from pivot_edit.core.path import VP
from pivot_edit.inversion import (
    AUTO,
    INVERTERS,
    Ddim,
    FixedPoint,
    Uni,
    inverter_for,
    inverter_named,
)

MEAN, STD = noise(5, 4, 4, 4), 0.1 + 0.3 * noise(6, 4, 4, 4).abs()
ORDERS = {"ddim": 1, "fixed_point": math.inf, "uni": 2}
"""By which power of the step count the way there and back gets closer; infinite: exact at any."""
EXACT: dict[str, dict[str, Any]] = {"fixed_point": {"iterations": 50, "tolerance": 1e-13}}


def round_trip_error(inverter: Inverter, steps: int) -> float:
    """Mean distance to a picture after the way to noise and back, where the data is normal."""
    denoise, x0, sigmas = (
        gaussian(MEAN, STD),
        MEAN + STD * noise(7, 1, 4, 4, 4),
        VP.levels(sd_sigmas(), steps),
    )
    x, levels = all_latents(inverter, denoise, x0, sigmas)[-1], sigmas.flip(0).tolist()
    for sigma, sigma_next in zip(levels, levels[1:], strict=False):
        x = VP.step(x, VP.predict_eps(denoise, x, sigma), sigma, sigma_next)
    return (x - x0).abs().mean().item()


@pytest.mark.parametrize("name", INVERTERS)
@pytest.mark.parametrize("steps", [100, 125, 250])
def test_the_round_trip_has_the_order_that_the_method_states(name: str, steps: int) -> None:
    """A new method says in ORDERS how fast it converges."""
    inverter = inverter_named(name, **EXACT.get(name, {}))
    coarse, fine = (round_trip_error(inverter, n) for n in (steps, 2 * steps))
    if ORDERS[name] == math.inf:
        assert max(coarse, fine) < 1e-11
    else:
        assert 0.9 <= fine / coarse * 2 ** ORDERS[name] <= 1.2


@pytest.mark.parametrize("name", INVERTERS)
def test_an_inversion_asks_for_as_many_rows_as_it_says(name: str) -> None:
    """A step of uni costs one, as of ddim, and its first step one more."""
    inverter, asked = inverter_named(name, tolerance=0.0), []
    denoise = gaussian(MEAN, STD)

    def counted(x: torch.Tensor, sigma: float) -> torch.Tensor:
        asked.append(len(x))
        return denoise(x, sigma)

    all_latents(inverter, counted, noise(7, 3, 4, 4, 4), VP.levels(sd_sigmas(), 9))
    assert sum(asked) == 3 * inverter.rows(9)
    assert inverter.rows(9) == {"ddim": 9, "uni": 10, "fixed_point": 54}[name]


def test_a_method_by_name_takes_those_options_that_it_has() -> None:
    assert inverter_named("fixed_point", iterations=7, evaluation="naive") == FixedPoint(7)
    assert inverter_named("ddim", iterations=7, evaluation="naive") == Ddim("naive")
    with pytest.raises(
        PivotError, match=r"method to be one of \('ddim', 'fixed_point', 'uni'\), but got 'edict'"
    ):
        inverter_named("edict")


@pytest.mark.parametrize(
    ("cfg", "chosen"), [(1.0, Ddim()), (0.0, Uni()), (1.1, Uni()), (7.5, Uni())]
)
def test_auto_is_ddim_where_direct_brings_the_picture_back_and_uni_elsewhere(
    cfg: float, chosen: Inverter
) -> None:
    assert inverter_for(AUTO, cfg, iterations=7) == chosen
    assert inverter_for("fixed_point", cfg, iterations=7) == FixedPoint(7)


def test_auto_hands_on_the_options_of_what_it_chooses() -> None:
    assert inverter_for(AUTO, evaluation="naive") == Ddim("naive")
    with pytest.raises(PivotError, match="'ddim', 'fixed_point', 'uni', 'auto'.*got 'edict'"):
        inverter_for("edict")
