"""The edit on real UNets: exactness, rows, composition with other packs, and a clean model
afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import unets
from pivot_edit.attention import PromptToPrompt
from pivot_edit.core import step
from pivot_edit.core.control import Controller
from pivot_edit.core.errors import PivotError
from pivot_edit.core.words import Prompt, PromptPair, Word
from pivot_edit.host.model.layers import layers_of
from pivot_edit.host.run.patching import add_controller
from pivot_edit.host.tasks.editing import edit, edit_guider
from pivot_edit.host.tasks.inversion import InversionParts, invert_latent
from pivot_edit.inversion import Ddim

KINDS = tuple(unets.SHAPES)


class Passthrough(Controller):
    """A controller that wants every site and changes nothing."""

    def wants(self, kind: str, place: Any) -> bool:
        return True

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        return attend(call)


class Remarks(Passthrough):
    """A controller that counts its calls and says so."""

    title = "Counter"

    def begin(self) -> list[None]:
        return []

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        state.append(None)
        return attend(call)

    def remark(self, state: Any) -> tuple[str, ...]:
        return (f"It saw {len(state)} calls.", "It is well.")


def pair(changed: int = 3, words: int = 6) -> PromptPair:
    """Two prompts of six one-token words that differ in one; `changed` = -1 gives twice the same
    prompt."""

    def prompt(other: int) -> Prompt:
        names = [f"w{i}" if i != other else "new" for i in range(words)]
        tokens = [49406, *(300 + i if i != other else 999 for i in range(words))]
        tokens += [49407] * (77 - len(tokens))
        listed = tuple(Word(name, (i + 1,), (i + 1,)) for i, name in enumerate(names))
        return Prompt(" ".join(names), listed, tuple(tokens))

    return PromptPair(prompt(-1), prompt(changed))


def p2p(model: Any, changed: int = 3, mode: str = "auto", **windows: Any) -> Any:
    return add_controller(model, PromptToPrompt((pair(changed).align(mode),), **windows))


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return unets.build(kind)


@pytest.fixture(scope="module")
def texts(kind: str) -> dict[str, Any]:
    return {
        name: unets.conditioning(kind, seed)
        for seed, name in enumerate(("source", "target", "negative"))
    }


@pytest.fixture(scope="module")
def trajectory(model: Any, texts: dict[str, Any]) -> Any:
    with torch.inference_mode():
        return invert_latent(
            model, unets.latent(16, 24), texts["source"], 4, "reference", Ddim(), False
        )[0]


def run(
    model: Any, trajectory: Any, texts: dict[str, Any], correction: str = "direct", cfg: float = 5.0
) -> Any:
    edited, back, report, _ = edit(model, trajectory, **texts, cfg=cfg, correction=correction)
    return edited["samples"], back["samples"], report


@pytest.mark.parametrize("correction", ["none", "negative_prompt"])
def test_a_controller_that_changes_nothing_is_bit_equal_to_none(
    model, trajectory, texts, correction
) -> None:
    plain = run(model, trajectory, texts, correction)
    passed = run(add_controller(model, Passthrough()), trajectory, texts, correction)
    assert torch.equal(plain[0], passed[0]) and torch.equal(plain[1], passed[1])


def test_what_controllers_remark_of_a_run_is_in_the_report_and_on_the_node(
    trajectory, texts, model, caplog
) -> None:
    """Each sentence once, and those of the last run only."""
    from pivot_edit.nodes.sampling import PivotEditSampler

    watched = add_controller(add_controller(model, Remarks()), Remarks())
    calls = 2 * len(layers_of(model)) * trajectory.steps
    expected = [f"Counter: It saw {calls} calls.", "Counter: It is well."]
    for _ in range(2):
        assert run(watched, trajectory, texts)[2].splitlines()[1:] == expected
    options = {**texts, "cfg": 5.0, "correction": "direct"}
    with caplog.at_level("INFO"):
        node = PivotEditSampler.execute(watched, trajectory, **options)
    assert node.args[2].splitlines()[1:] == expected
    assert node.ui.as_dict()["text"] == (node.args[2],)
    assert [line for line in caplog.messages if line.startswith("Counter")] == expected
    plain = run(model, trajectory, texts)[2]
    assert len(plain.splitlines()) == 1


def test_a_run_that_fails_leaves_no_remarks_of_the_run_before(
    trajectory, texts, model, monkeypatch
) -> None:
    parts = InversionParts.of(model, trajectory, "direct")
    guider = edit_guider(
        add_controller(model, Remarks()), trajectory, **texts, cfg=5.0, correction="direct"
    )
    noise, latent = parts.noise.generate_noise(parts.latent), parts.latent["samples"]
    guider.sample(noise, latent, parts.sampler, parts.sigmas, seed=0)
    assert len(guider.remarks) == 2

    def stop(*args: Any) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(step, "check_finite", stop)
    with pytest.raises(RuntimeError, match="planted"):
        guider.sample(noise, latent, parts.sampler, parts.sigmas, seed=0)
    assert guider.remarks == ()


def test_running_the_source_row_for_a_controller_changes_only_rounding(
    model, trajectory, texts
) -> None:
    """Under direct inversion a controller adds the source row to the batch; kernels then round
    differently."""
    plain = run(model, trajectory, texts, "direct")
    passed = run(add_controller(model, Passthrough()), trajectory, texts, "direct")
    torch.testing.assert_close(plain[0], passed[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(plain[1], passed[1])


def test_closed_windows_are_bit_equal_to_no_controller(model, trajectory, texts) -> None:
    plain = run(model, trajectory, texts)
    closed = run(p2p(model, cross=(0.0, 0.0), self_=(0.0, 0.0)), trajectory, texts)
    assert torch.equal(plain[0], closed[0])


def test_the_controller_changes_the_target_and_not_the_source(model, trajectory, texts) -> None:
    plain = run(model, trajectory, texts, "none")
    edited = run(p2p(model), trajectory, texts, "none")
    assert torch.equal(plain[1], edited[1])
    assert (plain[0] - edited[0]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["replace", "refine"])
def test_identical_prompts_give_the_source_row_bit_for_bit(model, trajectory, texts, mode) -> None:
    """Oracle 10, with every window open at every layer."""
    same = {**texts, "target": texts["source"]}
    edited, back, _ = run(
        p2p(model, -1, mode, cross=(0, 1), self_=(0, 1), self_limit=1), trajectory, same, "none"
    )
    assert torch.equal(edited, back)


def test_identical_prompts_under_negative_prompt_give_the_source_row(
    model, trajectory, texts
) -> None:
    """To rounding only: the target's unconditional row is a call of its own, and kernels depend on
    batch size."""
    edited, back, _ = run(
        p2p(model, -1), trajectory, {**texts, "target": texts["source"]}, "negative_prompt"
    )
    torch.testing.assert_close(edited, back, rtol=1e-3, atol=1e-3 * float(back.abs().max()))


def test_direct_returns_the_encoders_latent_at_any_cfg(model, trajectory, texts) -> None:
    for cfg in (1.0, 7.5, 20.0):
        back = run(model, trajectory, texts, "direct", cfg)[1]
        expected = model.model.process_latent_out(trajectory.latents[0])
        assert torch.equal(back, expected)


def test_the_target_of_direct_is_plain_guidance(model, trajectory, texts) -> None:
    """Oracle 33: without attention control the correction of the source row leaves the target
    alone."""
    direct = run(model, trajectory, texts, "direct")[0]
    plain = run(model, trajectory, texts, "none")[0]
    torch.testing.assert_close(direct, plain, rtol=1e-3, atol=1e-3)


def test_negative_prompt_source_does_not_depend_on_cfg(model, trajectory, texts) -> None:
    """Oracle 21: guidance cancels on the source row, bitwise."""
    backs = [run(model, trajectory, texts, "negative_prompt", cfg)[1] for cfg in (1.5, 7.5, 20.0)]
    assert torch.equal(backs[0], backs[1]) and torch.equal(backs[0], backs[2])


def test_negative_prompt_guides_the_target_away_from_the_source_prompt(
    model, trajectory, texts
) -> None:
    npi, plain = (run(model, trajectory, texts, name)[0] for name in ("negative_prompt", "none"))
    by_hand = run(model, trajectory, {**texts, "negative": texts["source"]}, "none")[0]
    tolerance = 1e-3 * float(npi.abs().max())
    torch.testing.assert_close(npi, by_hand, rtol=1e-3, atol=tolerance)
    assert (npi - plain).abs().max() > 10 * tolerance


def test_negative_prompt_with_the_empty_text_as_source_is_plain_guidance(
    model, kind, texts
) -> None:
    """Oracle 22: NPI with C_src replaced by C_0 is plain CFG on the target."""
    same = {**texts, "source": texts["negative"]}
    pivot = invert_latent(model, unets.latent(), same["source"], 3, "reference", Ddim(), False)[0]
    npi, plain = (run(model, pivot, same, name)[0] for name in ("negative_prompt", "none"))
    torch.testing.assert_close(npi, plain, rtol=1e-3, atol=1e-3)


def test_cond_and_uncond_in_separate_calls_give_the_same(
    model, trajectory, texts, monkeypatch
) -> None:
    patched = p2p(model)
    together = run(patched, trajectory, texts, "none")[0]
    calls = []
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e18)
    original = model.model.apply_model

    def apply_model(x, *args, **kwargs):
        calls.append(len(x))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(model.model, "apply_model", apply_model)
    apart = run(patched, trajectory, texts, "none")[0]
    assert set(calls) == {2} and len(calls) == 2 * trajectory.steps
    torch.testing.assert_close(apart, together, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_another_packs_patch_in_the_same_slot_still_runs(model, trajectory, texts, first) -> None:
    """Its effect and ours are both there, whichever was applied first."""
    seen = []

    def theirs(q, k, v, extra):
        from comfy.ldm.modules.attention import optimized_attention

        seen.append(len(q))
        return optimized_attention(q, k, v, extra["n_heads"]) * 1.1

    def add_theirs(patched: Any) -> Any:
        clone = patched.clone()
        clone.set_model_attn2_replace(theirs, "middle", 0)
        return clone

    both = p2p(add_theirs(model)) if first == "theirs" else add_theirs(p2p(model))
    together = run(both, trajectory, texts)[0]
    assert seen and not torch.allclose(
        together, run(add_theirs(model), trajectory, texts)[0], atol=1e-4
    )
    assert not torch.allclose(together, run(p2p(model), trajectory, texts)[0], atol=1e-4)


def test_pag_runs_beside_the_controller(model, trajectory, texts) -> None:
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    with_pag = PerturbedAttentionGuidance.execute(p2p(model), 3.0).args[0]
    changed = run(with_pag, trajectory, texts)[0]
    assert torch.isfinite(changed).all()
    assert not torch.allclose(changed, run(p2p(model), trajectory, texts)[0], atol=1e-4)


def test_rows_are_only_run_where_somebody_reads_them(model, trajectory, texts) -> None:
    reports = {
        name: run(p2p(model), trajectory, texts, name)[2]
        for name in ("none", "negative_prompt", "direct")
    }
    assert "4.00 UNet rows" in reports["none"] and "3.00 UNet rows" in reports["negative_prompt"]
    window = min(int(0.8 * (trajectory.steps + 1)), trajectory.steps)
    assert f"{2 + window / trajectory.steps:.2f} UNet rows" in reports["direct"]


@pytest.mark.parametrize("fail", ["exception", "interrupt"])
def test_after_a_failure_the_model_samples_as_before(
    model, trajectory, texts, fail, monkeypatch
) -> None:
    import comfy.model_management as management

    patched = p2p(model)
    options = copy.deepcopy(model.model_options)
    before, before_plain = run(patched, trajectory, texts)[0], run(model, trajectory, texts)[0]

    def stop(*args: Any) -> None:
        if fail == "interrupt":
            raise management.InterruptProcessingException()
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(step, "check_finite", stop)
        expected = management.InterruptProcessingException if fail == "interrupt" else RuntimeError
        with pytest.raises(expected):
            run(patched, trajectory, texts)
    assert torch.equal(run(patched, trajectory, texts)[0], before)
    assert torch.equal(run(model, trajectory, texts)[0], before_plain)
    assert model.model_options == options


def test_the_hosts_interrupt_stops_an_inversion(model, texts) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing()
    try:
        with pytest.raises(management.InterruptProcessingException):
            invert_latent(model, unets.latent(), texts["source"], 3, "reference", Ddim(), False)
    finally:
        management.interrupt_current_processing(False)


def test_a_b_a_gives_a(model, trajectory, texts) -> None:
    first = run(p2p(model), trajectory, texts)[0]
    run(p2p(model, 2, "refine"), trajectory, texts, "none")
    assert torch.equal(run(p2p(model), trajectory, texts)[0], first)


def test_inversion_is_deterministic_and_keeps_the_encoders_latent(model, texts, trajectory) -> None:
    again = invert_latent(
        model, unets.latent(16, 24), texts["source"], 4, "reference", Ddim(), False
    )[0]
    assert torch.equal(again.latents, trajectory.latents)
    assert torch.equal(
        again.latents[0], model.model.process_latent_in(unets.latent(16, 24)["samples"])
    )


def test_a_batch_is_the_same_as_single_pictures(model, texts) -> None:
    batch = unets.latent(8, 8, batch=2)
    single = {"samples": batch["samples"][1:]}
    both, one = (
        invert_latent(model, x, texts["source"], 2, "reference", Ddim(), False)[0]
        for x in (batch, single)
    )
    torch.testing.assert_close(both.latents[:, 1:], one.latents, rtol=1e-4, atol=1e-4)
    edits = [run(p2p(model), pivot, texts, cfg=1.5)[0] for pivot in (both, one)]
    assert len(edits[0]) == 2
    torch.testing.assert_close(edits[0][1:], edits[1], rtol=5e-3, atol=5e-3)


def test_prompts_of_unequal_length_run_in_one_batch(model, kind, trajectory, texts) -> None:
    long = {**texts, "target": unets.conditioning(kind, 7, tokens=154)}
    assert torch.isfinite(run(model, trajectory, long, "none")[0]).all()


def test_the_parts_give_what_the_edit_sampler_gives(model, trajectory, texts) -> None:
    """SamplerCustomAdvanced with our sampler, and with the stock euler sampler, against the Edit
    Sampler."""
    import comfy.samplers

    patched = p2p(model)
    expected, back, _ = run(patched, trajectory, texts)
    parts = InversionParts.of(patched, trajectory, "direct")
    for sampler, tolerance in (
        (parts.sampler, 0.0),
        (comfy.samplers.sampler_object("euler"), 2e-3),
    ):
        guider = edit_guider(patched, trajectory, **texts, cfg=5.0, correction="direct")
        noise = parts.noise.generate_noise(parts.latent)
        rows = guider.sample(noise, parts.latent["samples"], sampler, parts.sigmas, seed=0)
        scale = 1.0 if tolerance == 0.0 else (1.0 + float(trajectory.sigmas[0]) ** 2) ** 0.5
        torch.testing.assert_close(rows[1:], expected * scale, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(rows[:1], back * scale, rtol=tolerance, atol=tolerance)


def test_a_plain_sampler_is_told_what_the_model_needs(model, texts) -> None:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(p2p(model))
    guider.set_conds(texts["target"], texts["negative"])
    x = unets.latent()["samples"]
    with pytest.raises(PivotError, match="Edit Sampler"):
        guider.sample(
            x, x, comfy.samplers.sampler_object("euler"), torch.tensor([5.0, 1.0, 0.0]), seed=0
        )
