"""The edit guider: source and targets as rows of one batch, each with its own text and its own guidance."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch

from ..core.attention import Branch, Place, Reads, Row
from ..core.correction import Correction
from ..core.errors import PivotError
from ..core.trajectory import Trajectory
from .conditioning import one_per_row, rows_in, stack_rows
from .models import check_unet, conditioning_fingerprint, fingerprint
from .patching import with_rows
from .prompts import Conditioning
from .runs import controllers_of, place_of, sampler_name

WHERE = "Edit Guider"


class EditGuider(comfy.samplers.CFGGuider):
    """Denoises [source rows; rows of target 0; rows of target 1; ...], as many of each as there are pictures.

    Only the rows that somebody reads are run. For one target, a picture and a step:
    * plain DDIM: source and target, conditional and unconditional (4 rows);
    * negative-prompt: guidance cancels on the source row, so it needs no unconditional row (3);
    * direct: the source row is known, and run only while a controller reads it (3, then 2).
    A controller that reads the unconditioned source too (MasaCtrl) has it run while its window is open (4).

    `economy` off runs every row always, to compare. `rows_run` counts the UNet rows of the last run, for the report.
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
    ) -> None:
        check_unet(model, WHERE)
        check_same_model(model, trajectory)
        check_same_source(source, trajectory)
        super().__init__(model)
        self.trajectory = trajectory
        self.correction = correction
        self.economy = True
        self.targets = rows_in(target)
        self.rows_run = 0
        uncond = source if correction.uncond == "source" else negative
        batch = trajectory.batch
        every = stack_rows(source, target, batch)
        self.inner_set_conds({"positive": every, "target": one_per_row(target, batch), "negative": uncond})
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
        """One run; refuses samplers that would leave the trajectory, noise masks, and latents of another size."""
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
                f"a latent of {self._size} rows, source then {'target' if self.targets == 1 else 'targets'}",
                f"{latent_image.shape[0]}",
                f"Connect the latent output of Inversion Parts, its targets set to {self.targets}.",
                WHERE,
            )
        self.trajectory.check_matches(latent_image[: self.trajectory.batch], WHERE)
        self.rows_run = 0
        return super().sample(noise, latent_image, sampler, sigmas, None, *args, **kwargs)

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
        levels = options.get("transformer_options", {}).get("sample_sigmas", self.trajectory.descending)
        place = place_of(float(timestep[0]), levels)
        cond, uncond = self._predictions(x, timestep, options, place)
        targets = slice(batch, self._size)
        predicted = [cond[targets], uncond[targets]]
        target = self._guided(predicted, x[targets], timestep[targets], with_rows(options, self._announce(targets)))
        return torch.cat([self._source(x, cond, uncond, place.step, levels), target])

    def _guided(
        self, predicted: list[torch.Tensor], x: torch.Tensor, timestep: torch.Tensor, options: dict[str, Any]
    ) -> torch.Tensor:
        """Guidance of the targets as the host does it, other packs' functions before, in and after it included."""
        conds = [self.conds["target"], self.conds["negative"]]
        for function in options.get("sampler_pre_cfg_function", ()):
            predicted = function(
                {
                    "conds": conds,
                    "conds_out": predicted,
                    "cond_scale": self.cfg,
                    "timestep": timestep,
                    "input": x,
                    "sigma": timestep,
                    "model": self.inner_model,
                    "model_options": options,
                }
            )
        return comfy.samplers.cfg_function(
            self.inner_model,
            *predicted,
            self.cfg,
            x,
            timestep,
            model_options=options,
            cond=conds[0],
            uncond=conds[1],
        )

    def _predictions(
        self, x: torch.Tensor, timestep: torch.Tensor, options: dict[str, Any], place: Place
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditional and unconditional denoised of all rows; rows that nobody reads are left as x."""
        guided = abs(self.cfg - 1.0) > 1e-6 or bool(options.get("disable_cfg1_optimization"))
        source_cond, source_uncond = self._source_read(options, place)
        first = {True: 0, False: self.trajectory.batch}
        with_cond, with_uncond = (slice(first[read], self._size) for read in (source_cond, source_uncond))
        name = "positive" if source_cond else "target"
        cond = x.clone()
        if guided and with_cond == with_uncond:
            uncond = x.clone()
            cond[with_cond], uncond[with_cond] = self._run(x, timestep, options, (name, "negative"), with_cond)
        else:
            cond[with_cond] = self._run(x, timestep, options, (name, None), with_cond)[0]
            uncond = cond.clone()
            if guided:
                uncond[with_uncond] = self._run(x, timestep, options, (None, "negative"), with_uncond)[1]
        if self.correction.uncond == "source":
            uncond[: self.trajectory.batch] = cond[: self.trajectory.batch]
        return cond, uncond

    def _source_read(self, options: dict[str, Any], place: Place) -> tuple[bool, bool]:
        """Whether anybody reads the source's conditioned and unconditioned prediction or attention now."""
        if not self.economy:
            return True, True
        asked: set[Reads] = {controller.reads(place) for controller in controllers_of(options)}
        moves = not self.correction.pinned
        uncond = "both" in asked or (moves and self.correction.uncond == "negative")
        return moves or bool(asked & {"cond", "both"}), uncond

    def _run(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        options: dict[str, Any],
        names: tuple[Any, Any],
        rows: slice,
    ) -> list[torch.Tensor]:
        """The host's own batch of conditional and unconditional texts over a slice of the rows."""
        announced = self._announce(rows)
        conds = [None if name is None else self.conds[name] for name in names]
        self.rows_run += len(announced) * sum(cond is not None for cond in conds)
        return comfy.samplers.calc_cond_batch(
            self.inner_model, conds, x[rows], timestep[rows], with_rows(options, announced)
        )

    def _announce(self, rows: slice) -> tuple[Row, ...]:
        """What the rows of a slice are; a target's source is named only when it is in the same slice."""
        return tuple(_row(index, self.trajectory.batch, rows.start) for index in range(rows.start, rows.stop))

    def _source(
        self, x: torch.Tensor, cond: torch.Tensor, uncond: torch.Tensor, step: int, levels: torch.Tensor
    ) -> torch.Tensor:
        """The source's denoised; where it is pinned, the one from which Euler lands on the trajectory."""
        batch = self.trajectory.batch
        if not self.correction.pinned:
            return uncond[:batch] + (cond[:batch] - uncond[:batch]) * self.cfg
        sigma, sigma_next = float(levels[step]), float(levels[step + 1])
        end = self.trajectory.latents[self.trajectory.index_of(sigma_next)].to(x)
        end = end * (1.0 + sigma_next**2) ** 0.5
        return x[:batch] - sigma * (end - x[:batch]) / (sigma_next - sigma)


def _row(index: int, batch: int, first: int) -> Row:
    """The row of a batch index in a slice that begins at `first`."""
    block, picture = divmod(index, batch)
    branch: Branch = "source" if block == 0 else "target"
    source = picture if block > 0 and first == 0 else None
    return Row(branch, True, source, max(block - 1, 0), picture)


def check_sampler(sampler: Any) -> None:
    """Refuse by name every sampler that is not plain DDIM: noise or other mathematics leave the trajectory."""
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


def check_same_model(model: Any, trajectory: Trajectory) -> None:
    """Raise PivotError when the inversion was made with another model."""
    mine = fingerprint(model)
    if mine != trajectory.model:
        raise PivotError(
            f"the model the inversion was made with ({trajectory.model})",
            f"another one ({mine})",
            "Connect the same checkpoint and LoRA to the inversion and to the edit.",
            WHERE,
        )


def check_same_source(source: Conditioning, trajectory: Trajectory) -> None:
    """Raise PivotError when the source conditioning is not the one that was inverted with."""
    if conditioning_fingerprint(source) != trajectory.conditioning:
        raise PivotError(
            "the source conditioning that the inversion was made with",
            "another one",
            "Use one source prompt for the inversion and for the edit.",
            WHERE,
        )
