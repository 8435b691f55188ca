"""One sampling run: what its rows are, what each controller remembers, and what it leaves to be shown.

A run is born and dropped around the host's own sampling (WrappersMP.OUTER_SAMPLE), so that an interrupt or an error
leaves nothing behind. Our own guider says what its rows are; under a plain guider they follow from the prompts: a
positive conditioning of 1 + n rows (Rows for KSampler) makes groups of one source and n targets, all of a group
starting from the same noise.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from ..core.attention import Controller, Place, Row
from ..core.errors import PivotError

RUN = "pivot_run"
CONTROLLERS = "pivot_controllers"
_NOISY = re.compile(r"ancestral|_sde|sde_|ddpm|lcm|seeds_|sa_solver|dpm_fast|dpm_adaptive")


class Run:
    """states: each controller with its state; rows: of the sampler's batch; after_step knows which step was last."""

    def __init__(self, controllers: tuple[Controller, ...], rows: tuple[Row, ...]) -> None:
        self.states = [(controller, controller.begin()) for controller in controllers]
        self.rows = rows
        self._last = -1

    def after_step(self, x: torch.Tensor, place: Place) -> torch.Tensor:
        """The sampler's latents after the step at `place`; each step once."""
        if place.step > self._last:
            self._last = place.step
            for controller, state in self.states:
                x = controller.after_step(x, self.rows, place, state)
        return x

    def finish(self, samples: torch.Tensor) -> None:
        """Let controllers keep what is to be shown of the finished samples."""
        for controller, state in self.states:
            controller.finish(samples, self.rows, state)


def run_of(model_options: dict[str, Any]) -> Run | None:
    """The run that is going on, if any."""
    return model_options.get("transformer_options", {}).get(RUN)


def controllers_of(model_options: dict[str, Any]) -> tuple[Controller, ...]:
    """The chain of controllers in a model's options."""
    return model_options.get("transformer_options", {}).get(CONTROLLERS, ())


def place_of(sigma: float, levels: torch.Tensor) -> Place:
    """The place of a sigma in a descending list of levels, by its value."""
    steps = len(levels) - 1
    step = int((levels[:-1].float().cpu() - sigma).abs().argmin())
    return Place(step, steps, sigma)


def around_run(executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *args: Any, **kw: Any) -> Any:
    """The wrapper around a whole run."""
    guider = executor.class_obj
    controllers = controllers_of(guider.model_options)
    announced = getattr(guider, "batch_rows", None)
    rows = announced() if announced else _plain_rows(guider, controllers, len(noise))
    if not announced and any(row.source is not None for row in rows):
        _check_deterministic(sampler)
        noise = noise[[index if row.source is None else row.source for index, row in enumerate(rows)]]
    run = Run(controllers, rows)
    options = guider.model_options["transformer_options"]
    options[RUN] = run
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kw)
        steps = len(sigmas) - 1
        samples = run.after_step(samples, Place(steps - 1, steps, float(sigmas[-2])))
        run.finish(samples)
    finally:
        options.pop(RUN, None)
    return samples


def around_prediction(executor: Any, x: torch.Tensor, timestep: Any, model_options: Any, *args: Any, **kw: Any) -> Any:
    """The wrapper around one model evaluation: the step before it is over, and the sampler's own latents are set to
    what the controllers make of them (stock samplers offer no other place after a step)."""
    run = run_of(model_options)
    if run is not None:
        levels = model_options["transformer_options"]["sample_sigmas"]
        now = place_of(float(timestep[0]), levels)
        if now.step > 0:
            made = run.after_step(x, Place(now.step - 1, now.steps, float(levels[now.step - 1])))
            if made is not x:
                x.copy_(made)
    return executor(x, timestep, model_options, *args, **kw)


def _plain_rows(guider: Any, controllers: tuple[Controller, ...], batch: int) -> tuple[Row, ...]:
    """The rows of a plain guider's batch: groups as long as the positive conditioning has rows."""
    group = _group_size(guider)
    if group > 1:
        if batch % group:
            raise PivotError(
                f"a latent batch of {group}, or a multiple: one row for the source and one for each target",
                f"a batch of {batch}",
                f"Set batch_size of the empty latent to {group}.",
                "Rows for KSampler",
            )
        return tuple(_grouped(index, group) for index in range(batch))
    if any(controller.needs_source for controller in controllers):
        raise PivotError(
            "source and target as rows of one batch",
            "a plain sampler with one prompt",
            "Sample this model with the Edit Sampler, or, to edit between two generated pictures, connect Rows for "
            "KSampler as the positive conditioning and an empty latent with batch_size 2.",
            "attention control",
        )
    return tuple(Row("target", True, None, 0, index) for index in range(batch))


def _grouped(index: int, group: int) -> Row:
    picture, place = divmod(index, group)
    if place == 0:
        return Row("source", True, None, 0, picture)
    return Row("target", True, picture * group, place - 1, picture)


def _group_size(guider: Any) -> int:
    conds = guider.conds.get("positive") or []
    texts = [cond["cross_attn"] for cond in conds if cond.get("cross_attn") is not None]
    return max((len(text) for text in texts), default=1)


def _check_deterministic(sampler: Any) -> None:
    """Refuse by name samplers that add noise of their own to every row: source and target would part."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    if _NOISY.search(name):
        raise PivotError(
            "a deterministic sampler, such as euler, ddim, dpmpp_2m, heun or uni_pc",
            name.removeprefix("sample_"),
            "Samplers that add noise at every step give source and target different noise; choose euler.",
            "attention control",
        )
