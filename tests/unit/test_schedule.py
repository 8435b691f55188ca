"""Noise levels and the DDIM step: the reference grid, and DDIM as Euler in the exploding
variable."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import abar_of, denoiser, few, noise, sd_sigmas, vp_step

from pivot_edit.core.errors import PivotError
from pivot_edit.core.path import FLOW, VP
from pivot_edit.core.schedule import ddim_timesteps

levels = st.just(0.0) | st.floats(0.01, 15.0)  # below, abar rounds to 1 in the reference formula


def test_fifty_steps_are_1_21_to_981() -> None:
    assert ddim_timesteps(50) == list(range(1, 982, 20))


def test_thirty_steps_keep_the_stride_and_end_at_958() -> None:
    assert ddim_timesteps(30)[:2] == [1, 34]
    assert ddim_timesteps(30)[-1] == 958


@few
@given(st.integers(1, 999))
def test_any_number_of_steps_stays_within_the_table(steps: int) -> None:
    times = ddim_timesteps(steps)
    assert len(times) == steps
    assert times == sorted(set(times))
    assert times[0] == 1 and times[-1] < 1000


@pytest.mark.parametrize("steps", [-1, 0, 1000])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(PivotError, match=rf"between 1 and 999, but got {steps}"):
        ddim_timesteps(steps)


def test_reference_levels_have_the_published_values() -> None:
    table = VP.levels(sd_sigmas(), 50)
    assert table.dtype == torch.float64 and table.shape == (51,)
    assert table[0].item() == pytest.approx(0.0291675, rel=2e-5)
    assert table[1].item() == pytest.approx(0.04131, rel=2e-4)
    assert table[-1].item() == pytest.approx(13.1204, rel=1e-5)
    assert (table.diff() > 0).all()


def test_host_levels_differ_only_in_the_clean_end_which_is_zero() -> None:
    reference, host = VP.levels(sd_sigmas(), 50), VP.levels(sd_sigmas(), 50, "host")
    assert host[0] == 0.0
    assert torch.equal(reference[1:], host[1:])


def test_an_unknown_end_is_refused() -> None:
    with pytest.raises(PivotError, match="reference.*host"):
        VP.levels(sd_sigmas(), 50, "zero")


@few
@given(levels, levels)
def test_euler_in_the_exploding_variable_is_ddim(sigma: float, sigma_next: float) -> None:
    x, eps = noise(0, 2, 4, 3, 5), noise(1, 2, 4, 3, 5)
    expected = vp_step(x, eps, abar_of(sigma), abar_of(sigma_next))
    torch.testing.assert_close(VP.step(x, eps, sigma, sigma_next), expected, rtol=0, atol=1e-12)


@few
@given(levels)
def test_the_two_scales_are_inverse_and_meet_at_level_zero(sigma: float) -> None:
    x = noise(0, 1, 4, 2, 2)
    torch.testing.assert_close(VP.from_host(VP.to_host(x, sigma), sigma), x, rtol=1e-15, atol=0)
    torch.testing.assert_close(
        VP.to_host(x, sigma), x / math.sqrt(abar_of(sigma)), rtol=1e-14, atol=0
    )
    assert torch.equal(VP.to_host(x, 0.0), x)


@few
@given(st.floats(0.02, 15.0))
def test_the_network_sees_the_latent_itself_and_its_eps_comes_back(sigma: float) -> None:
    x, eps, seen = noise(0, 1, 4, 2, 2), noise(1, 1, 4, 2, 2), []

    def net(latent: torch.Tensor, at: float) -> torch.Tensor:
        seen.append((latent, at))
        return eps

    torch.testing.assert_close(VP.predict_eps(denoiser(net), x, sigma), eps, rtol=1e-9, atol=1e-12)
    ((latent, at),) = seen
    torch.testing.assert_close(latent, x, rtol=1e-14, atol=0)
    assert at == sigma


@pytest.mark.parametrize("steps", [1, 7, 20, 30, 50, 96])
def test_a_levels_time_is_the_timestep_that_the_reference_evaluates(steps: int) -> None:
    levels = VP.levels(sd_sigmas(), steps)[1:].tolist()
    assert [VP.time(sd_sigmas(), sigma) for sigma in levels] == ddim_timesteps(steps)


def test_a_level_between_two_has_the_nearest_ones_time_and_shorter_tables_the_same_scale() -> None:
    table = sd_sigmas()
    between = float((table[400].log() * 0.6 + table[401].log() * 0.4).exp())
    assert VP.time(table, between) == 400.0
    assert VP.time(table[::2], float(table[400])) == 400.0
    assert VP.time(table.float(), float(table.float()[999])) == 999.0


def test_a_flow_models_time_is_its_level() -> None:
    assert FLOW.time(torch.linspace(0.001, 1.0, 1000), 0.4) == pytest.approx(400.0)
