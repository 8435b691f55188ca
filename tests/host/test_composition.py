"""Other packs' patches beside ours, before and after in the chain: same rows, both effects, no
crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import other_packs
import unets
from pivot_edit.core.errors import PivotError
from pivot_edit.host.tasks.inversion import invert_latent
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

PATCHES: dict[str, Callable[[Any], Any]] = {
    "image_prompt": other_packs.image_prompt,
    "sharpener": other_packs.sharpener,
    "lora": other_packs.lora,
    "free_u": other_packs.free_u,
    "guidance": other_packs.guidance,
}
WHOLE = ("sharpener", "guidance")
"""Patches of attention's output and functions around guidance may compare rows or ask again: then
every row of a source that is read is run."""
CONTROLS: dict[str, Callable[[Any], Any]] = {
    "p2p": p2p,
    "masa": masa,
    "blend": lambda model: blend(p2p(model)),
}


@pytest.fixture(scope="module", params=["SD15", "SDXL"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return unets.build(kind, shallow=True)


@pytest.fixture(scope="module")
def texts(kind: str) -> list[Any]:
    return [unets.conditioning(kind, seed) for seed in range(3)] + [
        unets.conditioning(kind, NEGATIVE)
    ]


@pytest.fixture(scope="module")
def pivots(model: Any, texts: list[Any]) -> Callable[[Any], Any]:
    """The inversion under a model's own weights: a LoRA changes them."""

    def of(patched: Any) -> Any:
        return invert_latent(
            patched, unets.latent(*SIZE), texts[SOURCE], 3, "reference", Ddim(), False
        )[0]

    return of


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("patch", PATCHES)
def test_both_effects_are_there_in_either_order(model, texts, pivots, patch, control) -> None:
    theirs, ours = PATCHES[patch], CONTROLS[control]
    pivot = pivots(theirs(model))
    plain_pivot = pivots(model)
    before, after = run(ours(theirs(model)), pivot, texts), run(theirs(ours(model)), pivot, texts)
    only_theirs, only_ours = (
        run(theirs(model), pivot, texts)[0],
        run(ours(model), plain_pivot, texts),
    )
    assert torch.isfinite(before[0]).all()
    assert torch.equal(before[0], after[0])
    assert differ(before[0], only_theirs) and differ(before[0], only_ours[0])
    if patch not in WHOLE:
        costs = (report.splitlines()[0].rsplit(",", 1)[1] for report in (before[2], only_ours[2]))
        assert len(set(costs)) == 1


@pytest.mark.parametrize("patch", PATCHES)
def test_other_packs_keep_their_rows(model, texts, pivots, patch) -> None:
    """Without an open window every patch does exactly what it does without us."""
    theirs = PATCHES[patch](model)
    pivot = pivots(theirs)
    closed = masa(p2p(theirs, cross=(0.0, 0.0), self_=(0.0, 0.0)), start=1.0)
    assert torch.equal(run(closed, pivot, texts)[0], run(theirs, pivot, texts)[0])


def test_an_image_prompt_does_not_disturb_word_maps(model, texts, pivots) -> None:
    """Recorded maps are the words' alone and still sum to one over them."""
    watched, recorder = recorded(other_packs.image_prompt(model))
    edited = run(watched, pivots(watched), texts)[0]
    shares = recorder.results.get(edited[0]).sum(-1)
    torch.testing.assert_close(
        shares, torch.full_like(shares, float(shares[0, 0])), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("control", CONTROLS)
def test_control_nets_steer_source_and_target(model, kind, texts, pivots, control) -> None:
    """Applied to both prompts by two nodes, as people do; conditioned and unconditioned rows then
    run apart."""
    import nodes

    if kind == "SDXL":
        pytest.skip("the small ControlNet is built in the shape of SD1.x")
    settings = {**unets.COMMON, **unets.SHAPES[kind], **unets.HEADS}
    network = other_packs.control_net(model, settings)
    hint = torch.rand(1, 8 * SIZE[0], 8 * SIZE[1], 3, generator=torch.Generator().manual_seed(4))

    def steered(conditioning: Any, strength: float = 1.0) -> Any:
        apply = nodes.ControlNetApplyAdvanced().apply_controlnet
        return apply(conditioning, conditioning, network, hint, strength, 0.0, 1.0)[0]

    ours, pivot = CONTROLS[control](model), pivots(model)
    both = {"source": steered(texts[SOURCE]), "target": steered(texts[TARGET])}
    together = run(ours, pivot, texts, "none", **both)[0]
    assert torch.isfinite(together).all()
    assert differ(together, run(ours, pivot, texts, "none")[0])
    assert differ(together, run(model, pivot, texts, "none", **both)[0])
    with pytest.raises(PivotError, match="the same control on source and target"):
        run(ours, pivot, texts, source=both["source"], target=steered(texts[TARGET], 0.5))


@pytest.mark.parametrize("control", CONTROLS)
def test_token_merging_is_refused_by_name(model, texts, pivots, control) -> None:
    for merged in (
        other_packs.token_merging(CONTROLS[control](model)),
        CONTROLS[control](other_packs.token_merging(model)),
    ):
        with pytest.raises(PivotError, match="token merging .*Tome Patch Model"):
            run(merged, pivots(model), texts)


def test_packs_with_tome_in_their_names_are_none(model, texts, pivots) -> None:
    """The host names a pack's module after its whole path."""

    def effect(
        n: torch.Tensor, context: Any, value: Any, extra: dict[str, Any]
    ) -> tuple[Any, Any, Any]:
        return n * 1.1, context, value

    effect.__module__, effect.__qualname__ = (
        "_x_home_x_tomek_x_custom_nodes_x_other",
        "CustomEffects.patch",
    )
    theirs = p2p(model)
    theirs.set_model_attn1_patch(effect)
    assert torch.isfinite(run(theirs, pivots(model), texts)[0]).all()


def test_another_packs_merging_is_noticed_where_it_matters(model, texts, pivots) -> None:
    def halved(
        n: torch.Tensor, context: Any, value: Any, extra: dict[str, Any]
    ) -> tuple[Any, Any, Any]:
        return n[:, ::2], context, value

    def doubled(n: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        return n.repeat_interleave(2, 1)

    theirs = model.clone()
    theirs.set_model_attn1_patch(halved)
    theirs.set_model_attn1_output_patch(doubled)
    with pytest.raises(PivotError, match="tokens, but got .*: token merging or another patch"):
        run(masa(theirs), pivots(model), texts)


@pytest.mark.parametrize("control", CONTROLS)
def test_separate_calls_for_cond_and_uncond_give_the_same(
    model, texts, pivots, control, monkeypatch
) -> None:
    """Low memory splits the batch; every row still finds its source. Targets alone have none in
    their call."""
    ours, pivot = CONTROLS[control](model), pivots(model)
    together = [run(ours, pivot, texts, name)[0] for name in ("none", "direct")]
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e18)
    apart = [run(ours, pivot, texts, name)[0] for name in ("none", "direct")]
    for a, b in zip(together, apart, strict=True):
        close(a, b)


@pytest.mark.parametrize("patch", ["image_prompt", "sharpener", "free_u"])
def test_generated_pictures_compose_too(model, texts, patch) -> None:
    from pivot_edit.host.text.conditioning import stack_rows

    rows = stack_rows(texts[SOURCE], texts[TARGET])
    theirs = PATCHES[patch]
    made = ksampler(p2p(theirs(model)), rows, texts[NEGATIVE], 2)
    assert torch.equal(made, ksampler(theirs(p2p(model)), rows, texts[NEGATIVE], 2))
    assert differ(made, ksampler(p2p(model), rows, texts[NEGATIVE], 2))
    assert differ(made[1:], ksampler(theirs(model), texts[TARGET], texts[NEGATIVE], 1))
