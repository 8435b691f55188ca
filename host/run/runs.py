"""One sampling run: what its rows are, what each controller remembers, and what it leaves to be
shown.

A run is born and dropped around the host's own sampling (WrappersMP.OUTER_SAMPLE), so that an
interrupt or an error leaves nothing behind. A guider of ours says what its rows are. Under a plain
guider they follow from the prompts: a positive conditioning of 1 + n rows (Rows for KSampler) makes
groups of one source and n targets.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from typing import Any

import comfy.samplers
import torch

from ...core.control import Controller, Place, Row
from ...core.errors import PivotError
from ...core.step import EditStep, Prediction
from ..text.conditioning import MARK
from .neighbours import check_neighbours

RUN = "pivot_run"
CONTROLLERS = "pivot_controllers"
_NOISY = re.compile(r"ancestral|_sde|sde_|ddpm|lcm|seeds_|sa_solver")


class RowsGuider(comfy.samplers.CFGGuider):
    """A guider that knows what the rows of its batch are, and hosts steps of an edit."""

    step: EditStep
    """What such a step consists of."""
    remarks: tuple[str, ...] = ()
    """What the controllers said of its last run."""

    def batch_rows(self) -> tuple[Row, ...]:
        """What each row of the sampler's batch is."""
        raise NotImplementedError

    def prediction(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict[str, Any], seed: Any
    ) -> Prediction:
        """The guided answer for x in the host's space."""
        raise NotImplementedError


class OwnSampler(comfy.samplers.Sampler):
    """A loop of ours in the host's place for samplers.

    It gets what the host hands over, without what such a loop has no use for. It says itself when a
    step is over.
    """

    def sample(
        self,
        model_wrap: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> torch.Tensor:
        _check_whole(denoise_mask)
        self.check(model_wrap, sigmas, noise, latent_image)
        show = callback or (lambda i, denoised, x, steps: None)
        return self.run(model_wrap, sigmas, extra_args, show, latent_image)

    def check(
        self, guider: Any, sigmas: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor
    ) -> None:
        """Raise PivotError for what the loop cannot run from."""

    def run(
        self,
        guider: Any,
        sigmas: torch.Tensor,
        extra_args: dict[str, Any],
        show: Any,
        latent_image: torch.Tensor,
    ) -> torch.Tensor:
        """The samples."""
        raise NotImplementedError


class Run:
    """What is remembered while a run goes on.

    * `states` are the controllers, each with its state.
    * `rows` are those of the sampler's batch, or of the part that is evaluated now (`evaluating`).
    * `latent` is the latent's (height, width).
    * `levels` are the run's, descending.
    * `positive` are the uuids of conditioned texts.
    * `own_steps` says that the sampler says itself when a step is over.
    * `texts` are the lengths of the texts of the calls so far.
    """

    def __init__(
        self,
        controllers: tuple[Controller, ...],
        rows: tuple[Row, ...],
        latent: tuple[int, int],
        levels: torch.Tensor,
        positive: frozenset[Any] = frozenset(),
        own_steps: bool = False,
    ) -> None:
        self.states = [(controller, controller.begin()) for controller in controllers]
        self.rows = rows
        self.latent = latent
        self.levels = [float(level) for level in levels]
        self.positive = positive
        self.own_steps = own_steps
        self.unread: frozenset[tuple[int, bool]] = frozenset()
        self.now: Place | None = None
        self.texts: dict[Any, tuple[int, ...]] = {}
        self._indices: dict[tuple[tuple[int, ...], torch.device], torch.Tensor] = {}

    def index(self, rows: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Rows as a tensor on a device, where it is put once in a run."""
        if (rows, device) not in self._indices:
            self._indices[rows, device] = torch.tensor(rows, device=device)
        return self._indices[rows, device]

    def place(self, sigmas: torch.Tensor) -> Place:
        """The place where the run is: what `at` has said, else that of the first of `sigmas`.

        A look at `sigmas` waits for their device.
        """
        return self.now or place_of(float(sigmas[0]), self.levels)

    @contextlib.contextmanager
    def at(self, place: Place | None) -> Iterator[None]:
        """While it is entered, the run is at a place. With None that must be read off sigmas."""
        before, self.now = self.now, place
        try:
            yield
        finally:
            self.now = before

    @contextlib.contextmanager
    def evaluating(
        self, rows: tuple[Row, ...], unread: frozenset[tuple[int, bool]] = frozenset()
    ) -> Iterator[None]:
        """While it is entered, the network is asked about these rows.

        `unread` are those (index, conditioned) whose answer nobody reads.
        """
        before = self.rows, self.unread
        self.rows, self.unread = rows, unread
        try:
            yield
        finally:
            self.rows, self.unread = before

    def after_step(self, x: torch.Tensor, place: Place) -> torch.Tensor:
        """The sampler's latents after the step at `place`."""
        for controller, state in self.states:
            x = controller.after_step(x, self.rows, place, state)
        return x

    def is_cond(self, index: int, uuid: Any) -> bool:
        """Whether a chunk of a UNet call is conditioned, that is, reads one of the positive texts.

        Where no text says who it is, the index tells, which is 0 under the host's own guidance.
        """
        return uuid in self.positive if uuid is not None and self.positive else index == 0

    def finish(self, samples: torch.Tensor) -> None:
        """Lets controllers keep what is to be shown of the finished samples."""
        for controller, state in self.states:
            controller.finish(samples, self.rows, state)

    def remarks(self) -> tuple[str, ...]:
        """What the controllers have to say of the finished run, each sentence once."""
        said = [
            f"{controller.title}: {remark}"
            for controller, state in self.states
            for remark in controller.remark(state)
        ]
        return tuple(dict.fromkeys(said))


def run_of(model_options: dict[str, Any]) -> Run | None:
    """The run that is going on, if any."""
    return model_options.get("transformer_options", {}).get(RUN)


def controllers_of(model_options: dict[str, Any]) -> tuple[Controller, ...]:
    """The chain of controllers in a model's options."""
    return model_options.get("transformer_options", {}).get(CONTROLLERS, ())


def place_of(sigma: float, levels: list[float]) -> Place:
    """The place of a sigma in a descending list of levels, by its value."""
    steps = len(levels) - 1
    step = min(range(max(steps, 1)), key=lambda i: abs(levels[i] - sigma))
    return Place(step, steps, sigma)


def around_run(
    executor: Any,
    noise: Any,
    latent_image: Any,
    sampler: Any,
    sigmas: Any,
    *args: Any,
    **kw: Any,
) -> Any:
    """The wrapper around a whole run."""
    guider = executor.class_obj
    controllers = controllers_of(guider.model_options)
    if controllers:
        check_neighbours(guider.model_options["transformer_options"], guider.model_options)
    if isinstance(guider, RowsGuider):
        rows = guider.batch_rows()
    else:
        rows = _plain_rows(guider, controllers, len(noise))
        noise = _policies(rows, controllers, sampler, noise)
    if any(controller.sets_latents for controller in controllers):
        _check_latents_settable(sampler, args[0] if args else kw.get("denoise_mask"))
    run = Run(
        controllers,
        rows,
        (noise.shape[-2], noise.shape[-1]),
        sigmas,
        positive_texts(guider),
        isinstance(sampler, OwnSampler),
    )
    options = guider.model_options["transformer_options"]
    options[RUN] = run
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kw)
        steps = len(sigmas) - 1
        if steps > 0 and not run.own_steps:
            samples = run.after_step(samples, Place(steps - 1, steps, run.levels[-2]))
        run.finish(samples)
        _say(guider, run.remarks())
    finally:
        options.pop(RUN, None)
    return samples


def _say(guider: Any, remarks: tuple[str, ...]) -> None:
    """Hands the remarks of a run to a guider of ours, and to the host's log in any case."""
    if isinstance(guider, RowsGuider):
        guider.remarks = remarks
    for remark in remarks:  # stock sampler nodes have no other place for them
        logging.info(remark)


def around_prediction(
    executor: Any, x: torch.Tensor, timestep: Any, model_options: Any, *args: Any, **kw: Any
) -> Any:
    """The wrapper around one model evaluation.

    The step before it is over, and what the sampler evaluates is set to what the controllers make
    of it. Stock samplers offer no other place after a step. They evaluate their own latents (and,
    of second order, a trial step's), so that setting them in place is setting the sampler's.
    """
    run = run_of(model_options)
    if run is not None and not run.own_steps:
        now = run.place(timestep)
        if now.step > 0:
            last = Place(now.step - 1, now.steps, run.levels[now.step - 1])
            latents = run.after_step(x, last)
            if latents is not x:
                x.copy_(latents)
    return executor(x, timestep, model_options, *args, **kw)


def positive_texts(guider: Any) -> frozenset[Any]:
    """The uuids of the positive conditioning's texts.

    Guiders may run texts under any number (DualCFGGuider runs the negative as number 0), and other
    packs run further texts of their own.
    """
    names = ("positive", "target") if isinstance(guider, RowsGuider) else ("positive",)
    conds = [cond for name in names for cond in guider.conds.get(name) or ()]
    return frozenset(cond["uuid"] for cond in conds if "uuid" in cond)


def _plain_rows(guider: Any, controllers: tuple[Controller, ...], batch: int) -> tuple[Row, ...]:
    """The rows of a plain guider's batch, in groups as long as the positive conditioning has
    rows."""
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


def _policies(
    rows: tuple[Row, ...], controllers: tuple[Controller, ...], sampler: Any, noise: torch.Tensor
) -> torch.Tensor:
    """The noise that a plain run starts from, under what its controllers ask for."""
    if not any(row.source is not None for row in rows):
        return noise
    for controller in controllers:
        if controller.deterministic:
            _check_deterministic(sampler, controller.title)
    if any(controller.same_noise for controller in controllers):
        order = [index if row.source is None else row.source for index, row in enumerate(rows)]
        noise = noise[order]
    return noise


def sampler_name(sampler: Any) -> str:
    """A sampler's name as people choose it, with `s_churn` where it adds noise."""
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_")
    churns = getattr(sampler, "extra_options", {}).get("s_churn")
    return f"{name} with s_churn" if churns else name


def _check_deterministic(sampler: Any, title: str) -> None:
    """Refuse by name the samplers that draw noise for every row, because source and target would
    part."""
    name = sampler_name(sampler)
    if _NOISY.search(name) or "churn" in name:
        raise PivotError(
            "a deterministic sampler, such as euler, ddim, dpmpp_2m, heun or uni_pc",
            name,
            "Samplers that add noise at every step give source and target different noise; choose "
            "euler.",
            title,
        )


def _check_whole(noise_mask: Any) -> None:
    """Refuse a noise mask, which a walk along a trajectory cannot follow."""
    if noise_mask is not None:
        raise PivotError(
            "a latent without a noise mask",
            "one with it",
            "Connect the mask to Local Blend: it keeps the source outside of it.",
            "a replay of an inversion",
        )


def _check_latents_settable(sampler: Any, noise_mask: Any) -> None:
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
