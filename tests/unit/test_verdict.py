"""What is said of an inversion: a text for every case, the worst first, and never two that
contradict."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from reference import noise, sd_sigmas

from pivot_edit.core.path import VP
from pivot_edit.core.quality import NoiseFigures, PromptFigures, Quality
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.core.verdict import AS_GOOD, LADDERS, LOUD, MOSTLY, verdict
from pivot_edit.inversion import Direct, NegativePrompt, NullText, Uncorrected

FITS, WRONG = PromptFigures((0.6, 0.7, 0.65)), PromptFigures((3.0, 3.4, 3.2))
GOOD = Quality(33.9, 34.0, 33.5, 34.0, NoiseFigures(-0.1, 0.83, 0.04, 0.11), 0.2, 0.08, FITS)
COMES_BACK = (
    "The picture comes back as well as the autoencoder allows, and its noise can be edited."
)


def trajectory(steps: int = 50, method: str = "ddim", guidance: float = 1.0) -> Trajectory:
    latents = noise(0, steps + 1, 1, 4, 2, 2).float()
    return Trajectory(
        VP.levels(sd_sigmas(), steps), latents, method, "a model", "a text", guidance=guidance
    )


def said(
    pivot: Trajectory | None = None, correction: Any = None, cfg: float = 2.0, **figures: Any
) -> list[str]:
    """The findings' texts of good figures but those named."""
    quality = dataclasses.replace(GOOD, **figures)
    found = verdict(quality, pivot or trajectory(), correction or Direct(), cfg)
    return [each.text for each in found]


def test_a_good_inversion_is_called_good_and_nothing_else() -> None:
    assert said() == [COMES_BACK]


@pytest.mark.parametrize("across", [0.26, 0.47])
def test_neighbours_of_good_noise_correlate_on_some_models_and_are_no_fault(across: float) -> None:
    assert said(noise=NoiseFigures(0.0, 0.8, across, across), share=0.4) == [COMES_BACK]


def test_a_wrong_prompt_is_said_and_no_praise_beside_it() -> None:
    assert said(prompt=WRONG) == [
        "The source prompt does not describe this picture: the model restores it from fresh noise "
        "with 3.20 times the error it has under the negative prompt. What the picture does not "
        "show cannot be edited in it. Invert with a prompt that says what is there."
    ]


@pytest.mark.parametrize(
    "prompt", [None, FITS, PromptFigures((3.0, 0.4, 2.0)), PromptFigures((5.0,))]
)
def test_a_prompt_is_not_accused_without_evidence(prompt: PromptFigures | None) -> None:
    assert said(prompt=prompt) == [COMES_BACK]


def test_another_picture_is_all_that_is_said() -> None:
    figures = {"ceiling": 15.6, "psnr": 15.6, "unchanged": 10.0, "share": 0.9, "prompt": WRONG}
    assert said(**figures) == [
        "This is not the picture that was inverted, or not its VAE: they differ at 15.6 dB, where "
        "this VAE brings this picture back at 34.0 dB. Connect the picture and the VAE that went "
        "into VAE Encode; nothing else can be said before."
    ]


def test_a_weak_autoencoder_is_not_taken_for_another_picture() -> None:
    figures = {"psnr": 16.0, "ceiling": 16.0, "unchanged": 15.9, "round_trip": 16.0}
    assert said(**figures) == [
        "The autoencoder itself loses detail (16.0 dB), and no edit can be closer to the picture. "
        "Try a larger picture or another VAE.",
        COMES_BACK,
    ]


@pytest.mark.parametrize(("further", "another"), [(2.9, False), (3.1, True)])
def test_a_picture_is_another_where_it_misses_twice_what_the_autoencoder_does(
    further: float, another: bool
) -> None:
    (first, *_) = said(psnr=16.0, ceiling=16.0, unchanged=16.0, round_trip=16.0 + further)
    assert first.startswith("This is not the picture") == another


def test_one_step_cannot_edit() -> None:
    assert said(trajectory(1), head_start=24.0, share=1.0) == [
        "1 step cannot edit: edits begin at noise level 0.04, where the picture is stronger than "
        "its noise. Invert with 10 steps or more."
    ]


def test_a_picture_left_in_the_noise_is_said_with_what_to_do() -> None:
    assert said(trajectory(4), share=0.91) == [
        "91 % of the noise is still the picture, so that edits are stiff or break it. Invert with "
        "50 steps."
    ]
    assert said(share=MOSTLY) == [COMES_BACK]
    (line,) = said(trajectory(10, guidance=7.5), share=0.7, prompt=None)
    assert line.endswith("with cfg 1; 50 steps; a source prompt that describes the picture.")
    (line,) = said(share=0.7)
    assert line.endswith("Invert with more steps.")


def test_noise_louder_than_white_noise_is_said() -> None:
    (line,) = said(trajectory(50, guidance=7.5), noise=NoiseFigures(0.0, 1.35, 0.5, 0.4))
    assert line == (
        "The noise is louder than any that the model knows (deviation 1.35, white noise 1), so "
        "that edits break the picture. Invert with cfg 1."
    )
    assert said(noise=NoiseFigures(0.0, 0.99 * LOUD**0.5, 0.0, 0.0)) == [COMES_BACK]
    (line,) = said(noise=NoiseFigures(0.8, 1.0, 0.0, 0.0))
    assert line.startswith("The noise is louder")


@pytest.mark.parametrize(
    ("gap", "how"),
    [
        (0.0, "as well as the autoencoder allows"),
        (-1.0, "as well as the autoencoder allows"),
        (AS_GOOD, "as well as the autoencoder allows"),
        (AS_GOOD + 0.1, "nearly comes back, 0.6 dB below"),
        (3.0, "nearly comes back, 3.0 dB below"),
        (3.2, "does not come back, 3.2 dB below"),
    ],
)
def test_a_return_is_judged_against_the_autoencoder(gap: float, how: str) -> None:
    (line,) = said(correction=Uncorrected(), psnr=34.0 - gap, unchanged=34.0 - gap)
    assert how in line


def bad(pivot: Trajectory, correction: object, cfg: float) -> str:
    (line,) = said(pivot, correction, cfg, psnr=20.0, unchanged=20.0)
    return line.partition("allows.")[2]


def test_what_to_try_is_what_was_not_done_yet() -> None:
    direct, steps = " Try correction direct, which is exact at any cfg", "50 steps"
    uni, nearer = "the inversion method uni", "a cfg nearer to the inversion's own"
    assert bad(trajectory(10), Uncorrected(), 5.0) == f"{direct}; {nearer}, 1; {uni}; {steps}."
    assert bad(trajectory(10, guidance=3.0), Uncorrected(), 5.0).startswith(
        f"{direct}; {nearer}, 3; "
    )
    assert bad(trajectory(), Uncorrected(), 1.0) == f"{direct}; {uni}."
    assert bad(trajectory(50, "fixed_point"), Uncorrected(), 1.0) == f"{direct}."
    assert bad(trajectory(50, "fixed_point"), Direct(), 1.0) == ""


def test_cfg_is_no_advice_where_guidance_cancels_on_the_source() -> None:
    assert "cfg nearer" not in bad(trajectory(), NegativePrompt(), 5.0)
    assert "cfg nearer" in bad(trajectory(), NegativePrompt(interpolation=0.5), 5.0)
    assert "cfg nearer" in bad(trajectory(), NullText(), 5.0)


def test_an_edit_that_moves_the_rest_is_said_before_the_praise() -> None:
    assert said(cfg=7.5, unchanged=22.5) == [
        "At cfg 7.5 an edit moves the picture even where no word changes (22.5 dB). Hold the rest "
        "with P2P Attention Controller or Local Blend, or lower cfg.",
        COMES_BACK,
    ]


def test_no_two_findings_answer_one_question_and_the_worst_is_first() -> None:
    """Over every mixture of faults."""
    faults: tuple[dict[str, Any], ...] = (
        {"round_trip": 40.0},
        {"psnr": 20.0},
        {"psnr": 32.0},
        {"unchanged": 10.0},
        {"noise": NoiseFigures(0.0, 1.4, 0.0, 0.0)},
        {"share": 0.9},
        {"head_start": 2.0},
        {"prompt": WRONG},
        {"ceiling": 16.0},
    )
    rungs = {rung.name: (key, rung) for key, ladder in LADDERS.items() for rung in ladder}
    assert len(rungs) == sum(len(ladder) for ladder in LADDERS.values())
    for count in range(len(faults) + 1):
        for some in itertools.combinations(faults, count):
            quality = dataclasses.replace(GOOD, **{k: v for each in some for k, v in each.items()})
            names = [each.name for each in verdict(quality, trajectory(), Direct(), 2.0)]
            questions, ranks = zip(*((rungs[n][0], rungs[n][1].rank) for n in names), strict=True)
            assert len(set(questions)) == len(names) and list(ranks) == sorted(ranks)
            if "comes back" in names:
                assert not set(names) & {"wrong prompt", "picture left", "loud noise", "no room"}
            if "another picture" in names:
                assert names == ["another picture"]
