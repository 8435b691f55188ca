"""The replay of an inversion as a sampler, and the stock euler sampler in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_management
import torch

from ...core.control import Place
from ...core.correction import NEGATIVE
from ...core.errors import PivotError
from ...core.path import Denoise
from ...core.step import EditStep, Prediction
from ...core.stepper import Moment
from ...core.trajectory import Trajectory
from ...guidance import ClassifierFree
from ...inversion import AUTO, correction_for, rule_for
from .runs import OwnSampler, RowsGuider, run_of

Show = Callable[[int, torch.Tensor, torch.Tensor, int], object]
"""A function show(i, denoised, x, steps) for a preview after step i."""


def denoiser(predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Denoise:
    """The one model contract, denoise(X, sigma) -> x0, over a prediction that takes a sigma for
    every row.

    People can interrupt it.
    """

    def denoise(host: torch.Tensor, sigma: float) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return predict(host, host.new_full((len(host),), sigma))

    return denoise


class ReplaySampler(OwnSampler):
    """Takes an inversion's steps from noise to the picture, on [source; targets] rows.

    The correction is a method's name, or auto for what the guider says. Under a plain guider the
    correction is the sampler's own, and can only set source rows.
    """

    needs_noise = False
    """Whether the run must be given the trajectory's noise. Where not, it may be given none."""
    where = "Inversion Parts sampler"

    def __init__(self, trajectory: Trajectory, correction: str = AUTO) -> None:
        self.trajectory = trajectory
        self.correction = correction

    def check(
        self, guider: Any, sigmas: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor
    ) -> None:
        """Raise PivotError for levels and noise that are not the trajectory's."""
        step = self._step(guider)
        self._check_levels(sigmas, step)
        if self.needs_noise or bool(noise.any()):
            self._check_noise(noise, latent_image, step)

    def run(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        show: Show,
        latent_image: torch.Tensor,
    ) -> torch.Tensor:
        step = self._step(guider)
        current = run_of(extra_args["model_options"])
        after_step = current.after_step if current else _untouched
        x = step.start(len(latent_image) // self.trajectory.batch).to(latent_image)
        state = step.rule.begin(self.trajectory)

        def predict(x: torch.Tensor, now: Moment) -> Prediction:
            with current.at(now.place) if current else contextlib.nullcontext():
                return _predicted(guider, step, x, now, extra_args)

        for i, now in enumerate(step.moments):
            stepped = step(x, now, predict, after_step, state)
            x = stepped.x
            show(i, stepped.denoised, x, now.place.steps)
        return x

    def _step(self, guider: Any) -> EditStep:
        """The guider's step, or under a plain guider one without guidance of ours."""
        if isinstance(guider, RowsGuider):
            return guider.step
        correction = correction_for(self.trajectory, self.correction)
        place = Place(0, self.trajectory.steps, float(self.trajectory.sigmas[-1]))
        if correction.uncond("source", place) != NEGATIVE:
            raise PivotError(
                "a correction that only sets the source, direct or none, under a plain guider",
                correction.name,
                "Connect the Edit Guider: it gives unconditional rows their own texts.",
                self.where,
            )
        return EditStep(self.trajectory, correction, ClassifierFree(), rule_for(self.trajectory))

    def _check_levels(self, sigmas: torch.Tensor, step: EditStep) -> None:
        levels = step.descending.to(sigmas)
        if len(sigmas) != len(levels) or not torch.allclose(sigmas, levels, rtol=1e-4):
            raise PivotError(
                f"the inversion's own {len(levels) - 1} steps",
                f"{len(sigmas) - 1} steps of other sigmas",
                "Connect the sigmas output of Inversion Parts.",
                self.where,
            )

    def _check_noise(self, noise: torch.Tensor, latent_image: torch.Tensor, step: EditStep) -> None:
        sigma = step.moments[0].sigma
        start = step.start(len(latent_image) // self.trajectory.batch).to(noise)
        begins = step.path.noised(latent_image.to(noise), noise, sigma)
        pivot = step.path.to_host(start, sigma)
        if not torch.allclose(begins, pivot, rtol=0.0, atol=1e-3 * float(pivot.abs().max())):
            raise PivotError(
                "the inversion's own noise",
                "other noise" if bool(noise.any()) else "none",
                "Connect the noise output of Inversion Parts: an inverted picture only comes back "
                "from its own noise.",
                self.where,
            )


class StockEuler(ReplaySampler):
    """Stands for the stock euler sampler under the Edit Guider.

    In the host's space DDIM's step is Euler's. So the replay's own steps take its place, exactly,
    and end in the papers' coordinates.
    """

    needs_noise = True
    where = "Edit Guider"


def is_stock_euler(sampler: Any) -> bool:
    """Whether a sampler is the host's own Euler, without added noise."""
    stock = getattr(sampler, "sampler_function", None) is comfy.k_diffusion.sampling.sample_euler
    return stock and not getattr(sampler, "extra_options", {}).get("s_churn")


def _predicted(
    guider: Any, step: EditStep, x: torch.Tensor, now: Moment, extra_args: dict[str, Any]
) -> Prediction:
    """The prediction at latents x, which people can interrupt."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    host = step.path.to_host(x, now.sigma)
    sigmas = host.new_full((len(host),), now.sigma)
    if isinstance(guider, RowsGuider):
        return guider.prediction(host, sigmas, **extra_args)
    return Prediction(guider(host, sigmas, **extra_args))


def _untouched(x: torch.Tensor, place: Place) -> torch.Tensor:
    return x
