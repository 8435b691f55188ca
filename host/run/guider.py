"""The edit guider, with source and targets as rows of one batch, each under its own text."""

from __future__ import annotations

import dataclasses
from typing import Any

import comfy.patcher_extension
import comfy.samplers
import torch

from ...core.control import Branch, Place, Reads, Row
from ...core.correction import Correction
from ...core.errors import PivotError
from ...core.guidance import Guidance
from ...core.step import EditStep, Prediction
from ...core.trajectory import Trajectory
from ...guidance import ClassifierFree
from ...inversion import AUTO, correction_for, rule_for
from ..model.checks import check_same_model, check_same_source, check_unet, trained_sigmas
from ..text.conditioning import one_per_row, rows_in, stack_rows
from ..text.prompts import Conditioning, prompt_of
from ..text.unconds import WHERE, Unconds
from .neighbours import check_edit_model
from .patching import watched
from .replay import ReplaySampler, StockEuler, is_stock_euler
from .runs import RUN, RowsGuider, Run, controllers_of, run_of, sampler_name

_FUNCTIONS = (
    "sampler_pre_cfg_function",
    "sampler_cfg_function",
    "sampler_post_cfg_function",
)
"""Other packs' functions around guidance, which may ask the network again."""
_BATCH_FUNCTION = "sampler_calc_cond_batch_function"
_OUTPUT_PATCHES = ("attn1_output_patch", "attn2_output_patch")
"""Other packs' patches that may compare a call's conditioned rows with its unconditioned ones."""
_APART = ("control", "area", "mask", "hooks", "gligen")
"""What in a text makes its rows more than rows of one call."""


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Which rows are asked about."""

    cond: slice
    """The rows of the batch under their own texts."""
    uncond: slice | None
    """The rows under unconditional texts; None where guidance needs none."""
    joint: bool = False
    """Both in one call of all rows. What nobody reads is left out inside of it."""
    apart: bool = False
    """Each in a call of its own."""

    @property
    def together(self) -> bool:
        """Whether both texts are asked about at once."""
        return self.uncond is not None and (self.joint or self.cond == self.uncond)


class EditGuider(RowsGuider):
    """Denoises [source rows; rows of target 0; rows of target 1; ...], each of B pictures.

    `core/step.py` says what happens in a step, and the guider asks the network for it. Only the
    rows that somebody reads are run. For one target, a picture and a step they are:

    * plain DDIM, null-text: source and target, conditional and unconditional (4 rows)
    * negative-prompt: guidance cancels on the source row, so it needs no unconditional row (3)
    * direct: the source row is known, and run only while a controller reads it (3, then 2)

    A controller that reads the unconditioned source too (MasaCtrl) has it run while its window is
    open (4). `economy` off runs every row always, to compare. `rows_run` counts the rows of the
    last run.
    """

    def __init__(
        self,
        model: Any,
        trajectory: Trajectory,
        source: Conditioning,
        target: Conditioning,
        negative: Conditioning,
        cfg: float,
        correction: str = AUTO,
        guidance: Guidance | None = None,
    ) -> None:
        check_unet(model, WHERE)
        check_edit_model(model, WHERE)
        check_same_model(model, trajectory, WHERE)
        check_same_source(source, trajectory, WHERE, prompt_of(source))
        super().__init__(watched(model))
        self.trajectory = trajectory
        self.choice = correction
        self.guidance = guidance or ClassifierFree()
        self.economy = True
        self.targets = rows_in(target)
        self.rows_run = 0
        self._texts = {"source": source, "target": target, "negative": negative}
        self._prepare(correction)
        self.set_cfg(cfg)

    def _prepare(self, correction: str) -> None:
        """Makes the step and the texts under a correction's name."""
        chosen = correction_for(self.trajectory, correction)
        rule, table = rule_for(self.trajectory), trained_sigmas(self.model_patcher)
        self.step = EditStep(self.trajectory, chosen, self.guidance, rule, table)
        self._prepared = correction
        source, target, negative = (self._texts[name] for name in ("source", "target", "negative"))
        batch = self.trajectory.batch
        self.unconds = Unconds(self.step, source, negative, self.targets)
        self.inner_set_conds(
            {
                "positive": stack_rows(source, target, batch),
                "target": one_per_row(target, batch),
                "negative": negative,
                **self.unconds.texts,
            }
        )

    @property
    def correction(self) -> Correction:
        """The correction that the step holds."""
        return self.step.correction

    @property
    def source_cfg(self) -> float:
        """The cfg of source rows."""
        return self.step.source_cfg(self.cfg)

    def batch_rows(self) -> tuple[Row, ...]:
        return self._rows(slice(0, self._size))

    @property
    def _size(self) -> int:
        return (1 + self.targets) * self.trajectory.batch

    @property
    def _target_rows(self) -> slice:
        return slice(self.trajectory.batch, self._size)

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
        """The samples of one run.

        Raises PivotError for samplers that would leave the trajectory, for noise masks, and for
        latents of another size.
        """
        sampler = self._replaying(sampler)
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
        self.rows_run, self.remarks = 0, ()
        return super().sample(noise, latent_image, sampler, sigmas, None, *args, **kwargs)

    def _replaying(self, sampler: Any) -> ReplaySampler:
        """The replay that a sampler stands for, under the one correction that both nodes name."""
        if is_stock_euler(sampler):
            sampler = StockEuler(self.trajectory)
        if not isinstance(sampler, ReplaySampler):
            raise PivotError(
                "the Inversion Parts sampler or euler",
                f"{sampler_name(sampler)} (stochastic, or not the mathematics of the inversion)",
                "An inverted picture only comes back along its own trajectory; choose euler.",
                WHERE,
            )
        named = {name for name in (self.choice, sampler.correction) if name != AUTO}
        if len(named) > 1:
            raise PivotError(
                "one correction on Edit Guider and Inversion Parts",
                f"{self.choice} and {sampler.correction}",
                "Set one of them to auto: it then follows the other.",
                WHERE,
            )
        correction = named.pop() if named else AUTO
        if correction != self._prepared:
            self._prepare(correction)
        return sampler

    # -- one prediction ------------------------------------------------------------------------

    def prediction(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict[str, Any], seed: Any
    ) -> Prediction:
        """The guided answer for x in the host's space, through every pack's wrapper around a
        prediction."""
        answers: list[Prediction] = []

        def innermost(
            x: torch.Tensor, timestep: torch.Tensor, model_options: Any = None, seed: Any = None
        ) -> torch.Tensor:
            answers.append(self._predict(x, timestep, model_options or {}))
            return answers[-1].denoised

        extension = comfy.patcher_extension
        wrappers = extension.get_all_wrappers(
            extension.WrappersMP.PREDICT_NOISE, self.model_options, is_model_options=True
        )
        executor = extension.WrapperExecutor.new_class_executor(innermost, self, wrappers)
        denoised = executor.execute(x, timestep, model_options, seed)
        return Prediction(denoised, answers[-1].guided if answers else None)

    def predict_noise(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        model_options: dict[str, Any] | None = None,
        seed: Any = None,
    ) -> torch.Tensor:
        """The guided x0 [(1 + targets) * B, C, H, W] of [source; targets] rows."""
        return self._predict(x, timestep, model_options or {}).denoised

    def _predict(
        self, x: torch.Tensor, timestep: torch.Tensor, options: dict[str, Any]
    ) -> Prediction:
        """The guided answer for x in the host's space, without wrappers.

        The options are the run's own dict all the time, because other packs keep state in it.
        """
        run = run_of(options)
        if run is None:
            raise PivotError(
                "a sampling run", "a prediction outside of one", "Use a sampler node.", WHERE
            )
        place = run.place(timestep)
        asked: set[Reads] = {one.reads(place) for one in controllers_of(options)}
        plan = self._plan(options, place, asked)
        cond, answered = self._predictions(x, timestep, options, place, plan)
        uncond, batch = answered, self.trajectory.batch
        if self.step.cancels(place, self.cfg):
            uncond = torch.cat([cond[:batch], answered[batch:]])
        # Functions may ask the network again: our controllers must then find the source too.
        shown = plan.cond if _functions(options) else self._target_rows

        def combine(cond: torch.Tensor, scale: float) -> torch.Tensor:
            # Functions may ask at other levels, too: where that is, only their sigmas say.
            with run.evaluating(self._rows(shown)), run.at(None):
                guided = self._with_cfg(cond, answered, scale, x, timestep, options, place, shown)
            return guided[batch - shown.start :]

        return self.step.guide(cond, uncond, place, self.cfg, combine)

    def _with_cfg(
        self,
        cond: torch.Tensor,
        uncond: torch.Tensor,
        scale: float,
        x: torch.Tensor,
        timestep: torch.Tensor,
        options: dict[str, Any],
        place: Place,
        rows: slice,
    ) -> torch.Tensor:
        """The guided x0 of a slice of the rows, as the host makes it.

        Other packs' functions before, in and after guidance are called.
        """
        positive = "target" if rows.start else "positive"
        conds = [self.conds[positive], self.unconds.at(self.conds, place, rows)]
        predicted, at = [cond[rows], uncond[rows]], timestep[rows]
        for function in options.get("sampler_pre_cfg_function", ()):
            predicted = function(
                {
                    "conds": conds,
                    "conds_out": predicted,
                    "cond_scale": scale,
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
            scale,
            x[rows],
            at,
            model_options=options,
            cond=conds[0],
            uncond=conds[1],
        )

    # -- which rows are run --------------------------------------------------------------------

    def _predictions(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        options: dict[str, Any],
        place: Place,
        plan: _Plan,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The conditional and the unconditional x0 of all rows, with x where nobody reads them."""
        positive = self.conds["target" if plan.cond.start else "positive"]
        cond = x.clone()
        if plan.together and not plan.apart:
            rows = slice(0, self._size) if plan.joint else plan.cond
            negative = self.unconds.at(self.conds, place, rows)
            uncond = x.clone()
            cond[rows], uncond[rows] = self._ask(
                x, timestep, options, [positive, negative], rows, plan
            )
        else:
            cond[plan.cond] = self._ask(x, timestep, options, [positive, None], plan.cond, plan)[0]
            uncond = cond.clone()
            if plan.uncond is not None:
                negative = self.unconds.at(self.conds, place, plan.uncond)
                answer = self._ask(x, timestep, options, [None, negative], plan.uncond, plan)
                uncond[plan.uncond] = answer[1]
        return cond, uncond

    def _plan(self, options: dict[str, Any], place: Place, asked: set[Reads]) -> _Plan:
        """The rows to ask about at a place, where `asked` is what the controllers read."""
        whole, targets = slice(0, self._size), self._target_rows
        read = self.step.source_reads(place, self.cfg, asked) if self.economy else (True, True)
        cond, uncond = (whole if source else targets for source in read)
        if not self._guided(options):
            return _Plan(cond, None)
        if _one_call(options) or _BATCH_FUNCTION in options:
            return _Plan(cond, cond) if cond == uncond else _Plan(whole, whole)
        if _functions(options):  # the same question again is then the same call again, to the bit
            return _Plan(cond, cond, apart=True)
        return _Plan(cond, uncond, cond != uncond and self._separable(options))

    def _guided(self, options: dict[str, Any]) -> bool:
        """Whether unconditional rows are needed at all."""
        scales = (self.cfg, self.source_cfg)
        plain = self.guidance.plain and all(abs(scale - 1.0) <= 1e-6 for scale in scales)
        return not plain or bool(options.get("disable_cfg1_optimization"))

    def _separable(self, options: dict[str, Any]) -> bool:
        """Whether single rows may be left out inside the network.

        They may where nothing else counts on chunks of equal size.
        """
        transformer = options.get("transformer_options", {})
        slots = ("patches", "patches_replace", "optimized_attention_override")
        if "model_function_wrapper" in options or any(transformer.get(name) for name in slots):
            return False
        texts = [cond for each in self.conds.values() for cond in each]
        return not any(cond.get(name) is not None for cond in texts for name in _APART)

    def _ask(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        options: dict[str, Any],
        conds: list[Any],
        rows: slice,
        plan: _Plan,
    ) -> list[torch.Tensor]:
        """The answers of the host's own batch of both texts over a slice of the rows."""
        skipped = range(plan.uncond.start) if plan.joint and plan.uncond else range(0)
        unread = frozenset((row, False) for row in skipped)
        asked = rows.stop - rows.start
        self.rows_run += asked * sum(cond is not None for cond in conds) - len(unread)
        run: Run = options["transformer_options"][RUN]
        function = options.get(_BATCH_FUNCTION)
        at = None if function else run.now
        with run.evaluating(self._rows(rows), unread), run.at(at):
            if function is None:
                calc = comfy.samplers.calc_cond_batch
                return calc(self.inner_model, conds, x[rows], timestep[rows], options)
            return function(
                {
                    "conds": conds,
                    "input": x[rows],
                    "sigma": timestep[rows],
                    "model": self.inner_model,
                    "model_options": options,
                }
            )

    def _rows(self, rows: slice) -> tuple[Row, ...]:
        """What the rows of a slice are.

        A target's source is named only when it is in the same slice.
        """
        batch = self.trajectory.batch
        return tuple(_row(index, batch, rows.start) for index in range(rows.start, rows.stop))


def _functions(options: dict[str, Any]) -> bool:
    """Whether other packs' functions are around guidance."""
    return any(options.get(name) for name in _FUNCTIONS)


def _one_call(options: dict[str, Any]) -> bool:
    """Whether some patch compares conditioned with unconditioned rows of one call."""
    patches = options.get("transformer_options", {}).get("patches", {})
    return any(patches.get(name) for name in _OUTPUT_PATCHES)


def _row(index: int, batch: int, first: int) -> Row:
    """The row of a batch index in a slice that begins at `first`."""
    block, picture = divmod(index, batch)
    branch: Branch = "source" if block == 0 else "target"
    source = picture if block > 0 and first == 0 else None
    return Row(branch, True, source, max(block - 1, 0), picture)
