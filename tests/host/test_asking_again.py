"""Other packs' functions that ask the network again, or keep a state: their effect stays their
own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.samplers
import pytest
import torch

import other_packs
import unets
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.host.text.conditioning import stack_rows
from pivot_edit.inversion import Ddim
from test_controls import (
    NEGATIVE,
    SIZE,
    SOURCE,
    TARGET,
    blend,
    close,
    differ,
    ksampler,
    masa,
    p2p,
    run,
)

CONTROLS: dict[str, Callable[[Any], Any]] = {
    "none": lambda model: model,
    "p2p": p2p,
    "masa": masa,
    "blend": lambda model: blend(p2p(model), threshold=0.0, start=0.0),
}
CORRECTIONS = ("direct", "negative_prompt", "none")


@pytest.fixture(scope="module")
def model() -> Any:
    return unets.build("SD15", shallow=True)


@pytest.fixture(scope="module")
def texts() -> list[Any]:
    texts = [unets.conditioning("SD15", seed) for seed in range(3)]
    return [*texts, unets.conditioning("SD15", NEGATIVE)]


@pytest.fixture(scope="module")
def pivot(model: Any, texts: list[Any]) -> Any:
    with torch.inference_mode():
        return invert_latent(
            model, unets.latent(*SIZE), texts[SOURCE], 3, "reference", Ddim(), False
        )[0]


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt())


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_same_question_again_gets_the_same_answer_bit_for_bit(
    model, texts, pivot, control, correction
) -> None:
    """What PAG, SEG and SAG build on: without their change, asking again changes nothing."""
    seen: list[float] = []

    def again(args: dict[str, Any]) -> torch.Tensor:
        (answer,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
        )
        seen.append(float((answer - args["cond_denoised"]).abs().max()))
        return args["denoised"]

    asking = CONTROLS[control](model).clone()
    asking.set_model_sampler_post_cfg_function(again)
    edited = run(asking, pivot, texts, correction)[0]
    assert seen and max(seen) == 0.0
    close(edited, run(CONTROLS[control](model), pivot, texts, correction)[0])


@pytest.mark.parametrize("name", ["pag", "smoothed"])
def test_a_perturbed_answer_moves_an_edit_as_it_moves_a_plain_one(
    model, texts, pivot, name
) -> None:
    """PAG and SEG: with a controller their effect is of the size that it has without."""
    patch = {"pag": other_packs.guidance, "smoothed": other_packs.smoothed_energy}[name]
    effects = {
        control: rms(run(patch(of(model)), pivot, texts)[0], run(of(model), pivot, texts)[0])
        for control, of in CONTROLS.items()
    }
    assert effects["none"] > 0.0
    assert all(effect < 3.0 * effects["none"] for effect in effects.values()), effects


@pytest.mark.parametrize("control", CONTROLS)
def test_perp_neg_with_the_negative_as_its_empty_text_is_plain_guidance(
    model, texts, pivot, control
) -> None:
    """Its third text is no prompt of ours and is not edited as one."""
    plain = CONTROLS[control](model)
    perp = other_packs.perp_neg(plain, texts[NEGATIVE])
    for correction in ("direct", "none"):
        without = run(plain, pivot, texts, correction)[0]
        close(run(perp, pivot, texts, correction)[0], without)


def test_perp_neg_under_rows_is_plain_guidance_too(model, texts) -> None:
    rows = stack_rows(texts[SOURCE], texts[TARGET])
    controlled = p2p(model)
    perp = other_packs.perp_neg(controlled, texts[NEGATIVE])
    plain = ksampler(controlled, rows, texts[NEGATIVE], 2)
    torch.testing.assert_close(
        ksampler(perp, rows, texts[NEGATIVE], 2), plain, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("control", ["none", "p2p", "masa"])
def test_attention_guidance_between_conditioned_and_unconditioned_rows_acts(
    model, texts, pivot, control, correction
) -> None:
    """Stock NAGuidance compares rows of one call; its effect under a controller is of the size that
    it has without."""
    plain = CONTROLS[control](model)
    effect = rms(
        run(other_packs.normalized(plain), pivot, texts, correction)[0],
        run(plain, pivot, texts, correction)[0],
    )
    alone = rms(
        run(other_packs.normalized(model), pivot, texts, "none")[0],
        run(model, pivot, texts, "none")[0],
    )
    assert 0.3 * alone < effect < 3.0 * alone


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("control", CONTROLS)
def test_a_function_in_place_of_the_batch_is_called(
    model, texts, pivot, control, correction
) -> None:
    """CADS and SkipFirstStepCFG live there: one call a step, with all rows that anybody reads."""
    calls: list[int] = []

    def batch(args: dict[str, Any]) -> Any:
        calls.append(len(args["conds"]))
        return comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    plain = CONTROLS[control](model)
    patched = plain.clone()
    patched.model_options["sampler_calc_cond_batch_function"] = batch
    edited = run(patched, pivot, texts, correction)[0]
    assert calls == [2] * pivot.steps
    torch.testing.assert_close(
        edited, run(plain, pivot, texts, correction)[0], rtol=1e-3, atol=1e-3
    )


def test_a_function_that_skips_guidance_at_first_has_its_effect(model, texts, pivot) -> None:
    def skipping(args: dict[str, Any]) -> Any:
        conds, options = args["conds"], args["model_options"]
        first = float(args["sigma"][0]) > 0.9 * float(
            options["transformer_options"]["sample_sigmas"][0]
        )
        given = (args["input"], args["sigma"], options)
        if not first:
            return comfy.samplers.calc_cond_batch(args["model"], conds, *given)
        (cond,) = comfy.samplers.calc_cond_batch(args["model"], conds[:1], *given)
        return [cond, cond]

    patched = p2p(model).clone()
    patched.model_options["sampler_calc_cond_batch_function"] = skipping
    assert differ(run(patched, pivot, texts)[0], run(p2p(model), pivot, texts)[0])


@pytest.mark.parametrize("control", CONTROLS)
def test_one_dict_of_options_lives_through_a_run(model, texts, pivot, control) -> None:
    """MomentumGuidance keeps what it remembers there; the next run begins without it."""
    counts: list[int] = []

    def remembering(args: dict[str, Any]) -> torch.Tensor:
        options = args["model_options"]
        options["momentum"] = options.get("momentum", 0) + 1
        counts.append(options["momentum"])
        return args["denoised"]

    patched = CONTROLS[control](model).clone()
    patched.set_model_sampler_post_cfg_function(remembering)
    for _ in range(2):
        counts.clear()
        run(patched, pivot, texts)
        assert counts == [1, 2, 3]
    assert "momentum" not in patched.model_options
