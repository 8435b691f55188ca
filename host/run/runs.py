"""One sampling run: what its rows are, what each controller remembers, and what it leaves to be
shown.

A run is born and dropped around the host's own sampling (WrappersMP.OUTER_SAMPLE), so that an
interrupt or an error leaves nothing behind. Our own guider says what its rows are; under a plain
guider they follow from the prompts: a positive conditioning of 1 + n rows (Rows for KSampler) makes
groups of one source and n targets, all of a group starting from the same noise.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from ...core.control import Controller, Place, Row
from ...core.errors import PivotError
from ..text.conditioning import MARK
from .neighbours import check_neighbours

RUN = "pivot_run"
CONTROLLERS = "pivot_controllers"
_NOISY = re.compile(r"ancestral|_sde|sde_|ddpm|lcm|seeds_|sa_solver")


class Run:
    """states: each controller with its state; rows: of the sampler's batch; latent: (height,
    width);
    positive: where chunks are not told by their index, the uuids of conditioned ones;
    stepped: the sampler says itself when a step is over."""

    def __init__(
        self,
        controllers: tuple[Controller, ...],
        rows: tuple[Row, ...],
        latent: tuple[int, int],
        positive: frozenset[Any] | None = None,
    ) -> None:
        self.states = [(controller, controller.begin()) for controller in controllers]
        self.rows = rows
        self.latent = latent
        self.positive = positive
        self.stepped = False

    def after_step(self, x: torch.Tensor, place: Place) -> torch.Tensor:
        """The sampler's latents after the step at `place`."""
        for controller, state in self.states:
            x = controller.after_step(x, self.rows, place, state)
        return x

    def is_cond(self, index: int, uuid: Any) -> bool:
        """Whether a chunk of a UNet call is a conditioned one: index 0 under the host's own
        guidance."""
        return index == 0 if self.positive is None else uuid in self.positive

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


def around_run(
    executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *args: Any, **kw: Any
) -> Any:
    """The wrapper around a whole run."""
    guider = executor.class_obj
    controllers = controllers_of(guider.model_options)
    check_neighbours(guider.model_options["transformer_options"], guider.model_options)
    announced = getattr(guider, "batch_rows", None)
    rows = announced() if announced else _plain_rows(guider, controllers, len(noise))
    if not announced and any(row.source is not None for row in rows):
        _check_deterministic(sampler)
        noise = noise[
            [index if row.source is None else row.source for index, row in enumerate(rows)]
        ]
    if any(controller.sets_latents for controller in controllers):
        _check_own_latents(sampler, args[0] if args else kw.get("denoise_mask"))
    run = Run(controllers, rows, (noise.shape[-2], noise.shape[-1]), _positive(guider))
    options = guider.model_options["transformer_options"]
    options[RUN] = run
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kw)
        steps = len(sigmas) - 1
        if steps > 0 and not run.stepped:
            samples = run.after_step(samples, Place(steps - 1, steps, float(sigmas[-2])))
        run.finish(samples)
    finally:
        options.pop(RUN, None)
    return samples


def around_prediction(
    executor: Any, x: torch.Tensor, timestep: Any, model_options: Any, *args: Any, **kw: Any
) -> Any:
    """The wrapper around one model evaluation: the step before it is over, and what the sampler
    evaluates is set to what the controllers make of it. Stock samplers offer no other place after a
    step; they evaluate their own latents (and, of second order, a trial step's), so that setting
    them in place is setting the sampler's."""
    run = run_of(model_options)
    if run is not None and not run.stepped:
        levels = model_options["transformer_options"]["sample_sigmas"]
        now = place_of(float(timestep[0]), levels)
        if now.step > 0:
            made = run.after_step(x, Place(now.step - 1, now.steps, float(levels[now.step - 1])))
            if made is not x:
                x.copy_(made)
    return executor(x, timestep, model_options, *args, **kw)


def _positive(guider: Any) -> frozenset[Any] | None:
    """The uuids of the positive conditioning under guiders with a guidance of their own, which may
    run any texts in any order (DualCFGGuider runs the negative as number 0); None where the index
    tells."""
    import comfy.samplers

    own = type(guider).predict_noise is not comfy.samplers.CFGGuider.predict_noise
    if not own or hasattr(guider, "batch_rows"):
        return None
    return (
        frozenset(cond["uuid"] for cond in guider.conds.get("positive") or () if "uuid" in cond)
        or None
    )


def _plain_rows(guider: Any, controllers: tuple[Controller, ...], batch: int) -> tuple[Row, ...]:
    """The rows of a plain guider's batch: groups as long as the positive conditioning has rows."""
    group = _group_size(guider)
    if group > 1:
        if batch % group:
            raise PivotError(
                f"a latent batch of {group}, or a multiple: one row for the source and one for "
                "each target",
                f"a batch of {batch}",
                f"Set batch_size of the empty latent to {group}.",
                "Rows for KSampler",
            )
        return tuple(_grouped(index, group) for index in range(batch))
    if any(controller.needs_source for controller in controllers):
        raise PivotError(
            "source and target as rows of one batch",
            "a plain sampler with one prompt",
            "Sample this model with the Edit Sampler, or, to edit between two generated pictures, "
            "connect Rows for "
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
    return max((cond.get(MARK, 1) for cond in guider.conds.get("positive") or ()), default=1)


def sampler_name(sampler: Any) -> str:
    """A sampler's name as people choose it, with `s_churn` where it adds noise."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
    return f"{name} with s_churn" if getattr(sampler, "extra_options", {}).get("s_churn") else name


def _check_deterministic(sampler: Any) -> None:
    """Refuse by name samplers that add noise of their own to every row: source and target would
    part."""
    name = sampler_name(sampler)
    if _NOISY.search(name) or "churn" in name:
        raise PivotError(
            "a deterministic sampler, such as euler, ddim, dpmpp_2m, heun or uni_pc",
            name,
            "Samplers that add noise at every step give source and target different noise; choose "
            "euler.",
            "attention control",
        )


def _check_own_latents(sampler: Any, noise_mask: Any) -> None:
    """Refuse what evaluates copies of its latents, so that they cannot be set after a step."""
    if noise_mask is not None:
        raise PivotError(
            "no noise mask beside Local Blend",
            "a latent with one",
            "Connect the mask to Local Blend instead of Set Latent Noise Mask.",
            "Local Blend",
        )
    name = sampler_name(sampler)
    if name.startswith("unipc"):
        raise PivotError(
            "a sampler whose steps can be blended, such as euler, ddim, dpmpp_2m or heun",
            name,
            "It evaluates copies of its latents; choose euler.",
            "Local Blend",
        )
