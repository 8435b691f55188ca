"""The report of an inversion: its figures are those of the edit, and its words follow from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import graphs
import unets
from bench.inversion import CountedRows
from bench.verdicts import Weak
from pivot_edit.attention.prompt_to_prompt import PromptToPromptOptions
from pivot_edit.core.errors import PivotError
from pivot_edit.core.quality import NoiseFigures, psnr
from pivot_edit.host.run.renoised import MOST_LEVELS, levels_of, restoring_errors
from pivot_edit.host.tasks.controls import controlled
from pivot_edit.host.tasks.editing import edit
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.host.tasks.report import Report, as_encoded, report
from pivot_edit.host.text.prompts import encode, read_pair
from pivot_edit.inversion import Ddim
from pivot_edit.nodes.report import PivotInversionReport
from pivot_edit.toy.loader import load
from tools.client import Client
from toy.evaluate import renders

STEPS = 10


@pytest.fixture(scope="module")
def toy() -> Any:
    with torch.inference_mode():
        return load()


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return renders([graphs.SCENE])


@pytest.fixture(scope="module")
def texts(toy: Any) -> dict[str, Any]:
    with torch.inference_mode():
        return {"source": encode(toy[1], graphs.SCENE.caption), "negative": encode(toy[1], "")}


def inverted(toy: Any, image: torch.Tensor, texts: dict[str, Any], steps: int = STEPS) -> Any:
    latent = {"samples": toy[2].encode(image[..., :3])}
    return invert_latent(toy[0], latent, texts["source"], steps, "reference", Ddim(), False)[0]


@pytest.fixture(scope="module")
def trajectory(toy: Any, image: torch.Tensor, texts: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return inverted(toy, image, texts)


def told(
    toy: Any, image: torch.Tensor, pivot: Any, texts: dict[str, Any], cfg: float, correction: str
) -> Report:
    return report(toy[0], toy[2], image, pivot, **texts, cfg=cfg, correction=correction)


@pytest.mark.parametrize(
    ("correction", "cfg"), [("none", 5.0), ("negative_prompt", 5.0), ("auto", 5.0), ("none", 1.0)]
)
def test_the_figures_are_those_of_the_edit(toy, image, texts, trajectory, correction, cfg) -> None:
    made = told(toy, image, trajectory, texts, cfg, correction)
    edited, back, _, _ = edit(
        toy[0], trajectory, **texts, target=texts["source"], cfg=cfg, correction=correction
    )
    decoded = [toy[2].decode(samples["samples"]) for samples in (back, edited)]
    figures = [psnr(picture, image) for picture in decoded]
    assert (made.quality.psnr, made.quality.unchanged) == pytest.approx(figures, abs=0.01)
    assert made.quality.ceiling == pytest.approx(
        psnr(toy[2].decode(toy[2].encode(image)), image), abs=0.01
    )
    torch.testing.assert_close(made.reconstruction, decoded[0], atol=1e-4, rtol=0.0)
    assert made.quality.noise == NoiseFigures.of(trajectory.noise)
    assert made.plot.shape == (1, 400, 720, 3)
    head = f"reconstruction {figures[0]:.1f} dB, autoencoder alone {made.quality.ceiling:.1f} dB"
    settings = f"{STEPS} steps, ddim, {'direct' if correction == 'auto' else correction}"
    assert head in made.text and settings in made.text


def test_direct_comes_back_as_well_as_the_autoencoder_and_says_what_edits_move(
    toy, image, texts, trajectory
) -> None:
    made = told(toy, image, trajectory, texts, 5.0, "auto")
    assert made.quality.psnr == made.quality.ceiling > 30.0
    assert "comes back as well as the autoencoder allows" in made.text
    assert "At cfg 5 an edit moves the picture even where no word changes" in made.text


def test_plain_ddim_at_a_high_cfg_does_not_come_back_and_says_what_helps(
    toy, image, texts, trajectory
) -> None:
    made = told(toy, image, trajectory, texts, 5.0, "none")
    assert made.quality.gap > 5.0
    assert (
        "does not come back" in made.text
        and "Try correction direct" in made.text
        and "50 steps" in made.text
    )


def test_few_steps_leave_the_picture_in_the_noise(toy, image, texts) -> None:
    made = told(toy, image, inverted(toy, image, texts, 3), texts, 1.0, "none")
    assert [each.name for each in made.findings] == ["picture left"]
    assert made.text.startswith(f"{100 * made.quality.share:.0f} % of the noise is still the")


def test_one_step_is_remarked(toy, image, texts) -> None:
    made = told(toy, image, inverted(toy, image, texts, 1), texts, 1.0, "none")
    assert made.text.startswith("1 step cannot edit") and "(1 step, ddim" in made.text


def test_a_wrong_prompt_is_seen_without_knowing_the_right_one(toy, image, texts) -> None:
    scene = graphs.SCENE.change(
        pattern="dotted", color="white", shape="circle", position="right", background="desert"
    )
    wrong = {**texts, "source": encode(toy[1], scene.caption)}
    made = told(toy, image, inverted(toy, image, wrong), wrong, 2.0, "auto")
    assert [each.name for each in made.findings] == ["wrong prompt"]
    assert made.quality.prompt.ratio > 1.5 and made.quality.psnr == made.quality.ceiling
    empty = {**texts, "source": texts["negative"]}
    made = told(toy, image, inverted(toy, image, empty), empty, 2.0, "auto")
    assert made.quality.prompt is None and "prompt:" not in made.text


def test_a_weak_autoencoder_is_not_called_another_picture(toy, image, texts, trajectory) -> None:
    weak = [toy[0], toy[1], Weak(toy[2])]
    made = told(weak, image, trajectory, texts, 1.0, "auto")
    assert [each.name for each in made.findings] == ["lossy autoencoder", "comes back"]
    assert made.quality.ceiling == made.quality.round_trip < 25.0
    other = told(weak, 1.0 - image, trajectory, texts, 1.0, "auto")
    assert [each.name for each in other.findings] == ["another picture"]


def test_the_prompt_is_judged_in_few_rows_and_on_the_same_noise(toy, texts, trajectory) -> None:
    with CountedRows(toy[0]) as rows:
        errors = restoring_errors(toy[0], trajectory, texts["source"])
    assert errors.shape == (MOST_LEVELS, 1) and rows.forward == MOST_LEVELS
    assert torch.equal(errors, restoring_errors(toy[0], trajectory, texts["source"]))
    assert errors[0] > 3.0 * errors[-1] > 0.0  # the noisiest first
    assert levels_of(trajectory)[0] == float(trajectory.sigmas[-1])
    assert levels_of(trajectory)[-1] == float(trajectory.sigmas[1])


def test_every_step_of_the_replay_is_plotted(toy, image, texts, trajectory, monkeypatch) -> None:
    from pivot_edit.host.tasks import report as module

    seen: dict[str, Any] = {}
    monkeypatch.setattr(module, "line_plot", lambda series, *args, **options: seen.update(series))
    told(toy, image, trajectory, texts, 5.0, "none")
    back, same = seen.pop("reconstruction"), seen.pop("an edit with the same words")
    assert back == pytest.approx(same, rel=1e-3) and len(back) == STEPS and not seen
    assert 0.0 < back[0] < back[1] < back[-1] / 2
    final = edit(toy[0], trajectory, **texts, target=texts["source"], cfg=5.0, correction="none")[
        1
    ]["samples"]
    clean = toy[0].model.process_latent_in(final) - trajectory.latents[0]
    assert back[-1] == pytest.approx(float(clean.square().mean()), rel=1e-4)
    told(toy, image, trajectory, texts, 5.0, "direct")
    assert not any(seen["reconstruction (exact)"]) and all(seen["an edit with the same words"])


@pytest.mark.parametrize(("height", "width"), [(133, 141), (128, 135), (131, 120)])
def test_pictures_of_odd_sizes_are_compared_where_they_were_encoded(
    toy, texts, height, width
) -> None:
    """The crop is VAE Encode's own: encoding it alone gives the same latent."""
    picture = torch.nn.functional.interpolate(
        renders([graphs.SCENE]).movedim(-1, 1), (height, width)
    ).movedim(1, -1)
    pivot = inverted(toy, picture, texts, 2)
    cropped = as_encoded(picture, pivot)
    assert cropped.shape == (1, height // 8 * 8, width // 8 * 8, 3)
    assert torch.equal(toy[0].model.process_latent_in(toy[2].encode(cropped)), pivot.latents[0])
    made = told(toy, picture, pivot, texts, 5.0, "auto")
    assert (
        made.reconstruction.shape == cropped.shape
        and made.quality.psnr == made.quality.ceiling > 20.0
    )


def test_transparency_is_left_out_as_in_encoding(toy, image, texts, trajectory) -> None:
    clear = torch.cat([image, torch.zeros(1, 128, 128, 1)], -1)
    assert torch.equal(as_encoded(clear, trajectory), image)


@pytest.mark.parametrize(
    "shape", [(1, 136, 128, 3), (1, 128, 120, 3), (1, 64, 64, 3), (2, 128, 128, 3)]
)
def test_another_picture_is_refused_by_its_size(toy, texts, trajectory, shape) -> None:
    with pytest.raises(
        PivotError,
        match="the picture that was inverted, 1 of 128x128, but got .* in Inversion Report",
    ):
        told(toy, torch.zeros(shape), trajectory, texts, 5.0, "auto")


def test_another_picture_of_the_same_size_is_all_that_is_said(
    toy, image, texts, trajectory
) -> None:
    made = told(toy, 1.0 - image, trajectory, texts, 5.0, "auto")
    assert [each.name for each in made.findings] == ["another picture"]
    assert made.text.startswith("This is not the picture that was inverted")
    assert f"the inverted picture {made.quality.ceiling:.1f} dB" in made.text


def test_a_controlled_model_is_refused(toy, image, texts, trajectory) -> None:
    words = (read_pair(toy[1], graphs.SCENE.caption, graphs.SCENE.change(color="cyan").caption),)
    model = controlled(toy[0], PromptToPromptOptions(words))[0]
    with pytest.raises(PivotError, match="without attention control, .* in Inversion Report"):
        report(model, toy[2], image, trajectory, **texts, cfg=5.0, correction="auto")


def test_two_pictures_are_reported_together(toy, image, texts) -> None:
    both = torch.cat([image, image.flip(2)])
    made = told(toy, both, inverted(toy, both, texts, 2), texts, 5.0, "auto")
    assert made.reconstruction.shape == both.shape and made.quality.psnr == made.quality.ceiling


def test_on_sdxl(toy: Any) -> None:
    model = unets.build("SDXL", shallow=True)
    texts = {
        name: unets.conditioning("SDXL", seed) for seed, name in enumerate(("source", "negative"))
    }
    pivot = invert_latent(
        model, unets.latent(8, 16), texts["source"], 3, "reference", Ddim(), False
    )[0]
    image = toy[2].decode(model.model.process_latent_out(pivot.latents[0]))
    made = report(model, toy[2], image, pivot, **texts, cfg=5.0, correction="direct")
    assert made.quality.psnr == made.quality.ceiling > 60.0
    assert made.quality.unchanged < 30.0


def test_through_the_node(toy, image, texts, trajectory, folders) -> None:
    made = told(toy, image, trajectory, texts, 5.0, "direct")
    class_ = PivotInversionReport.PREPARE_CLASS_CLONE(None)
    given = class_.execute(toy[0], toy[2], image, trajectory, **texts, cfg=5.0, correction="direct")
    back, plot, psnr_, ceiling, text = given.args
    assert torch.equal(back, made.reconstruction) and torch.equal(plot, made.plot)
    assert (psnr_, ceiling, text) == (made.quality.psnr, made.quality.ceiling, made.text)


@pytest.mark.server
def test_the_page_gets_the_plot_and_the_words(client: Client) -> None:
    graph = graphs.starter(client)
    edit_inputs = graphs.inputs(graph, "PivotEditSampler")
    image = [graphs.node(graph, "LoadImage"), 0]
    toy = graphs.node(graph, "PivotToyModel")
    kept = {
        name: edit_inputs[name] for name in ("inversion", "source", "negative", "cfg", "correction")
    }
    graph["50"] = {
        "class_type": "PivotInversionReport",
        "inputs": {"model": [toy, 0], "vae": [toy, 2], "image": image, **kept},
    }
    result = client.run(graph)
    (plot,) = result.previews["50"]
    assert plot.size == (720, 400)
    assert "reconstruction " in result.texts["50"][0]
