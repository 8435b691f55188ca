"""The edit guider: source and targets as rows of one batch, each with its own text and its own
guidance."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch

from ...core.control import (
    Branch,
    Place,
    Reads,
    Row,
)
from ...core.correction import SOURCE, Correction
from ...core.errors import PivotError
from ...core.guidance import Guidance, Guided
from ...core.schedule import to_exploding, to_preserving
from ...core.trajectory import Trajectory
from ...guidance import ClassifierFree
from ..model.checks import check_same_model, check_same_source, check_unet
from ..text.conditioning import one_per_row, rows_in, stack_rows
from ..text.prompts import Conditioning
from ..text.unconds import WHERE, Unconds
from .neighbours import check_edit_model
from .patching import with_rows
from .runs import controllers_of, place_of, sampler_name


class EditGuider(comfy.samplers.CFGGuider):
    """Denoises [source rows; rows of target 0; rows of target 1; ...], as many of each as there are
    pictures.

    The correction says what unconditional rows read and where source rows are after a step, the
    guidance rule what becomes of the difference between the predictions. Only the rows that
    somebody reads are run. For one target, a picture and a step:
    * plain DDIM, null-text: source and target, conditional and unconditional (4 rows);
    * negative-prompt: guidance cancels on the source row, so it needs no unconditional row (3);
    * direct: the source row is known, and run only while a controller reads it (3, then 2).
    A controller that reads the unconditioned source too (MasaCtrl) has it run while its window is
    open (4).

    `economy` off runs every row always, to compare. `rows_run` counts the UNet rows of the last
    run, for the report.
    """

    def __init__(
        self,
        model: Any,
        trajectory: Trajectory,
        source: Conditioning,
        target: Conditioning,
        negative: Conditioning,
        cfg: float,
        correction: Correction,
        guidance: Guidance | None = None,
    ) -> None:
        check_unet(model, WHERE)
        check_edit_model(model, WHERE)
        check_same_model(model, trajectory, WHERE)
        check_same_source(source, trajectory, WHERE)
        super().__init__(model)
        self.trajectory = trajectory
        self.correction = correction
        self.guidance = guidance or ClassifierFree()
        self.economy = True
        self.targets = rows_in(target)
        self.rows_run = 0
        self._guided: tuple[torch.Tensor, Guided] | None = None
        self._lands = True
        batch = trajectory.batch
        every = stack_rows(source, target, batch)
        self.unconds = Unconds(trajectory, correction, source, negative, self.targets)
        texts = {"positive": every, "target": one_per_row(target, batch), "negative": negative}
        self.inner_set_conds({**texts, **self.unconds.made})
        self.set_cfg(cfg)

    def batch_rows(self) -> tuple[Row, ...]:
        """What each row of the sampler's batch is."""
        return self._announce(slice(0, self._size))

    @property
    def _size(self) -> int:
        return (1 + self.targets) * self.trajectory.batch

    def sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: Any,
        denoise_mask: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """One run; refuses samplers that would leave the trajectory, noise masks, and latents of
        another size."""
        check_sampler(sampler)
        if denoise_mask is not None:
            raise PivotError(
                "a latent without a noise mask",
                "one with it",
                "Connect the mask to Local Blend: it keeps the source outside of it.",
                WHERE,
            )
        if latent_image.shape[0] != self._size:
            raise PivotError(
                f"a latent of {self._size} rows, source then "
                f"{'target' if self.targets == 1 else 'targets'}",
                f"{latent_image.shape[0]}",
                f"Connect the latent output of Inversion Parts, its targets set to {self.targets}.",
                WHERE,
            )
        self.trajectory.check_matches(latent_image[: self.trajectory.batch], WHERE)
        self.rows_run = 0
        self._lands = not getattr(sampler, "lands", False)
        try:
            return super().sample(noise, latent_image, sampler, sigmas, None, *args, **kwargs)
        finally:
            self._guided = None

    def land(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """The rows after the step that ends at level `index`, variance-preserving; x is what DDIM
        made of them."""
        batch = self.trajectory.batch
        if self._guided is not None:
            x = self.guidance.after_step(x, *self._guided, self.trajectory, index)
        return torch.cat(
            [self.correction.source_after(x[:batch], self.trajectory, index), x[batch:]]
        )

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: Any = None,
    ) -> torch.Tensor:
        """denoised [(1 + targets) B, C, H, W] of [source; targets] rows."""
        options = model_options or {}
        batch = self.trajectory.batch
        levels = options.get("transformer_options", {}).get(
            "sample_sigmas", self.trajectory.descending
        )
        place = place_of(float(timestep[0]), levels)
        cond, uncond = self._predictions(x, timestep, options, place)
        guided = self.guidance.guide((uncond - cond) / place.sigma, batch, place)
        cond = _thresholded(cond, uncond, guided.delta, place.sigma)
        targets = slice(batch, self._size)
        target = self._with_cfg(cond, uncond, x, timestep, options, place, targets)
        denoised = torch.cat([self._source(cond[:batch], uncond[:batch]), target])
        self._guided = (denoised, guided)
        return self._landing(x, denoised, place.step, levels) if self._lands else denoised

    def _with_cfg(
        self,
        cond: torch.Tensor,
        uncond: torch.Tensor,
        x: torch.Tensor,
        timestep: torch.Tensor,
        options: dict[str, Any],
        place: Place,
        rows: slice,
    ) -> torch.Tensor:
        """Guidance of the targets as the host does it, other packs' functions before, in and after
        it included."""
        conds = [self.conds["target"], self.unconds.at(self.conds, place, rows)]
        predicted, at, options = (
            [cond[rows], uncond[rows]],
            timestep[rows],
            with_rows(options, self._announce(rows)),
        )
        for function in options.get("sampler_pre_cfg_function", ()):
            predicted = function(
                {
                    "conds": conds,
                    "conds_out": predicted,
                    "cond_scale": self.cfg,
                    "timestep": at,
                    "input": x[rows],
                    "sigma": at,
                    "model": self.inner_model,
                    "model_options": options,
                }
            )
        return comfy.samplers.cfg_function(
            self.inner_model,
            *predicted,
            self.cfg,
            x[rows],
            at,
            model_options=options,
            cond=conds[0],
            uncond=conds[1],
        )

    def _predictions(
        self, x: torch.Tensor, timestep: torch.Tensor, options: dict[str, Any], place: Place
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditional and unconditional denoised of all rows; rows that nobody reads are left as
        x."""
        scales = (self.cfg, self.source_cfg)
        guided = not self.guidance.plain or any(abs(w - 1.0) > 1e-6 for w in scales)
        guided = guided or bool(options.get("disable_cfg1_optimization"))
        source_cond, source_uncond = self._source_read(options, place)
        first = {True: 0, False: self.trajectory.batch}
        with_cond, with_uncond = (
            slice(first[read], self._size) for read in (source_cond, source_uncond)
        )
        texts = self.conds["positive" if source_cond else "target"]
        cond = x.clone()
        if guided and with_cond == with_uncond:
            negative = self.unconds.at(self.conds, place, with_uncond)
            uncond = x.clone()
            cond[with_cond], uncond[with_cond] = self._run(
                x, timestep, options, [texts, negative], with_cond
            )
        else:
            cond[with_cond] = self._run(x, timestep, options, [texts, None], with_cond)[0]
            uncond = cond.clone()
            if guided:
                negative = self.unconds.at(self.conds, place, with_uncond)
                uncond[with_uncond] = self._run(
                    x, timestep, options, [None, negative], with_uncond
                )[1]
        if self._cancels(place):
            uncond[: self.trajectory.batch] = cond[: self.trajectory.batch]
        return cond, uncond

    @property
    def source_cfg(self) -> float:
        """The cfg of source rows: the guidance rule's own, or the targets'."""
        own = self.guidance.source_cfg
        return self.cfg if own is None else own

    def _cancels(self, place: Place) -> bool:
        """Whether guidance leaves source rows alone: they are set afterwards, their unconditional
        text is their own, or their cfg is 1."""
        return (
            self.correction.pinned
            or self.unconds.pair(place)[0] == SOURCE
            or self.source_cfg == 1.0
        )

    def _source_read(self, options: dict[str, Any], place: Place) -> tuple[bool, bool]:
        """Whether anybody reads the source's conditioned and unconditioned prediction or attention
        now."""
        if not self.economy:
            return True, True
        asked: set[Reads] = {controller.reads(place) for controller in controllers_of(options)}
        cond = not self.correction.pinned or bool(asked & {"cond", "both"})
        return cond, "both" in asked or not self._cancels(place)

    def _run(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        options: dict[str, Any],
        conds: list[Any],
        rows: slice,
    ) -> list[torch.Tensor]:
        """The host's own batch of conditional and unconditional texts over a slice of the rows."""
        announced = self._announce(rows)
        self.rows_run += len(announced) * sum(cond is not None for cond in conds)
        return comfy.samplers.calc_cond_batch(
            self.inner_model, conds, x[rows], timestep[rows], with_rows(options, announced)
        )

    def _announce(self, rows: slice) -> tuple[Row, ...]:
        """What the rows of a slice are; a target's source is named only when it is in the same
        slice."""
        return tuple(
            _row(index, self.trajectory.batch, rows.start) for index in range(rows.start, rows.stop)
        )

    def _source(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        return uncond + (cond - uncond) * self.source_cfg

    def _landing(
        self, x: torch.Tensor, denoised: torch.Tensor, step: int, levels: torch.Tensor
    ) -> torch.Tensor:
        """The denoised from which Euler's own step lands where `land` would set the rows."""
        sigma, sigma_next = float(levels[step]), float(levels[step + 1])
        plain = to_preserving(x + (sigma_next - sigma) * (x - denoised) / sigma, sigma_next)
        landed = self.land(plain, self.trajectory.index_of(sigma_next))
        wanted = x - sigma * (to_exploding(landed, sigma_next) - x) / (sigma_next - sigma)
        return torch.where(landed == plain, denoised, wanted)


def _thresholded(
    cond: torch.Tensor, uncond: torch.Tensor, delta: torch.Tensor, sigma: float
) -> torch.Tensor:
    """The conditional denoised whose difference to the unconditional one is `delta`, in eps; bit
    for bit where the rule kept all of the difference, or nothing."""
    whole = delta == (uncond - cond) / sigma
    return torch.where(whole, cond, torch.where(delta == 0.0, uncond, uncond - sigma * delta))


def _row(index: int, batch: int, first: int) -> Row:
    """The row of a batch index in a slice that begins at `first`."""
    block, picture = divmod(index, batch)
    branch: Branch = "source" if block == 0 else "target"
    source = picture if block > 0 and first == 0 else None
    return Row(branch, True, source, max(block - 1, 0), picture)


def check_sampler(sampler: Any) -> None:
    """Refuse by name every sampler that is not plain DDIM: noise or other mathematics leave the
    trajectory."""
    from .sampling import ReplaySampler

    if isinstance(sampler, ReplaySampler):
        return
    name = sampler_name(sampler)
    if name == "euler":
        return
    raise PivotError(
        "the Inversion Parts sampler or euler",
        f"{name} (stochastic, or not the mathematics of the inversion)",
        "An inverted picture only comes back along its own trajectory; choose euler.",
        WHERE,
    )
