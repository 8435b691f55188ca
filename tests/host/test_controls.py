"""Local blend, MasaCtrl, word maps, several targets and generated pictures on real UNets."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import unets
from pivot_edit.attention import AttentionMaps, LocalBlend, MasaCtrl, PromptToPrompt
from pivot_edit.attention.local_blend import BlendWords
from pivot_edit.attention.masactrl import AutoMask, decoder_layers
from pivot_edit.core.control import Place
from pivot_edit.core.errors import PivotError
from pivot_edit.core.layers import select_layers
from pivot_edit.host.model.layers import block_layers, layers_of, scales_of
from pivot_edit.host.run.patching import add_controller
from pivot_edit.host.run.runs import RUN, controllers_of
from pivot_edit.host.run.sampling import run_edit
from pivot_edit.host.tasks.editing import edit, edit_guider
from pivot_edit.host.tasks.inversion import InversionParts, invert_latent
from pivot_edit.host.tasks.masks import blend_mask, check_blended
from pivot_edit.host.text.conditioning import join_rows, stack_rows
from pivot_edit.inversion import Ddim
from test_editing import Passthrough, pair

SIZE = (16, 24)
CFG = 5.0
SOURCE, TARGET, OTHER, NEGATIVE = range(4)


@pytest.fixture(scope="module", params=["SD15", "SDXL"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return unets.build(kind, shallow=True)


@pytest.fixture(scope="module")
def texts(kind: str) -> list[Any]:
    return [unets.conditioning(kind, seed) for seed in range(4)]


@pytest.fixture(scope="module")
def trajectory(model: Any, texts: list[Any]) -> Any:
    with torch.inference_mode():
        return invert_latent(
            model, unets.latent(*SIZE), texts[SOURCE], 5, "reference", Ddim(), False
        )[0]


def p2p(model: Any, targets: int = 1, **options: Any) -> Any:
    return add_controller(model, PromptToPrompt((pair().align("replace"),) * targets, **options))


def blend(model: Any, targets: int = 1, **options: Any) -> Any:
    words = (BlendWords(77, 77, (("word", (4,)),), (("word", (4,)),)),) * targets
    return add_controller(
        model, LocalBlend(words, scales_of(model), **{"start": 0.2, "threshold": 0.85, **options})
    )


def masa(model: Any, **options: Any) -> Any:
    return add_controller(
        model, MasaCtrl(decoder_layers(layers_of(model)), **{"start": 0.2, **options})
    )


def recorded(model: Any) -> tuple[Any, AttentionMaps]:
    recorder = AttentionMaps(scales_of(model))
    return add_controller(model, recorder), recorder


def run(
    model: Any, trajectory: Any, texts: list[Any], correction: str = "direct", **replaced: Any
) -> Any:
    prompts = {
        "source": texts[SOURCE],
        "target": texts[TARGET],
        "negative": texts[NEGATIVE],
        **replaced,
    }
    edited, back, report, mask = edit(model, trajectory, **prompts, cfg=CFG, correction=correction)
    return edited["samples"], back["samples"], report, mask


def close(a: torch.Tensor, b: torch.Tensor, share: float = 1e-3) -> None:
    """Equal to a small share of the range: kernels round differently for other batch sizes."""
    torch.testing.assert_close(a, b, rtol=share, atol=share * float(b.abs().max()))


def in_cells(mask: torch.Tensor) -> torch.Tensor:
    """The latent's cells that a mask with soft edges was made of: more than half of such a cell is
    white."""
    return torch.nn.functional.avg_pool2d(mask, 8) > 0.5


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) > 1e-2 * float(b.abs().max())


# layers


def test_layers_have_their_own_names() -> None:
    by_kind = {kind: unets.build(kind) for kind in ("SD15", "SDXL")}
    names = {
        kind: list(dict.fromkeys(layer.name for layer in layers_of(m)))
        for kind, m in by_kind.items()
    }
    down = ["down.0.0", "down.0.1", "down.1.0", "down.1.1", "down.2.0", "down.2.1"]
    assert names["SD15"] == [
        *down,
        "mid.0.0",
        *(f"up.{level}.{n}" for level in (1, 2, 3) for n in range(3)),
    ]
    assert names["SDXL"] == [
        *down[2:],
        "mid.0.0",
        *(f"up.{level}.{n}" for level in (0, 1) for n in range(3)),
    ]
    assert len(layers_of(by_kind["SDXL"])) == 70
    chosen = {kind: decoder_layers(layers_of(m)) for kind, m in by_kind.items()}
    assert (
        chosen["SD15"] == select_layers("up.2-3", layers_of(by_kind["SD15"]))
        and len(chosen["SD15"]) == 6
    )
    assert (
        chosen["SDXL"] == select_layers("up.1", layers_of(by_kind["SDXL"]))
        and len(chosen["SDXL"]) == 6
    )
    keys = block_layers(by_kind["SD15"].model.diffusion_model)
    assert [key for key, layer in keys.items() if layer in chosen["SD15"]] == [
        ("output", n, 0) for n in range(6, 12)
    ]


def test_scales_are_those_of_the_sites(model: Any, texts: list[Any], trajectory: Any) -> None:
    """A site's tokens are the latent's over its layer's scale, rounded up."""
    seen = {}

    class Look(AttentionMaps):
        def at(self, kind: str, layer: Any, latent: Any) -> bool:
            return True

        def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
            seen[call.site.layer] = (call.site.height, call.site.width)
            return attend(call)

    run(add_controller(model, Look(scales_of(model))), trajectory, texts)
    assert set(seen) == set(layers_of(model))
    for layer, size in seen.items():
        assert size == tuple(-(-side // layer.scale) for side in SIZE)


@pytest.mark.parametrize("control", [p2p, masa, blend, lambda model: recorded(model)[0]])
def test_sites_where_nobody_works_are_left_to_the_host(
    model, trajectory, texts, control, monkeypatch
) -> None:
    """Our dispatcher stands exactly where a controller's `at` says so."""
    from pivot_edit.host.run import patching

    placed = set()
    made = patching._Dispatcher.__init__

    def note(self: Any, kind: str, layer: Any, *args: Any) -> None:
        placed.add((kind, layer))
        made(self, kind, layer, *args)

    monkeypatch.setattr(patching._Dispatcher, "__init__", note)
    controlled = control(model)
    run(controlled, trajectory, texts)
    (one,) = controlled.model_options["transformer_options"]["pivot_controllers"]
    kinds = [kind for kind in ("self", "cross") if one.wants(kind, Place(1, 5, 5.0))]
    there = {
        (kind, layer) for kind in kinds for layer in layers_of(model) if one.at(kind, layer, SIZE)
    }
    assert placed == there
    assert control is p2p or len(there) <= 50


# local blend


@pytest.mark.parametrize("correction", ["none", "direct", "negative_prompt"])
def test_outside_the_mask_the_edit_is_the_source_bit_for_bit(
    model, trajectory, texts, correction
) -> None:
    edited, back, _, mask = run(blend(p2p(model)), trajectory, texts, correction)
    inside = in_cells(mask)[0]
    assert inside.any() and not inside.all()
    assert torch.equal(edited[:, :, ~inside], back[:, :, ~inside])
    assert differ(edited[:, :, inside], back[:, :, inside])


def test_the_blend_holds_after_every_step_from_its_first_on(model, trajectory, texts) -> None:
    steps, outside = [], torch.ones(1, *SIZE)
    outside[:, 4:12, 6:18] = 0.0

    class Watch(LocalBlend):
        def after_step(self, x: Any, rows: Any, place: Any, state: Any) -> Any:
            after = super().after_step(x, rows, place, state)
            keep = outside[0] > 0
            steps.append((place.step, torch.equal(after[1][:, keep], after[0][:, keep])))
            return after

    run(add_controller(model, Watch(start=0.4, mask=1.0 - outside)), trajectory, texts)
    assert steps == [(0, False), (1, False), (2, True), (3, True), (4, True)]


@pytest.mark.parametrize("correction", ["none", "direct"])
def test_masks_of_ones_and_zeros_are_no_blend_and_no_edit(
    model, trajectory, texts, correction
) -> None:
    """Oracle 18."""
    plain = run(p2p(model), trajectory, texts, correction)
    ones, zeros = (
        run(
            add_controller(p2p(model), LocalBlend(mask=fill(1, 128, 192))),
            trajectory,
            texts,
            correction,
        )
        for fill in (torch.ones, torch.zeros)
    )
    assert torch.equal(ones[0], plain[0]) and torch.equal(ones[1], plain[1])
    assert torch.equal(zeros[0], zeros[1])
    assert zeros[3].max() == 0.0 and ones[3].min() == 1.0


def test_the_mask_is_given_for_the_latent_it_made_and_no_other(model, trajectory, texts) -> None:
    blended = blend(p2p(model))
    edited, _, _, mask = run(blended, trajectory, texts)
    assert mask.shape == (1, 8 * SIZE[0], 8 * SIZE[1])
    assert ((mask > 0.0) & (mask < 1.0)).any(), "hard edges"
    (control,) = (
        one for one in controllers_of(blended.model_options) if isinstance(one, LocalBlend)
    )
    assert torch.equal(in_cells(mask)[0], control.results.get(edited[0]) > 0.5)
    shown, said = check_blended(blended, edited)
    assert torch.equal(shown, mask) and "of the picture" in said
    with pytest.raises(PivotError, match="samples of another run"):
        check_blended(blended, edited + 1)
    with pytest.raises(PivotError, match="a model without Local Blend"):
        check_blended(model, edited)
    assert blend_mask(model, edited).min() == 1.0


# masactrl


@pytest.mark.parametrize("correction", ["none", "negative_prompt", "direct"])
def test_masactrl_changes_the_target_and_not_the_source(
    model, trajectory, texts, correction
) -> None:
    plain, controlled = (run(m, trajectory, texts, correction) for m in (model, masa(model)))
    close(controlled[1], plain[1], 0.0 if correction == "direct" else 1e-3)
    assert differ(controlled[0], plain[0])


def test_masactrl_leaves_the_source_row_alone_bit_for_bit(model, trajectory, texts) -> None:
    """Oracle 29."""
    plain, controlled = (run(m, trajectory, texts, "none") for m in (model, masa(model)))
    assert torch.equal(controlled[1], plain[1])


@pytest.mark.parametrize("options", [{"start": 1.0}, {"end": 0.0}])
def test_masactrl_outside_its_window_is_plain_sampling_bit_for_bit(
    model, trajectory, texts, options
) -> None:
    plain, closed = (run(m, trajectory, texts) for m in (model, masa(model, **options)))
    assert torch.equal(plain[0], closed[0]) and "2.00 UNet rows" in closed[2]


@pytest.mark.parametrize("union", [False, True])
def test_masactrl_with_the_source_prompt_gives_the_source(model, trajectory, texts, union) -> None:
    """Oracle 30, with masks that are one everywhere too."""
    same = {"target": texts[SOURCE]}
    for mask in (None, torch.ones(1, *SIZE)):
        controlled = masa(model, union=union, source_mask=mask, target_mask=mask)
        edited, back, *_ = run(controlled, trajectory, texts, "none", **same)
        close(edited, back, 1e-3 if union else 0.0)


def test_masactrls_masks_and_union_each_do_something(model, trajectory, texts) -> None:
    left, right = torch.zeros(1, *SIZE), torch.zeros(1, *SIZE)
    left[..., : SIZE[1] // 2], right[..., SIZE[1] // 2 :] = 1.0, 1.0
    scales = scales_of(model)
    auto = AutoMask({("source", 0): (77, ((4,),)), ("target", 0): (77, ((4,),))}, scales, 0.5)
    made = [
        run(masa(model, **options), trajectory, texts)[0]
        for options in (
            {},
            {"union": True},
            {"source_mask": left, "target_mask": right},
            {"auto": auto},
        )
    ]
    assert all(torch.isfinite(one).all() for one in made)
    assert all(differ(a, b) for a, b in itertools.combinations(made, 2))
    ones = torch.ones(1, *SIZE)
    unmasked = run(masa(model, source_mask=ones, target_mask=ones), trajectory, texts)[0]
    assert torch.equal(unmasked, made[0])
    empty = run(masa(model, source_mask=ones * 0, target_mask=right), trajectory, texts)[0]
    assert torch.equal(empty, made[0])


# rows


@pytest.mark.parametrize("correction", ["none", "negative_prompt", "direct"])
@pytest.mark.parametrize("control", [p2p, masa, blend])
def test_leaving_rows_out_gives_the_same_edit(
    model, trajectory, texts, correction, control
) -> None:
    """To float tolerance (1e-3 of the range): the rows are the same, the batches they are computed
    in are not."""
    made = []
    for economy in (True, False):
        guider = edit_guider(
            control(model),
            trajectory,
            texts[SOURCE],
            texts[TARGET],
            texts[NEGATIVE],
            CFG,
            correction,
        )
        guider.economy = economy
        made.append(run_edit(guider))
    assert made[1].rows_per_step == 4.0 and made[0].rows_per_step <= 4.0
    close(made[0].edited, made[1].edited)


def test_masactrl_pays_for_the_unconditioned_source_only_while_it_reads_it(
    model, trajectory, texts
) -> None:
    """4 rows in 3 of 5 steps, else 2; the trajectory holds the source."""
    report = run(masa(model, start=0.2, end=0.8), trajectory, texts)[2]
    assert f"{(3 * 4 + 2 * 2) / 5:.2f} UNet rows" in report


def test_several_targets_share_one_source_row(model, trajectory, texts) -> None:
    both = join_rows(texts[TARGET], texts[OTHER], "")
    controlled = blend(p2p(model, 2), 2)
    edited, back, report, mask = run(controlled, trajectory, texts, target=both)
    assert edited.shape[0] == mask.shape[0] == 2 and back.shape[0] == 1
    assert "5.00 UNet rows" in report
    for index, name in enumerate((TARGET, OTHER)):
        alone = run(blend(p2p(model)), trajectory, texts, target=texts[name])
        outside = torch.nn.functional.interpolate(alone[3][:, None], SIZE)[0, 0] == 0
        assert torch.equal(edited[index][:, outside], back[0][:, outside])
        close(edited[index : index + 1], alone[0], 5e-3)
    assert differ(edited[:1], edited[1:])


def test_words_for_too_few_targets_are_refused(model, trajectory, texts) -> None:
    both = join_rows(texts[TARGET], texts[OTHER], "")
    with pytest.raises(PivotError, match="words for 2 target prompts, but got 1"):
        run(p2p(model), trajectory, texts, target=both)


def test_two_pictures_and_two_targets(model, texts) -> None:
    batch = unets.latent(8, 8, batch=2)
    both = join_rows(texts[TARGET], texts[OTHER], "")
    pivot = invert_latent(model, batch, texts[SOURCE], 3, "reference", Ddim(), False)[0]
    single = invert_latent(
        model, {"samples": batch["samples"][1:]}, texts[SOURCE], 3, "reference", Ddim(), False
    )[0]
    edited = run(p2p(model, 2), pivot, texts, target=both)[0]
    alone = run(p2p(model, 2), single, texts, target=both)[0]
    assert len(edited) == 4 and len(alone) == 2
    close(edited[[1, 3]], alone, 2e-2)


# chains


def test_controllers_chain_in_any_order(model, trajectory, texts) -> None:
    made = []
    for order in itertools.permutations((p2p, masa, blend)):
        controlled, recorder = recorded(model)
        for control in order:
            controlled = control(controlled)
        edited, _, _, mask = run(controlled, trajectory, texts)
        made.append((edited, mask, recorder.results.get(edited[0])))
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("correction", ["none", "negative_prompt"])
def test_recording_changes_nothing(model, trajectory, texts, correction) -> None:
    plain = run(model, trajectory, texts, correction)
    watched, recorder = recorded(model)
    edited, back, *_ = run(watched, trajectory, texts, correction)
    assert torch.equal(plain[0], edited) and torch.equal(plain[1], back)
    for sample in (edited[0], back[0]):
        maps = recorder.results.get(sample)
        assert maps.shape[-1] == 77
        shares = maps.sum(-1)
        torch.testing.assert_close(
            shares, torch.full_like(shares, float(shares[0, 0])), rtol=1e-4, atol=1e-4
        )
    assert recorder.results.get(edited[0] + 1) is None


def test_nothing_of_a_run_is_left_in_the_model(model, trajectory, texts) -> None:
    controlled = blend(masa(p2p(model)))
    before = run(controlled, trajectory, texts)[0]
    assert RUN not in controlled.model_options["transformer_options"]
    clone = controlled.clone()
    assert torch.equal(run(clone, trajectory, texts)[0], before)


# generated pictures


def ksampler(
    model: Any, positive: Any, negative: Any, batch: int, sampler: str = "euler", steps: int = 4
) -> Any:
    import nodes

    latent = {"samples": torch.zeros(batch, 4, *SIZE)}
    return nodes.common_ksampler(
        model, 3, steps, CFG, sampler, "normal", positive, negative, latent
    )[0]["samples"]


def test_the_stock_sampler_edits_between_two_prompts(model, texts) -> None:
    rows = stack_rows(texts[SOURCE], texts[TARGET])
    alone = ksampler(model, texts[SOURCE], texts[NEGATIVE], 1)
    made = {
        control: ksampler(control(model), rows, texts[NEGATIVE], 2)
        for control in (p2p, masa, blend)
    }
    for samples in made.values():
        close(samples[:1], alone)
        assert differ(samples[1:], samples[:1])
    for a, b in itertools.combinations(made.values(), 2):
        assert differ(a[1:], b[1:])


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "uni_pc"])
def test_the_same_prompt_twice_gives_the_same_picture_twice(model, texts, sampler) -> None:
    """The targets start from the source's noise although the host makes other noise for every
    row."""
    rows = stack_rows(texts[SOURCE], texts[SOURCE])
    samples = ksampler(masa(p2p(model)), rows, texts[NEGATIVE], 2, sampler)
    close(samples[:1], samples[1:], 1e-5)


def test_a_stock_sampler_blends_after_every_step(model, texts) -> None:
    rows = stack_rows(texts[SOURCE], texts[TARGET])
    controlled = blend(p2p(model))
    samples = ksampler(controlled, rows, texts[NEGATIVE], 2)
    mask = check_blended(controlled, samples)[0]
    assert mask[0].min() == 1.0
    outside = ~in_cells(mask)[1]
    assert outside.any() and not outside.all()
    assert torch.equal(samples[1][:, outside], samples[0][:, outside])
    assert differ(samples[1][:, ~outside], samples[0][:, ~outside])


def test_groups_of_one_source_and_several_targets(model, texts) -> None:
    rows = stack_rows(texts[SOURCE], join_rows(texts[TARGET], texts[OTHER], ""))
    samples = ksampler(p2p(model, 2), rows, texts[NEGATIVE], 6)
    one = ksampler(p2p(model, 2), rows, texts[NEGATIVE], 3)
    close(samples[:3], one)
    assert differ(samples[3:], samples[:3])


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_2m_sde", "ddpm", "lcm"])
def test_samplers_with_noise_of_their_own_are_refused_by_name(model, texts, sampler) -> None:
    rows = stack_rows(texts[SOURCE], texts[TARGET])
    with pytest.raises(PivotError, match=f"deterministic sampler.*but got {sampler}"):
        ksampler(p2p(model), rows, texts[NEGATIVE], 2, sampler)


def test_a_batch_that_does_not_fit_the_prompts_is_refused(model, texts) -> None:
    rows = stack_rows(texts[SOURCE], texts[TARGET])
    with pytest.raises(PivotError, match="latent batch of 2.*batch of 1.*batch_size"):
        ksampler(p2p(model), rows, texts[NEGATIVE], 1)


def test_a_recorder_runs_with_any_sampling(model, texts) -> None:
    watched, recorder = recorded(model)
    plain = ksampler(model, texts[SOURCE], texts[NEGATIVE], 2, "euler_ancestral")
    samples = ksampler(watched, texts[SOURCE], texts[NEGATIVE], 2, "euler_ancestral")
    assert torch.equal(plain, samples)
    first, second = (recorder.results.get(sample) for sample in samples)
    assert differ(first, second)


# what other people's graphs do


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2m", "euler_cfg_pp", "lms"])
def test_stock_samplers_see_blended_latents_at_every_evaluation(model, texts, sampler) -> None:
    """With a mask of zeros, from the second step on, target and source are one."""
    from comfy.patcher_extension import WrappersMP

    rows, seen = stack_rows(texts[SOURCE], texts[TARGET]), []

    def look(executor: Any, x: Any, timestep: Any, *args: Any, **kw: Any) -> Any:
        seen.append((float(timestep[0]), torch.equal(x[0], x[1])))
        return executor(x, timestep, *args, **kw)

    zeros = add_controller(p2p(model), LocalBlend(mask=torch.zeros(1, 8, 8), start=0.0))
    zeros.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "look", look)
    samples = ksampler(zeros, rows, texts[NEGATIVE], 2, sampler)
    assert torch.equal(samples[0], samples[1])
    last = max(sigma for sigma, _ in seen)
    trials = [equal for sigma, equal in seen if sigma < 0.8 * last]
    assert trials and all(trials)


def test_what_cannot_be_blended_is_refused_by_name(model, texts) -> None:
    import nodes

    rows, blended = stack_rows(texts[SOURCE], texts[TARGET]), blend(p2p(model))
    with pytest.raises(PivotError, match="can be blended.*but got unipc"):
        ksampler(blended, rows, texts[NEGATIVE], 2, "uni_pc")
    latent = {"samples": torch.zeros(2, 4, *SIZE), "noise_mask": torch.ones(1, 1, 8, 8)}
    with pytest.raises(PivotError, match="no noise mask beside Local Blend"):
        nodes.common_ksampler(blended, 3, 2, CFG, "euler", "normal", rows, texts[NEGATIVE], latent)


def test_an_edit_takes_no_noise_mask(model, trajectory, texts) -> None:
    guider = edit_guider(
        model, trajectory, texts[SOURCE], texts[TARGET], texts[NEGATIVE], CFG, "direct"
    )
    parts = InversionParts.of(model, trajectory, "direct")
    x = parts.latent["samples"]
    with pytest.raises(PivotError, match="Connect the mask to Local Blend"):
        guider.sample(
            x, x, parts.sampler, parts.sigmas, denoise_mask=torch.ones(1, 1, *SIZE), seed=0
        )


def test_guiders_that_number_their_texts_otherwise_are_understood(model, texts) -> None:
    """DualCFGGuider runs the negative as number 0; recorded and edited are the positive's rows all
    the same."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    def sample(guider: Any, batch: int) -> torch.Tensor:
        """One step, so that every guider is asked about the same latent."""
        noise = torch.randn(batch, 4, *SIZE, generator=torch.Generator().manual_seed(2))
        sampler, sigmas = comfy.samplers.sampler_object("euler"), torch.tensor([8.0, 0.0])
        return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=0)

    def dual(controlled: Any, positive: Any, batch: int = 1) -> torch.Tensor:
        guider = Guider_DualCFG(controlled)
        guider.set_conds(positive, texts[OTHER], texts[NEGATIVE])
        guider.set_cfg(CFG, 1.5)
        return sample(guider, batch)

    watched, recorder = recorded(model)
    usual = comfy.samplers.CFGGuider(watched)
    usual.set_conds(texts[SOURCE], texts[NEGATIVE])
    usual.set_cfg(CFG)
    expected = recorder.results.get(sample(usual, 1)[0])
    close(recorder.results.get(dual(watched, texts[SOURCE])[0]), expected)
    assert differ(recorder.results.get(dual(watched, texts[TARGET])[0]), expected)
    same = dual(p2p(model), stack_rows(texts[SOURCE], texts[SOURCE]), 2)
    close(same[:1], same[1:], 1e-5)
    rows = stack_rows(texts[SOURCE], texts[TARGET])
    assert differ(dual(p2p(model), rows, 2)[1:], dual(model, texts[TARGET]))


def test_a_recorder_leaves_other_packs_batches_alone(model, texts) -> None:
    """A conditioning of several rows, one for each frame, keeps its own noise and any sampler."""
    frames = [[torch.cat([texts[SOURCE][0][0], texts[TARGET][0][0]]), dict(texts[SOURCE][0][1])]]
    watched, recorder = recorded(model)
    samples = ksampler(watched, frames, texts[NEGATIVE], 2, "euler_ancestral")
    assert torch.equal(samples, ksampler(model, frames, texts[NEGATIVE], 2, "euler_ancestral"))
    assert all(recorder.results.get(sample) is not None for sample in samples)


def test_areas_ranges_and_long_negatives_record_and_blend(model, kind, texts, trajectory) -> None:
    """Crops are no picture, a text's repeats are one text, and chunks may come and go."""
    import node_helpers

    area = node_helpers.conditioning_set_values(
        texts[OTHER], {"area": (8, 8, 0, 0), "strength": 1.0}
    )
    early = node_helpers.conditioning_set_values(
        texts[TARGET], {"start_percent": 0.0, "end_percent": 0.5}
    )
    long = unets.conditioning(kind, NEGATIVE, tokens=154)
    for positive in ([*texts[SOURCE], *area, *early], [*area, *early, *texts[SOURCE]]):
        watched, recorder = recorded(model)
        samples = ksampler(watched, positive, long, 1)
        assert recorder.results.get(samples[0]).shape[:2] == recorder_size(model)
    both, kept = recorded(masa(p2p(model)))
    edited = run(both, trajectory, [*texts[:NEGATIVE], long])[0]
    assert kept.results.get(edited[0]).shape[-1] == 77


def recorder_size(model: Any) -> tuple[int, int]:
    """The size of recorded maps of these latents."""
    from pivot_edit.core.layers import map_scale

    scale = map_scale(SIZE, scales_of(model))
    return -(-SIZE[0] // scale), -(-SIZE[1] // scale)


def test_automatic_masks_are_of_the_current_step_unless_unconditioned_rows_run_first(
    model, trajectory, texts, monkeypatch
) -> None:
    """Oracle 9, and whose maps they are is in the report.

    The guider asks conditioned rows first where it asks apart, and then gets the masks of one call.
    Where the host itself splits a call, unconditioned rows come first.
    """
    auto = AutoMask(
        {("source", 0): (77, ((4,),)), ("target", 0): (77, ((4,),))}, scales_of(model), 0.5
    )
    controlled = masa(model, auto=auto)
    together, _, report, _ = run(controlled, trajectory, texts, "none")
    assert differ(together, run(masa(model), trajectory, texts, "none")[0])
    current = "MasaCtrl Mutual Self-Attn: The words' masks are of the maps of the current step."
    assert report.splitlines()[1] == current
    watched = controlled.clone()
    watched.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    apart, _, report, _ = run(watched, trajectory, texts, "none")
    close(apart, together)
    assert report.splitlines()[1] == current
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e18)
    apart, _, report, _ = run(controlled, trajectory, texts, "none")
    assert differ(apart, together) and differ(apart, run(masa(model), trajectory, texts, "none")[0])
    assert "the step before in" in report.splitlines()[1]


def test_what_another_attention_keeps_is_not_freed(model, trajectory, texts) -> None:
    kept = []

    def override(function: Any, q: Any, k: Any, v: Any, heads: int, *args: Any, **kw: Any) -> Any:
        kept.append((k, v))
        return function(q, k, v, heads, *args, **kw)

    theirs = add_controller(model, Passthrough())
    theirs.model_options["transformer_options"]["optimized_attention_override"] = override
    run(theirs, trajectory, texts)
    assert kept and all(k.numel() and v.numel() for k, v in kept)


def test_rows_come_in_one_order_everywhere(model, trajectory, texts) -> None:
    """What SamplerCustomAdvanced gives as denoised_output has the rows of its output."""
    guider = edit_guider(
        p2p(model), trajectory, texts[SOURCE], texts[TARGET], texts[NEGATIVE], CFG, "direct"
    )
    parts, last = InversionParts.of(model, trajectory, "direct"), {}

    def callback(step: int, denoised: torch.Tensor, x: torch.Tensor, steps: int) -> None:
        last.update(x=x, denoised=denoised)

    samples = guider.sample(
        parts.noise.generate_noise(parts.latent),
        parts.latent["samples"],
        parts.sampler,
        parts.sigmas,
        callback=callback,
        seed=0,
    )
    torch.testing.assert_close(model.model.process_latent_out(last["x"]), samples)
    assert last["denoised"].shape == samples.shape


def test_an_inversion_takes_no_controlled_model(model, texts) -> None:
    with pytest.raises(
        PivotError, match="from before the control nodes.* DDIM Inversion|DDIM Inversion.*before"
    ):
        invert_latent(p2p(model), unets.latent(*SIZE), texts[SOURCE], 2, "reference", Ddim(), False)
    watched, recorder = recorded(model)
    invert_latent(watched, unets.latent(*SIZE), texts[SOURCE], 2, "reference", Ddim(), False)


def test_guidance_functions_of_other_packs_run_before_guidance(model, trajectory, texts) -> None:
    asked = []

    def before(args: dict[str, Any]) -> list[torch.Tensor]:
        asked.append([len(out) for out in args["conds_out"]])
        return [args["conds_out"][0] * 0.9, args["conds_out"][1]]

    theirs = p2p(model)
    theirs.set_model_sampler_pre_cfg_function(before)
    assert differ(run(theirs, trajectory, texts)[0], run(p2p(model), trajectory, texts)[0])
    # the source is shown while the window is open, and a function may ask about it again
    assert asked == [[2, 2]] * 4 + [[1, 1]]
