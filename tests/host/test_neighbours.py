"""Other packs beside an edit: what they leave is understood, or refused by name."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import comfy.hooks
import comfy.sd
import pytest
import torch

import mechanisms
import nodes
import other_packs
import unets
from pivot_edit.attention import MasaCtrl
from pivot_edit.core.errors import PivotError
from pivot_edit.host.model.checks import conditioning_fingerprint, fingerprint
from pivot_edit.host.model.layers import layers_of
from pivot_edit.host.run.neighbours import check_neighbours, check_rows
from pivot_edit.host.run.patching import add_controller
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.host.tasks.masks import _recorded
from pivot_edit.host.text.conditioning import join_rows, stack_rows
from pivot_edit.host.text.options import read_by_host
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
    recorded,
    run,
)

KIND = "SD15"
CONTROLS: dict[str, Callable[[Any], Any]] = {
    "p2p": p2p,
    "masa": masa,
    "blend": lambda model: blend(p2p(model)),
}
CACHES = ("EasyCache", "LazyCache")


@pytest.fixture(scope="module")
def model() -> Any:
    return unets.build(KIND)


@pytest.fixture(scope="module")
def texts() -> list[Any]:
    return [unets.conditioning(KIND, seed) for seed in range(4)]


def invert(model: Any, source: Any) -> Any:
    return invert_latent(model, unets.latent(*SIZE), source, 3, "reference", Ddim(), False)[0]


@pytest.fixture(scope="module")
def pivot(model: Any, texts: list[Any]) -> Any:
    with torch.inference_mode():
        return invert(model, texts[SOURCE])


# notes in a conditioning


@pytest.mark.parametrize(
    "key",
    ["area", "mask", "strength", "mask_strength", "set_area_to_bounds", "start_percent"]
    + ["end_percent", "clip_start_percent", "control", "control_apply_to_uncond", "gligen"]
    + ["hooks", "default", "pooled_output", "width", "crop_w", "target_height", "model_conds"]
    + ["unclip_conditioning", "concat_latent_image", "concat_mask", "cross_attn", "prompt_type"],
)
def test_options_that_the_host_reads_are_known(key: str) -> None:
    assert read_by_host(key)


@pytest.mark.parametrize("key", ["prompt", "x-promptcontrol.fill", "text", "pivot_prompt"])
def test_notes_are_known_for_what_they_are(key: str) -> None:
    assert not read_by_host(key)


@pytest.mark.parametrize("control", CONTROLS)
def test_notes_do_not_change_an_edit(model, texts, pivot, control, caplog) -> None:
    ours = CONTROLS[control](model)
    noted = {
        name: mechanisms.noted(texts[place], prompt=name, **{"x-pack.fill": place})
        for name, place in {"source": SOURCE, "target": TARGET, "negative": NEGATIVE}.items()
    }
    with caplog.at_level(logging.INFO):
        edited = run(ours, pivot, texts, "none", **noted)[0]
    assert torch.equal(edited, run(ours, pivot, texts, "none")[0])
    assert "Edit Guider: the note 'prompt' differs between the prompts and is left out" in [
        record.getMessage() for record in caplog.records
    ]


def test_equal_notes_are_kept_and_different_ones_are_not(texts) -> None:
    old = mechanisms.noted(texts[SOURCE], pack=("a", 1), other_note=1)
    new = mechanisms.noted(texts[TARGET], pack=("a", 1), other_note=2)
    options = join_rows(old, new, "here")[0][1]
    assert options["pack"] == ("a", 1) and "other_note" not in options


@pytest.mark.parametrize(
    "notes",
    [{"strength": 0.5}, {"width": 512}, {"end_percent": 0.5}, {"area": (8, 8, 0, 0)}]
    + [{"mask": torch.ones(1, 8, 8)}, {"concat_latent_image": torch.ones(1, 4, 8, 8)}],
    ids=lambda notes: next(iter(notes)),
)
def test_what_the_host_reads_must_still_be_alike(texts, notes) -> None:
    [key] = notes
    with pytest.raises(PivotError, match=f"the same {key} on source and target"):
        join_rows(texts[SOURCE], mechanisms.noted(texts[TARGET], **notes), "here")
    alike = {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in notes.items()
    }
    both = mechanisms.noted(texts[SOURCE], **notes), mechanisms.noted(texts[TARGET], **alike)
    assert key in join_rows(*both, "here")[0][1]


def test_lists_of_tensors_are_compared_by_their_values(texts) -> None:
    """As unCLIP's are: a list of dicts with tensors in them."""

    def image(strength: float) -> list[dict[str, Any]]:
        return [{"strength": strength, "image": torch.ones(1, 4)}]

    old = mechanisms.noted(texts[SOURCE], unclip_conditioning=image(1.0))
    join_rows(old, mechanisms.noted(texts[TARGET], unclip_conditioning=image(1.0)), "here")
    with pytest.raises(PivotError, match="the same unclip_conditioning"):
        join_rows(old, mechanisms.noted(texts[TARGET], unclip_conditioning=image(0.5)), "here")


# reference controls


@pytest.fixture
def reference(model: Any) -> tuple[Any, Callable[..., Any]]:
    """A model with a reference control's patch, and what applies the control to a conditioning."""
    patch = mechanisms.ReferencePatch()
    referenced = model.clone()
    referenced.set_model_attn1_output_patch(patch)

    def apply(
        conditioning: Any, strength: float = 1.0, frame: float = 1.0, style: float = 0.5, hint=1.0
    ) -> Any:
        keyframes = [mechanisms.Keyframe(0.0, frame)]
        control = mechanisms.Reference(patch, keyframes, style)
        wrapped = mechanisms.Hint(torch.full((1, 4, *SIZE), hint))
        return mechanisms.referenced(conditioning, control, wrapped, strength)

    return referenced, apply


def test_a_reference_alike_on_both_prompts_is_accepted_after_an_inversion(texts, reference) -> None:
    """One control for both, as people connect it; the inversion has changed the source's copy."""
    referenced, _ = reference
    patch = referenced.model_options["transformer_options"]["patches"]["attn1_output_patch"][0]
    control = mechanisms.Reference(patch, [mechanisms.Keyframe(0.0, 1.0)], 0.5)
    hint = mechanisms.Hint(torch.ones(1, 4, *SIZE))
    source, target = (
        mechanisms.referenced(texts[place], control, hint) for place in (SOURCE, TARGET)
    )
    pivot = invert(referenced, source)
    assert isinstance(source[0][1]["control"].cond_hint_original, torch.Tensor)
    edited = run(p2p(referenced), pivot, texts, "none", source=source, target=target)[0]
    assert torch.isfinite(edited).all()
    assert differ(edited, run(p2p(referenced), pivot, texts, "none")[0])


def test_references_of_two_nodes_are_alike_after_an_inversion(texts, reference) -> None:
    referenced, apply = reference
    source = apply(texts[SOURCE])
    invert(referenced, source)
    join_rows(source, apply(texts[TARGET]), "here")


@pytest.mark.parametrize("difference", ["strength", "style", "hint", "frame"])
def test_references_that_are_not_alike_are_refused(texts, reference, difference) -> None:
    referenced, apply = reference
    source = apply(texts[SOURCE])
    invert(referenced, source)
    with pytest.raises(PivotError, match="the same control on source and target"):
        join_rows(source, apply(texts[TARGET], **{difference: 0.25}), "here")


def test_what_comes_before_a_control_counts(texts, reference) -> None:
    _, apply = reference
    one, two = apply(texts[SOURCE]), apply(texts[TARGET])
    join_rows(one, two, "here")
    before = apply(texts[SOURCE], 0.5)[0][1]["control"]
    one[0][1]["control"].set_previous_controlnet(before)
    with pytest.raises(PivotError, match="the same control"):
        join_rows(one, two, "here")
    two[0][1]["control"].set_previous_controlnet(
        before.copy().set_cond_hint(before.cond_hint_original, 0.5)
    )
    join_rows(one, two, "here")


# tiles, regions, added rows

COUPLES: dict[str, Callable[[Any, Any], Any]] = {
    "replaced": lambda model, text: mechanisms.AttentionCouple(text).replaced(model),
    "repeated": lambda model, text: mechanisms.AttentionCouple(text).repeated(model),
}
REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "tome": (lambda model, text: other_packs.token_merging(model), "token merging .*Tome Patch"),
    "hyper_tile": (lambda model, text: other_packs.hyper_tile(model), "HyperTile"),
    "tiled": (lambda model, text: mechanisms.tiled(model), "Tiled Diffusion"),
    **{f"couple_{name}": (make, "Attention Couple") for name, make in COUPLES.items()},
    **{
        name: (lambda model, text, name=name: other_packs.cached(model, name), name)
        for name in CACHES
    },
}


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("mechanism", REFUSED)
def test_mechanisms_are_refused_by_name_in_either_order(
    model, texts, pivot, mechanism, control
) -> None:
    make, name = REFUSED[mechanism]
    ours, text = CONTROLS[control], texts[NEGATIVE][0][0]
    for both in (ours(make(model, text)), make(ours(model), text)):
        with pytest.raises(PivotError, match=f"but got .*{name}"):
            run(both, pivot, texts)
        rows = stack_rows(texts[SOURCE], texts[TARGET])
        with pytest.raises(PivotError, match=f"but got .*{name}"):
            ksampler(both, rows, texts[NEGATIVE], 2)


def test_regions_that_come_by_a_hook_are_refused_by_name(model, texts, pivot) -> None:
    couple = mechanisms.AttentionCouple(texts[NEGATIVE][0][0])
    group = couple.hooked(texts[SOURCE])[0][1]["hooks"]
    both = {
        name: comfy.hooks.set_hooks_for_conditioning(texts[place], hooks=group)
        for name, place in {"source": SOURCE, "target": TARGET}.items()
    }
    hooked = invert(model, both["source"])
    with pytest.raises(PivotError, match="but got Attention Couple"):
        run(p2p(model), hooked, texts, **both)


def test_patches_of_other_names_are_left_alone(model, texts) -> None:
    """Among them the packs whose effects are kept."""
    for theirs in (
        model,
        other_packs.image_prompt(model),
        other_packs.sharpener(model),
        other_packs.free_u(model),
        other_packs.guidance(model),
        masa(blend(p2p(model))),
    ):
        options = theirs.model_options
        check_neighbours(options["transformer_options"], options)
    wrapped = model.clone()
    wrapped.set_model_unet_function_wrapper(lambda function, args: None)
    check_neighbours(wrapped.model_options["transformer_options"], wrapped.model_options)


def test_added_rows_are_refused_with_the_name_of_who_adds_them(
    model, texts, pivot, monkeypatch
) -> None:
    network, negative = model.model.diffusion_model, texts[NEGATIVE][0][0]
    rows = stack_rows(texts[SOURCE], texts[TARGET])
    mechanisms.with_attention_guidance(network, negative, monkeypatch.setattr)
    with pytest.raises(PivotError, match=r"attention guidance \(NAG\).* in cross-attention"):
        ksampler(p2p(model), rows, texts[NEGATIVE], 2)


def test_rows_of_keys_and_values_are_counted() -> None:
    two, three = torch.zeros(2, 4, 8), torch.zeros(3, 4, 8)
    check_rows(two, two, two, "here")
    for k, v in ((three, three), (two, three), (three, two)):
        with pytest.raises(PivotError, match="as of queries, 2, but got .*attention guidance"):
            check_rows(two, k, v, "here")


# caches


@pytest.mark.parametrize("cache", CACHES)
def test_caches_are_refused_before_an_inversion_and_at_an_edit(model, texts, pivot, cache) -> None:
    theirs = other_packs.cached(model, cache)
    with pytest.raises(PivotError, match=f"behind {cache}.*Connect the inversion before it"):
        invert(theirs, texts[SOURCE])
    with pytest.raises(PivotError, match=f"behind {cache}.*Connect the edit before it"):
        run(theirs, pivot, texts)


# LoRA beside the weights


def bypass(model: Any, strength: float = 0.5, seed: int = 5) -> Any:
    weights = other_packs.lora_weights(model, seed)
    return comfy.sd.load_bypass_lora_for_models(model, None, weights, strength, 0.0)[0]


def test_a_bypass_lora_is_noticed(model, texts, pivot) -> None:
    theirs = bypass(model)
    with pytest.raises(PivotError, match="the model the inversion was made with"):
        run(p2p(theirs), pivot, texts)
    inverted = invert(theirs, texts[SOURCE])
    edited = run(p2p(theirs), inverted, texts, "none")[0]
    patched = other_packs.lora(model)
    close(edited, run(p2p(patched), invert(patched, texts[SOURCE]), texts, "none")[0])
    assert differ(edited, run(p2p(model), pivot, texts, "none")[0])


def test_fingerprints_tell_bypass_loras_apart(model) -> None:
    others = [
        model,
        other_packs.lora(model),
        bypass(model),
        bypass(model, 0.6),
        bypass(model, 0.5, 6),
    ]
    assert len({fingerprint(one) for one in others}) == len(others)
    assert fingerprint(bypass(model)) == fingerprint(bypass(model)) == fingerprint(p2p(others[2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_fingerprint_of_a_bypass_lora_outlives_its_first_run(model, dtype) -> None:
    """The host casts the adapter in place when it is first put in."""
    half = unets.build(KIND, dtype=dtype, shallow=True)
    theirs = bypass(half)
    before = fingerprint(theirs)
    [injection] = theirs.injections["bypass_lora"]
    [manager] = [cell.cell_contents for cell in injection.inject.__closure__]
    injection.inject(theirs)
    assert next(iter(manager.adapters.values()))[0].weights[0].dtype == dtype
    during = fingerprint(theirs)
    injection.eject(theirs)
    assert before == during == fingerprint(theirs)


def test_replaced_parts_of_the_unet_are_noticed(model) -> None:
    def forward(*args: Any) -> None:
        return None

    patched, sampled = model.clone(), model.clone()
    patched.add_object_patch("diffusion_model.middle_block.forward", forward)
    sampled.add_object_patch("model_sampling", model.get_model_object("model_sampling"))
    assert fingerprint(patched) != fingerprint(model) == fingerprint(sampled)
    compiled = type("OptimizedModule", (), {})
    patched.object_patches["diffusion_model.middle_block.forward"] = compiled()
    assert fingerprint(patched) == fingerprint(model)


def test_a_lora_by_a_hook_is_noticed(model, texts, pivot) -> None:
    """On both prompts, but not in the inversion; and one of another strength."""

    def hooked(strength: float) -> dict[str, Any]:
        weights = other_packs.lora_weights(model)
        group = comfy.hooks.create_hook_lora(weights, strength, strength)
        return {
            name: comfy.hooks.set_hooks_for_conditioning(texts[place], hooks=group)
            for name, place in {"source": SOURCE, "target": TARGET}.items()
        }

    both = hooked(0.5)
    with pytest.raises(PivotError, match="the source conditioning that the inversion"):
        run(p2p(model), pivot, texts, **both)
    with_hook = invert(model, both["source"])
    assert with_hook.conditioning == conditioning_fingerprint(hooked(0.5)["source"])
    assert with_hook.conditioning != conditioning_fingerprint(hooked(0.6)["source"])
    assert torch.isfinite(run(p2p(model), with_hook, texts, **both)[0]).all()
    with pytest.raises(PivotError, match="the same hooks on source and target"):
        run(p2p(model), with_hook, texts, source=both["source"], target=hooked(0.5)["target"])


# areas


def bounded(conditioning: Any, how: str) -> Any:
    if how == "area":
        return nodes.ConditioningSetArea().append(conditioning, 96, 64, 0, 0, 1.0)[0]
    mask = torch.zeros(1, 8 * SIZE[0], 8 * SIZE[1])
    mask[:, :64, :96] = 1.0
    return nodes.ConditioningSetMask().append(conditioning, mask, "mask bounds", 1.0)[0]


@pytest.mark.parametrize("how", ["area", "mask"])
def test_local_blend_says_that_an_area_has_no_maps(model, texts, how) -> None:
    both = {"source": bounded(texts[SOURCE], how), "target": bounded(texts[TARGET], how)}
    pivot = invert(model, both["source"])
    with pytest.raises(PivotError, match="area or mask bounds"):
        run(blend(p2p(model)), pivot, texts, **both)


def test_recorded_attention_says_that_an_area_has_no_maps(model, texts) -> None:
    both = {"source": bounded(texts[SOURCE], "area"), "target": bounded(texts[TARGET], "area")}
    watched = recorded(model)[0]
    edited = run(watched, invert(model, both["source"]), texts, **both)[0]
    with pytest.raises(PivotError, match="area or mask bounds leaves no maps"):
        _recorded(watched, edited[0])


# the order of controls

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "union": {"union": True},
    "masks": {"source_mask": torch.zeros(1, *SIZE), "target_mask": torch.zeros(1, *SIZE)},
}
for given in OPTIONS["masks"].values():
    given[:, 4:12, 4:14] = 1.0


@pytest.mark.parametrize("options", OPTIONS)
def test_the_order_of_p2p_and_masactrl_does_not_matter(model, texts, pivot, options) -> None:
    """Although union and masks compute rows of their own, here in every layer: P2P's self window
    comes first, and has its effect."""

    def ours(*controls: Callable[[Any], Any]) -> torch.Tensor:
        edited = model
        for control in controls:
            edited = control(edited)
        return run(edited, pivot, texts)[0]

    wide, everywhere = {"start": 0.0, **OPTIONS[options]}, frozenset(layers_of(model))
    controls = [
        lambda m: p2p(m, self_limit=1.0),
        lambda m: add_controller(m, MasaCtrl(everywhere, **wide)),
        blend,
    ]
    first, *others = [ours(*order) for order in itertools.permutations(controls)]
    assert all(torch.equal(first, other) for other in others)
    without = [ours(*controls[:1], blend), ours(*controls[1:])]
    no_window = ours(lambda m: p2p(m, self_=(0.0, 0.0)), *controls[1:])
    assert all(differ(first, other) for other in (*without, no_window))
