"""Null-text optimisation through real UNets: gradients, clean weights, and embeddings that do what
they say."""

from __future__ import annotations

import dataclasses
import gc
import re
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import unets
from pivot_edit.core.errors import PivotError
from pivot_edit.host.model import gradients
from pivot_edit.host.tasks.editing import edit
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.host.tasks.null_text import null_text, run_optimization
from pivot_edit.inversion import Ddim
from pivot_edit.inversion.null_text import NULLS, PRESETS, Settings

KINDS = tuple(unets.SHAPES)
STEPS, CFG = 3, 7.5
BLOCKS = gradients.unet_blocks()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    with torch.inference_mode():
        return unets.build(kind, shallow=True)


@pytest.fixture(scope="module")
def texts(kind: str) -> dict[str, Any]:
    with torch.inference_mode():
        return {
            name: unets.conditioning(kind, seed) for seed, name in enumerate(("source", "negative"))
        }


@pytest.fixture(scope="module")
def trajectory(model: Any, texts: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return inverted(model, texts)


def inverted(model: Any, texts: dict[str, Any], batch: int = 1) -> Any:
    return invert_latent(
        model, unets.latent(8, 12, batch), texts["source"], STEPS, "reference", Ddim(), False
    )[0]


def snapshot(model: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """All weights, and what gradients change of modules."""
    unet = model.model.diffusion_model
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    seen = [
        (
            "forward" in vars(module),
            [p.requires_grad and not p.is_inference() for p in module.parameters(recurse=False)],
            *(len(getattr(module, name, ())) for name in ("weight_function", "bias_function")),
        )
        for module in unet.modules()
    ]
    return weights, seen


def assert_as_before(model: Any, before: tuple[dict[str, torch.Tensor], list[Any]]) -> None:
    weights, seen = snapshot(model)
    assert weights.keys() == before[0].keys()
    assert all(torch.equal(value, before[0][name]) for name, value in weights.items())
    assert seen == before[1]


def test_weights_are_inference_tensors_to_begin_with() -> None:
    """Or else these tests would show nothing: as ComfyUI's loader makes them inside a node."""
    built = unets.build("SD15")
    assert all(p.is_inference() for p in built.model.diffusion_model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_embeddings_bring_the_picture_nearer_and_weights_stay(
    model, texts, trajectory, preset
) -> None:
    before = snapshot(model)
    made, curve, errors, report = null_text(
        model, trajectory, **texts, cfg=CFG, preset=preset, checkpointing="auto"
    )
    assert_as_before(model, before)
    nulls = made.extras[NULLS]
    assert nulls.shape == (STEPS, 1, *texts["source"][0][0].shape[1:])
    assert nulls.dtype == torch.float32
    assert made.correction.name == "null_text" and made.correction.options["cfg"] == CFG
    assert curve.shape == (1, 400, 720, 3) and len(errors) == STEPS
    assert preset in report and "UNet rows" in report and "gradients need about" in report
    plain = null_text_errors(model, texts, trajectory, preset)
    assert errors[0] < plain[0]
    assert not nulls.is_inference() and torch.equal(made.latents, inverted(model, texts).latents)


def null_text_errors(model: Any, texts: Any, trajectory: Any, preset: str) -> list[float]:
    """The errors of embeddings that were not optimised."""
    settings = dataclasses.replace(PRESETS[preset], inner_steps=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, preset, settings)
        return null_text(model, trajectory, **texts, cfg=CFG, preset=preset, checkpointing="off")[2]


@pytest.mark.parametrize("preset", ["fast", "reference"])
def test_the_source_row_of_an_edit_is_the_optimised_one(model, texts, trajectory, preset) -> None:
    """Oracle 24: the distances that the optimisation reports are those of the edit's source row."""
    made, _, errors, _ = null_text(
        model, trajectory, **texts, cfg=CFG, preset=preset, checkpointing="off"
    )
    target = unets.conditioning(next(k for k in KINDS if matches(k, texts)), 5)
    back = edit(model, made, texts["source"], target, texts["negative"], CFG, "auto")[1]["samples"]
    wanted = model.model.process_latent_out(made.latents[0])
    scale = float(model.model.process_latent_out(torch.ones(1)))
    error = float((back - wanted).square().mean()) / scale**2
    assert error == pytest.approx(errors[-1], rel=2e-2, abs=1e-7)


def matches(kind: str, texts: Any) -> bool:
    return unets.SHAPES[kind]["context_dim"] == texts["source"][0][0].shape[-1]


def test_targets_read_the_negative_prompt_under_fast_and_the_embedding_under_reference(
    model, texts, trajectory
) -> None:
    target = unets.conditioning(next(k for k in KINDS if matches(k, texts)), 5)
    prompts = {"source": texts["source"], "target": target, "negative": texts["negative"]}
    plain = edit(model, trajectory, **prompts, cfg=CFG, correction="none")[0]["samples"]
    edits = {}
    for preset in ("fast", "reference"):
        made = null_text(model, trajectory, **texts, cfg=CFG, preset=preset, checkpointing="off")[0]
        edits[preset] = edit(model, made, **prompts, cfg=CFG, correction="auto")[0]["samples"]
    scale = float(plain.abs().max())
    torch.testing.assert_close(edits["fast"], plain, rtol=0, atol=2e-3 * scale)
    assert (edits["reference"] - plain).abs().max() > 1e-2 * scale


class Stop(Exception):
    """Raised in the middle."""


@pytest.mark.parametrize("checkpointing", ["on", "off"])
def test_an_error_in_the_middle_leaves_the_model_clean(
    model, texts, trajectory, checkpointing
) -> None:
    before = snapshot(model)
    seen: list[str] = []

    def progress(text: str) -> None:
        seen.append(text)
        if text.startswith("step 2"):
            raise Stop

    with pytest.raises(Stop):
        null_text(
            model,
            trajectory,
            **texts,
            cfg=CFG,
            preset="fast",
            checkpointing=checkpointing,
            progress=progress,
        )
    assert "gradients need about" in seen[0] and seen[-1].startswith("step 2 of 3, loss ")
    assert_as_before(model, before)
    assert torch.equal(inverted(model, texts).latents, trajectory.latents)


def test_an_interrupt_leaves_the_model_clean(model, texts, trajectory) -> None:
    import comfy.model_management as management

    before = snapshot(model)

    def progress(text: str) -> None:
        if text.startswith("step 1"):
            management.interrupt_current_processing(True)

    with pytest.raises(management.InterruptProcessingException):
        null_text(
            model,
            trajectory,
            **texts,
            cfg=CFG,
            preset="reference",
            checkpointing="off",
            progress=progress,
        )
    management.interrupt_current_processing(False)
    assert_as_before(model, before)


def test_checkpointing_changes_only_memory(model, texts, trajectory) -> None:
    made = [
        null_text(model, trajectory, **texts, cfg=CFG, preset="fast", checkpointing=on)
        for on in ("on", "off")
    ]
    nulls = [one[0].extras[NULLS] for one in made]
    torch.testing.assert_close(*nulls, rtol=1e-4, atol=1e-5)
    assert "checkpointing on" in made[0][3] and "checkpointing off" in made[1][3]


@pytest.fixture
def unet(model: Any) -> Iterator[torch.nn.Module]:
    with torch.inference_mode(False):
        yield model.model.diffusion_model


def noise(side: int) -> torch.Tensor:
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1))


def call(
    unet: torch.nn.Module, text: torch.Tensor, kind: str, x: torch.Tensor | None = None
) -> torch.Tensor:
    x = noise(8) if x is None else x
    y = torch.randn(1, 2816, generator=torch.Generator().manual_seed(2)) if kind == "SDXL" else None
    options = gradients.with_plain_attention({})["transformer_options"]
    return unet(x, torch.tensor([500.0]), context=text, y=y, transformer_options=options)


CPU, ELSEWHERE = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("device", "checkpointing"), [(CPU, False), (CPU, True), (ELSEWHERE, False), (ELSEWHERE, True)]
)
def test_the_gradient_is_the_slope(unet, kind, texts, device, checkpointing) -> None:
    """Along random directions; resident or streamed in (weights elsewhere than the call), kept or
    run again."""
    text = texts["source"][0][0].clone()
    along = torch.randn(text.shape, generator=torch.Generator().manual_seed(3))
    weigh = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    with gradients.differentiable(unet, device, checkpointing, BLOCKS):
        wanted = text.clone().requires_grad_(True)
        (found,) = torch.autograd.grad((call(unet, wanted, kind) * weigh).sum(), wanted)
        with torch.no_grad():
            ends = [
                (call(unet, text + sign * 1e-2 * along, kind) * weigh).sum().double()
                for sign in (1, -1)
            ]
    slope = float(ends[0] - ends[1]) / 2e-2
    assert float((found * along).sum()) == pytest.approx(
        slope, rel=2e-2, abs=1e-3 * float(found.norm())
    )


def test_checkpointing_keeps_far_less(unet, kind, texts) -> None:
    kept = {}
    for on in (False, True):
        text = texts["source"][0][0].clone().requires_grad_(True)
        with (
            gradients.differentiable(unet, CPU, on, BLOCKS),
            gradients.SavedBytes(unet, BLOCKS) as saved,
        ):
            call(unet, text, kind, noise(16))
        kept[on] = saved.total
    assert 0 < kept[True] < kept[False] / 4


def test_the_estimate_is_what_the_way_back_keeps(model, unet, kind, texts) -> None:
    """Counted on parts of the latent: within a tenth of what the whole keeps."""
    whole = invert_latent(
        model, unets.latent(32, 48), texts["source"], 1, "reference", Ddim(), False
    )[0]
    report = null_text(model, whole, **texts, cfg=CFG, preset="fast", checkpointing="off")[3]
    found = re.search(r"about ([\d.]+) (MB|GB) of", report)
    estimated = float(found[1]) * {"MB": 2**20, "GB": 2**30}[found[2]]
    x = whole.latents[-1].clone()
    text = texts["source"][0][0].clone().requires_grad_(True)
    with (
        gradients.differentiable(unet, CPU, False, BLOCKS),
        gradients.SavedBytes(unet, BLOCKS) as saved,
    ):
        call(unet, text, kind, x)
    assert estimated == pytest.approx(saved.total, rel=0.1)


@pytest.mark.parametrize("preset", ["fast", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_optimised_with(dtype: torch.dtype, preset: str) -> None:
    model = unets.build("SD15", dtype=dtype)
    texts = {
        name: unets.conditioning("SD15", seed) for seed, name in enumerate(("source", "negative"))
    }
    pivot, before = inverted(model, texts), snapshot(model)
    errors = null_text(model, pivot, **texts, cfg=CFG, preset=preset, checkpointing="on")[2]
    plain = null_text_errors(model, texts, pivot, preset)
    assert errors[0] < plain[0]
    assert_as_before(model, before)
    assert all(p.dtype == dtype for p in model.model.diffusion_model.input_blocks[0].parameters())


LORA = "middle_block.1.transformer_blocks.0.attn2.to_v"


def with_lora(lowvram: bool) -> Any:
    """A model with a patched weight; `lowvram`: left to be patched when it is used, as on a small
    card."""
    from comfy.patcher_extension import WrappersMP

    model = unets.build("SD15")
    name = f"diffusion_model.{LORA}.weight"
    weight = model.model.state_dict()[name]
    assert model.add_patches(
        {name: (torch.randn(weight.shape, generator=torch.Generator().manual_seed(9)),)}, 0.5
    )

    def streamed(executor: Any, *args: Any, **kwargs: Any) -> Any:
        model.unpatch_model(CPU)
        model.load(CPU, lowvram_model_memory=1, force_patch_weights=False)
        return executor(*args, **kwargs)

    if lowvram:
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "streamed", streamed)
    return model


def test_weights_patched_when_they_are_used_are_optimised_with() -> None:
    """The host's low-memory way: a LoRA is applied by a function of the layer, at every call."""
    texts = {
        name: unets.conditioning("SD15", seed) for seed, name in enumerate(("source", "negative"))
    }
    outcomes, functions = [], []
    for lowvram in (False, True):
        model = with_lora(lowvram)
        pivot, layer = inverted(model, texts), model.model.diffusion_model.get_submodule(LORA)
        seen: list[int] = functions

        def progress(text: str, layer: Any = layer, seen: list[int] = seen) -> None:
            seen.append(len(layer.weight_function))

        made = null_text(
            model, pivot, **texts, cfg=CFG, preset="fast", checkpointing="off", progress=progress
        )[0]
        outcomes.append(made.extras[NULLS])
    assert functions[0] == 0 and functions[-1] == 1, (
        "the second model must have been patched when used"
    )
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=1e-3, atol=1e-3)
    plain = unets.build("SD15")
    other = null_text(
        plain, inverted(plain, texts), **texts, cfg=CFG, preset="fast", checkpointing="off"
    )[0].extras[NULLS]
    assert not torch.allclose(other, outcomes[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_streamed_in_are_put_back(unet, checkpointing) -> None:
    before = [list(getattr(module, "weight_function", ())) for module in unet.modules()]
    with gradients.differentiable(unet, ELSEWHERE, checkpointing, BLOCKS):
        assert torch.clone in unet.get_submodule(LORA).weight_function
    assert [list(getattr(module, "weight_function", ())) for module in unet.modules()] == before


def test_pictures_of_a_batch_are_optimised_as_if_alone(model, texts, kind) -> None:
    batch = inverted(model, texts, 2)
    together = null_text(model, batch, **texts, cfg=CFG, preset="fast", checkpointing="off")[
        0
    ].extras[NULLS]
    one = dataclasses.replace(batch, latents=batch.latents[:, 1:])
    optimized = null_text(model, one, **texts, cfg=CFG, preset="fast", checkpointing="off")[0]
    alone = optimized.extras[NULLS]
    assert together.shape[1] == 2 and not torch.allclose(together[:, 0], together[:, 1])
    torch.testing.assert_close(together[0, 1:], alone[0], rtol=1e-2, atol=1e-3)


def test_each_picture_may_have_a_prompt_of_its_own(kind, model, texts) -> None:
    other = unets.conditioning(kind, 8)
    both = [[torch.cat([texts["source"][0][0], other[0][0]]), dict(texts["source"][0][1])]]
    if "pooled_output" in both[0][1]:
        both[0][1]["pooled_output"] = torch.cat(
            [texts["source"][0][1]["pooled_output"], other[0][1]["pooled_output"]]
        )
    pair = {"source": both, "negative": texts["negative"]}
    batch = inverted(model, pair, 2)
    found = run_optimization(
        model, batch, **pair, cfg=CFG, settings=PRESETS["fast"], checkpointing="off"
    )[0].nulls
    single = {"source": other, "negative": texts["negative"]}
    samples = {"samples": unets.latent(8, 12, 2)["samples"][1:]}
    pivot = invert_latent(model, samples, other, STEPS, "reference", Ddim(), False)[0]
    optimized = null_text(model, pivot, **single, cfg=CFG, preset="fast", checkpointing="off")[0]
    alone = optimized.extras[NULLS]
    torch.testing.assert_close(found[0, 1:], alone[0], rtol=1e-2, atol=1e-3)


def test_pictures_that_go_on_alone_keep_their_own_pooled_vector(kind, model, texts) -> None:
    """The first picture is near enough before it begins, and the second is asked about without
    it."""
    other = unets.conditioning(kind, 8)
    negative = [[torch.cat([texts["negative"][0][0]] * 2), dict(texts["negative"][0][1])]]
    single = dict(other[0][1])
    if "pooled_output" in single:
        negative[0][1]["pooled_output"] = torch.cat(
            [negative[0][1]["pooled_output"], single["pooled_output"]]
        )
    batch = inverted(model, texts, 2)
    run = {"source": texts["source"], "cfg": CFG, "checkpointing": "off"}
    first = run_optimization(model, batch, **run, negative=negative, settings=Settings("adam", 0))[
        0
    ].before[0]
    if first[0] > first[1]:  # rows that are missing are taken from the front
        batch, first = dataclasses.replace(batch, latents=batch.latents.flip(1)), first.flip(0)
    settings = Settings("adam", 2, epsilon=float(first.mean()), growth=1e6)
    found = run_optimization(model, batch, **run, negative=negative, settings=settings)[0]
    assert found.backward_rows[0] < found.backward_rows[1]
    alone = dataclasses.replace(batch, latents=batch.latents[:, 1:])
    mine = [[texts["negative"][0][0], {name: value[1:] for name, value in negative[0][1].items()}]]
    wanted = run_optimization(model, alone, **run, negative=mine, settings=settings)[0]
    torch.testing.assert_close(found.nulls[0, 1], wanted.nulls[0, 0], rtol=1e-2, atol=1e-3)


def test_what_does_not_fit_is_refused(model, texts, trajectory) -> None:
    kind = next(k for k in KINDS if matches(k, texts))
    good = {**texts, "cfg": CFG, "preset": "fast", "checkpointing": "off"}
    combined = [*texts["source"], *texts["source"]]
    for change, message in (
        ({"source": unets.conditioning(kind, 9)}, "source conditioning"),
        ({"negative": combined}, "one plain negative prompt"),
        ({"source": combined}, "one plain source prompt"),
        (
            {"negative": [[texts["negative"][0][0], {**texts["negative"][0][1], "strength": 0.5}]]},
            "one with strength",
        ),
        (
            {"source": [[texts["source"][0][0], {**texts["source"][0][1], "start_percent": 0.5}]]},
            "one with start_perc",
        ),
        (
            {"source": [[texts["source"][0][0], {**texts["source"][0][1], "control": object()}]]},
            "one with control",
        ),
        ({"preset": "magic"}, "preset"),
        ({"checkpointing": "maybe"}, "checkpointing"),
    ):
        with pytest.raises(PivotError, match=message):
            null_text(model, trajectory, **{**good, **change})
    with pytest.raises(PivotError, match="model"):
        null_text(unets.build(kind, seed=5, shallow=True), trajectory, **good)


def test_ordinary_weights_are_frozen_only_for_the_while(kind, texts) -> None:
    """Models loaded outside inference mode: weights get no gradient, and afterwards all is as
    before."""
    with torch.inference_mode(False):
        unet = unets.build(kind, shallow=True).model.diffusion_model
        for parameter in unet.parameters():
            parameter.requires_grad_(True)
        with gradients.differentiable(unet, CPU, False, BLOCKS):
            assert not any(p.requires_grad or p.is_inference() for p in unet.parameters())
            text = texts["source"][0][0].clone().requires_grad_(True)
            call(unet, text, kind).sum().backward()
        assert text.grad is not None and all(
            p.requires_grad and p.grad is None for p in unet.parameters()
        )


def test_previews_by_a_network_of_the_host_work(model, texts, trajectory, monkeypatch) -> None:
    """Its weights are inference tensors that ask for gradients, and know none."""
    import latent_preview

    network = torch.nn.Conv2d(4, 3, 1)
    assert network.weight.is_inference() and network.weight.requires_grad
    previewer, shown = (
        latent_preview.TAESDPreviewerImpl.__new__(latent_preview.TAESDPreviewerImpl),
        [],
    )
    monkeypatch.setattr(
        previewer, "decode_latent_to_preview_image", lambda kind, x: shown.append(network(x))
    )
    monkeypatch.setattr(latent_preview, "get_previewer", lambda *args: previewer)
    null_text(model, trajectory, **texts, cfg=CFG, preset="fast", checkpointing="off")
    assert len(shown) == STEPS


def test_checkpointing_comes_on_where_memory_is_short(
    model, texts, trajectory, monkeypatch
) -> None:
    import comfy.model_management as management

    free = management.get_free_memory
    reports = []
    for share in (1, 1000, 1_000_000):
        monkeypatch.setattr(
            management, "get_free_memory", lambda *args, share=share: free() // share
        )
        monkeypatch.setattr("comfy.samplers.calc_cond_batch", unbatched(free))
        reports.append(
            null_text(model, trajectory, **texts, cfg=CFG, preset="fast", checkpointing="auto")[3]
        )
    assert "checkpointing off" in reports[0] and "checkpointing on" in reports[-1]
    assert "may not fit" not in reports[0] and "may not fit" in reports[-1]


def unbatched(free: Any) -> Any:
    """The host's own batching under its true free memory."""
    import comfy.model_management as management
    import comfy.samplers

    plain = comfy.samplers.calc_cond_batch

    def calc(*args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(management, "get_free_memory", free)
            return plain(*args, **kwargs)

    return calc


def test_guidance_that_the_embeddings_do_not_know_is_remarked(model, texts, trajectory) -> None:
    other = model.clone()
    other.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    pair = [
        null_text(m, trajectory, **texts, cfg=CFG, preset="fast", checkpointing="off")[3]
        for m in (model, other)
    ]
    assert "changes guidance" not in pair[0] and "changes guidance" in pair[1]


def test_models_are_let_go_of() -> None:
    """Nothing of an optimisation holds the UNet once the model itself is dropped."""
    alive = []
    for seed in range(3):
        model = unets.build("SD15", seed=seed)
        prompts = {
            name: unets.conditioning("SD15", i) for i, name in enumerate(("source", "negative"))
        }
        null_text(
            model, inverted(model, prompts), **prompts, cfg=CFG, preset="fast", checkpointing="auto"
        )
        alive.append(weakref.ref(model.model.diffusion_model))
        del model
    gc.collect()
    assert [unet() is not None for unet in alive] == [False] * 3
