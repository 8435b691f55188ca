"""The edit guider: source and target as rows of one batch, each with its own text and its own guidance."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch

from ..core.attention import Branch, Row
from ..core.correction import Correction
from ..core.errors import PivotError
from ..core.trajectory import Trajectory
from .models import check_unet, conditioning_fingerprint, fingerprint
from .patching import place_of, wanted, with_rows
from .prompts import Conditioning

WHERE = "Edit Guider"
_EULER = ("sample_euler",)


def merge_rows(source: Conditioning, target: Conditioning, batch: int) -> Conditioning:
    """One conditioning of 2 * batch rows, [source ...; target ...], from two of one row each.

    Texts of unequal length are repeated to their common multiple, which leaves attention over them unchanged.
    Raises PivotError when the two are not built alike (number of entries, areas, masks, ControlNets).
    """
    if len(source) != len(target):
        raise PivotError(
            "source and target conditioning built alike",
            f"{len(source)} and {len(target)} entries",
            "Apply the same Conditioning nodes to both, or to neither.",
            WHERE,
        )
    return [_merge_entry(old, new, batch) for old, new in zip(source, target, strict=True)]


def _merge_entry(old: Any, new: Any, batch: int) -> tuple[torch.Tensor, dict[str, Any]]:
    merged: dict[str, Any] = {}
    for key in {**old[1], **new[1]}:
        a, b = old[1].get(key), new[1].get(key)
        if key == "pooled_output" and a is not None and b is not None:
            merged[key] = _stack(a, b, batch)
        elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b):
            merged[key] = a
        elif a is b or (not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor) and a == b):
            merged[key] = a
        else:
            raise PivotError(
                f"the same {key} on source and target conditioning",
                "two different ones",
                "Apply the same Conditioning nodes to both.",
                WHERE,
            )
    return _stack(*_equal_lengths(old[0], new[0]), batch), merged


def _stack(source: torch.Tensor, target: torch.Tensor, batch: int) -> torch.Tensor:
    return torch.cat([one.expand(batch, *one.shape[1:]) for one in (source, target)])


def _equal_lengths(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    common = int(torch.lcm(torch.tensor(a.shape[1]), torch.tensor(b.shape[1])))
    return a.repeat(1, common // a.shape[1], 1), b.repeat(1, common // b.shape[1], 1)


class EditGuider(comfy.samplers.CFGGuider):
    """Denoises [source rows; target rows]. Only the rows that somebody reads are run:

    * plain DDIM: source and target, conditional and unconditional (4 rows a picture);
    * negative-prompt: guidance cancels on the source row, so it needs no unconditional row (3);
    * direct: the source row is known, and run only while a controller reads it (3, then 2).

    `rows_run` counts the UNet rows of the last run, for the report.
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
        self.rows_run = 0
        uncond = source if correction.uncond == "source" else negative
        merged = merge_rows(source, target, trajectory.batch)
        self.inner_set_conds({"positive": merged, "target": target, "negative": uncond})
        self.set_cfg(cfg)

    def sample(
        self,
        noise: torch.Tensor,
        latent_image: torch.Tensor,
        sampler: Any,
        sigmas: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """One run; refuses samplers that would leave the trajectory, and latents of another size."""
        check_sampler(sampler)
        batch = self.trajectory.batch
        if latent_image.shape[0] != 2 * batch:
            raise PivotError(
                f"a latent of {2 * batch} rows, source then target",
                f"{latent_image.shape[0]}",
                "Connect the latent output of Inversion Parts.",
                WHERE,
            )
        self.trajectory.check_matches(latent_image[:batch], WHERE)
        self.rows_run = 0
        return super().sample(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: Any = None,
    ) -> torch.Tensor:
        """denoised [2 B, C, H, W] of [source; target] rows."""
        options = model_options or {}
        batch = self.trajectory.batch
        levels = options.get("transformer_options", {}).get("sample_sigmas", self.trajectory.descending)
        place = place_of(float(timestep[0]), levels)
        source_known = self.correction.pinned and not wanted(options, place)
        cond, uncond = self._predictions(x, timestep, options, source_known)
        target = comfy.samplers.cfg_function(
            self.inner_model,
            cond[batch:],
            uncond[batch:],
            self.cfg,
            x[batch:],
            timestep[batch:],
            model_options=with_rows(options, self._announce(slice(batch, 2 * batch))),
            cond=self.conds["target"],
            uncond=self.conds["negative"],
        )
        return torch.cat([self._source(x, cond, uncond, place.step, levels), target])

    def _predictions(
        self, x: torch.Tensor, timestep: torch.Tensor, options: dict[str, Any], source_known: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Conditional and unconditional denoised of all rows; rows that nobody reads are left as x."""
        batch = self.trajectory.batch
        target = slice(batch, 2 * batch)
        guided = abs(self.cfg - 1.0) > 1e-6 or bool(options.get("disable_cfg1_optimization"))
        if not source_known and guided and not self.correction.pinned and self.correction.uncond == "negative":
            cond, uncond = self._run(x, timestep, options, ("positive", "negative"), slice(0, 2 * batch))
            return cond, uncond
        first, rows = ("target", target) if source_known else ("positive", slice(0, 2 * batch))
        cond = x.clone()
        cond[rows] = self._run(x, timestep, options, (first, None), rows)[0]
        uncond = cond.clone()
        if guided:
            uncond[target] = self._run(x, timestep, options, (None, "negative"), target)[1]
        return cond, uncond

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
    """The row of a batch index; its source is named only when it is in the same slice."""
    branch: Branch = "source" if index < batch else "target"
    in_call = branch == "target" and first == 0
    return Row(branch, True, index - batch if in_call else None)


def check_sampler(sampler: Any) -> None:
    """Refuse by name every sampler that is not plain DDIM: noise or other mathematics leave the trajectory."""
    from .sampling import ReplaySampler

    if isinstance(sampler, ReplaySampler):
        return
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", type(sampler).__name__)
    options = getattr(sampler, "extra_options", {})
    if name in _EULER and not any(options.get(key) for key in ("s_churn", "s_noise_random")):
        return
    raise PivotError(
        "the Inversion Parts sampler or euler",
        f"{name.removeprefix('sample_')} (stochastic, or not the mathematics of the inversion)",
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
