"""Guidance rules, negative prompts and inversions of other kinds on real UNets: what every row
reads, and where it ends up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import unets
from pivot_edit.attention import LocalBlend, MasaCtrl, PromptToPrompt
from pivot_edit.attention.masactrl import decoder_layers
from pivot_edit.core import step as edit_step
from pivot_edit.core.errors import PivotError
from pivot_edit.core.guidance import Guidance
from pivot_edit.core.schedule import slerp
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.guidance import ClassifierFree, Proximal
from pivot_edit.host.model.layers import layers_of
from pivot_edit.host.run import sampling
from pivot_edit.host.run.patching import add_controller
from pivot_edit.host.run.replay import ReplaySampler
from pivot_edit.host.run.sampling import run_edit
from pivot_edit.host.tasks.editing import edit, edit_guider
from pivot_edit.host.tasks.guidance import PRESETS
from pivot_edit.host.tasks.inversion import InversionParts, invert_latent, with_correction
from pivot_edit.host.text.conditioning import join_rows
from pivot_edit.inversion import Ddim, Direct, FixedPoint, NegativePrompt, NullText
from pivot_edit.inversion.null_text import NULLS
from test_controls import close, differ
from test_editing import Passthrough, pair
from tools.pack import part

SIZE, STEPS, CFG = (8, 16), 4, 5.0
ENDLESS = Proximal(threshold=10.0)
ALWAYS = {"inversion_rate": 1.0, "guide_window": (0.0, 1.0)}
PROXNPI = dataclasses.replace(PRESETS["proxnpi"], guide_window=(0.25, 1.0), guide_time=0.0)


ALSO_V = pytest.mark.parametrize("kind", ["SD15", "SD20"], indirect=True)
"""With a model that predicts v."""
ALSO_POOLED = pytest.mark.parametrize("kind", ["SD15", "SDXL"], indirect=True)
"""With a model that reads pooled vectors."""


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "SD15")


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return unets.build(kind, shallow=True)


@pytest.fixture(scope="module")
def texts(kind: str) -> dict[str, Any]:
    return {
        name: unets.conditioning(kind, seed)
        for seed, name in enumerate(("source", "target", "negative", "other"))
    }


@pytest.fixture(scope="module")
def trajectory(model: Any, texts: dict[str, Any]) -> Trajectory:
    return inverted(model, texts)


def inverted(model: Any, texts: dict[str, Any], batch: int = 1, **options: Any) -> Trajectory:
    chosen = {"steps": STEPS, "inverter": Ddim(), **options}
    with torch.inference_mode():
        return invert_latent(
            model,
            unets.latent(*SIZE, batch=batch),
            texts["source"],
            end="reference",
            check=False,
            **chosen,
        )[0]


def run(
    model: Any,
    trajectory: Trajectory,
    texts: dict[str, Any],
    rule: Guidance | None = None,
    correction: str = "none",
    cfg: float = CFG,
    **replaced: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(edited, reconstructed)."""
    chosen = {name: {**texts, **replaced}[name] for name in ("source", "target", "negative")}
    edited, back, _, _ = edit(
        model, trajectory, **chosen, cfg=cfg, correction=correction, guidance=rule
    )
    return edited["samples"], back["samples"]


def guider_of(model: Any, trajectory: Trajectory, texts: dict[str, Any], **options: Any) -> Any:
    chosen = {name: texts[name] for name in ("source", "target", "negative")}
    return edit_guider(model, trajectory, **{**chosen, "cfg": CFG, "correction": "auto", **options})


def on_host(model: Any, latents: torch.Tensor) -> torch.Tensor:
    return model.model.process_latent_out(latents)


def p2p(model: Any, targets: int = 1) -> Any:
    return add_controller(model, PromptToPrompt((pair().align("replace"),) * targets))


def masa(model: Any) -> Any:
    return add_controller(model, MasaCtrl(decoder_layers(layers_of(model)), start=0.25))


class Watch(Passthrough):
    """Keeps the rows after every step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def wants(self, kind: str, place: Any) -> bool:
        return False

    def after_step(self, x: Any, rows: Any, place: Any, state: Any) -> Any:
        self.seen.append(x.clone())
        return x


# rules that change nothing


@pytest.mark.parametrize("correction", ["none", "negative_prompt", "direct"])
def test_the_plain_rule_and_a_quantile_of_zero_are_no_rule_bit_for_bit(
    model, trajectory, texts, correction
) -> None:
    plain = run(model, trajectory, texts, None, correction)
    for rule in (
        ClassifierFree(),
        Proximal("soft", 0.0),
        Proximal("hard", 0.0, population="legacy"),
    ):
        made = run(model, trajectory, texts, rule, correction)
        assert torch.equal(made[0], plain[0]) and torch.equal(made[1], plain[1])


def test_outside_its_window_a_rule_is_none_bit_for_bit(model, trajectory, texts) -> None:
    rule = Proximal("soft", 0.9, window=(0.0, 0.0), **ALWAYS)
    assert torch.equal(run(model, trajectory, texts, rule)[0], run(model, trajectory, texts)[0])


# against the host's own guidance


def by_the_host(
    model: Any, trajectory: Trajectory, positive: Any, negative: Any, rows: int
) -> torch.Tensor:
    """The trajectory's noise back to pictures under a stock guider, which knows nothing of sources
    and targets."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(CFG)
    latent = sampling.clean_rows(model, trajectory, rows - 1)
    sampler = ReplaySampler(trajectory, "none")
    return guider.sample(torch.zeros_like(latent), latent, sampler, trajectory.descending, seed=0)


@ALSO_V
def test_without_a_rule_the_edit_guider_is_the_hosts_own_guidance_bit_for_bit(
    model, trajectory, texts
) -> None:
    both = join_rows(texts["source"], texts["target"], "test")
    edited, back = run(model, trajectory, texts)
    assert torch.equal(
        torch.cat([back, edited]), by_the_host(model, trajectory, both, texts["negative"], 2)
    )


@ALSO_V
@pytest.mark.parametrize("operator", ["soft", "hard"])
def test_a_rule_is_the_same_rule_written_for_the_hosts_own_guider(
    model, trajectory, texts, operator
) -> None:
    """A fixed threshold in units of eps, for the target alone."""
    threshold = 0.3

    def thresholded(args: dict[str, Any]) -> torch.Tensor:
        sigma, delta = args["sigma"][:, None, None, None], args["cond"] - args["uncond"]
        over = (delta.abs() / sigma - threshold).clamp_min(0.0) * sigma
        kept = over * delta.sign() if operator == "soft" else delta * (over > 0)
        return args["uncond"] + args["cond_scale"] * kept

    patched = model.clone()
    patched.set_model_sampler_cfg_function(thresholded)
    edited = run(model, trajectory, texts, Proximal(operator, threshold=threshold))[0]
    close(edited, by_the_host(patched, trajectory, texts["target"], texts["negative"], 1), 5e-3)
    assert differ(edited, run(model, trajectory, texts)[0])


# rules that let nothing through


@ALSO_V
@pytest.mark.parametrize("rule", [ENDLESS, Proximal("hard", 1.0)])
def test_above_every_difference_the_target_of_npi_is_the_reconstruction(
    model, trajectory, texts, rule
) -> None:
    """Oracle 26: eps_u alone, which under NPI is the source's."""
    edited, back = run(model, trajectory, texts, rule, "negative_prompt")
    close(edited, back)
    assert differ(run(model, trajectory, texts, None, "negative_prompt")[0], back)


@pytest.mark.parametrize("correction", ["none", "direct"])
@pytest.mark.parametrize("cfg", [1.0, CFG])
def test_above_every_difference_the_target_is_the_unconditional_prediction(
    model, trajectory, texts, correction, cfg
) -> None:
    """Whatever the cfg, 1 included."""
    edited = run(model, trajectory, texts, ENDLESS, correction, cfg)[0]
    close(edited, run(model, trajectory, texts, target=texts["negative"])[0])


@pytest.mark.parametrize("correction", ["none", "negative_prompt", "direct"])
def test_where_nothing_is_edited_the_target_is_on_the_trajectory_after_every_guided_step(
    model, trajectory, texts, correction
) -> None:
    """Oracle 28 in the host."""
    watch, rule = Watch(), dataclasses.replace(ENDLESS, inversion_rate=1.0, guide_window=(0.5, 1.0))
    run(add_controller(model, watch), trajectory, texts, rule, correction)
    assert len(watch.seen) == STEPS
    for step, x in enumerate(watch.seen):
        pivot = trajectory.latents[STEPS - 1 - step]
        assert torch.equal(x[1:], pivot) == (step >= 2)
        assert torch.equal(x[:1], pivot) == (step >= 2 or correction == "direct")


def test_a_smaller_rate_pulls_less(model, trajectory, texts) -> None:
    pulled = [
        run(
            model,
            trajectory,
            texts,
            Proximal("soft", 0.9, **{**ALWAYS, "inversion_rate": rate}),
            "negative_prompt",
        )[0]
        for rate in (0.0, 0.3, 1.0)
    ]
    picture = on_host(model, trajectory.latents[0])
    distances = [float((one - picture).norm()) for one in pulled]
    assert distances[0] > 1.05 * distances[1] > 1.1 * distances[2]


def test_reconstruction_guidance_pulls_to_the_picture(model, trajectory, texts) -> None:
    picture = on_host(model, trajectory.latents[0])
    free, pulled = (
        run(
            model,
            trajectory,
            texts,
            Proximal("soft", 0.9, reconstruction_rate=rate, guide_window=(0.0, 1.0)),
        )[0]
        for rate in (0.0, 0.5)
    )
    assert (pulled - picture).norm() < 0.8 * (free - picture).norm()


# the source row


@pytest.mark.parametrize("population", ["target", "legacy"])
def test_direct_keeps_the_source_exact_under_every_rule(
    model, trajectory, texts, population
) -> None:
    rates = {"inversion_rate": 0.5, "reconstruction_rate": 0.5, "guide_window": (0.0, 1.0)}
    rule = Proximal("soft", 0.6, population=population, **rates)
    for controlled in (p2p(model), masa(model)):
        back = run(controlled, trajectory, texts, rule, "direct")[1]
        assert torch.equal(back, on_host(model, trajectory.latents[0]))


@pytest.mark.parametrize(
    ("rule", "drifts"), [(None, True), (ClassifierFree(1.0), False), (ClassifierFree(3.0), True)]
)
def test_the_report_remarks_the_cfg_of_the_source(model, trajectory, texts, rule, drifts) -> None:
    named = {name: texts[name] for name in ("source", "target", "negative")}
    report = edit(model, trajectory, **named, cfg=CFG, correction="none", guidance=rule)[2]
    assert ("inversion was made at cfg 1" in report) == drifts


@pytest.mark.parametrize("rule", [ClassifierFree(1.0), Proximal("soft", 0.6, source_cfg=1.0)])
def test_a_source_cfg_of_one_reconstructs_as_without_guidance(
    model, trajectory, texts, rule
) -> None:
    back = run(model, trajectory, texts, rule)[1]
    close(back, run(model, trajectory, texts, cfg=1.0)[1])
    assert differ(back, run(model, trajectory, texts)[1])


def test_source_and_target_have_the_cfg_that_each_is_given(model, trajectory, texts) -> None:
    edited, back = run(model, trajectory, texts, ClassifierFree(2.0))
    close(edited, run(model, trajectory, texts)[0])
    close(back, run(model, trajectory, texts, cfg=2.0)[1])


def test_a_guidance_of_one_on_every_row_is_none_bit_for_bit(model, trajectory, texts) -> None:
    """Oracle 34: ProxMasaCtrl's [1, 1] without its operator and attention."""
    rows = (run(model, trajectory, texts, rule, cfg=1.0) for rule in (ClassifierFree(1.0), None))
    assert all(torch.equal(a, b) for a, b in zip(*rows, strict=True))


@pytest.mark.parametrize("correction", ["direct", "negative_prompt"])
def test_leaving_rows_out_changes_nothing(model, trajectory, texts, correction) -> None:
    """A legacy quantile counts source rows: whether they were run for MasaCtrl or not, guidance
    cancels on them."""
    edits = []
    for economy in (True, False):
        guider = guider_of(
            masa(model),
            trajectory,
            texts,
            correction=correction,
            guidance=PRESETS["proxnpi_pie_bench"],
        )
        guider.economy = economy
        edits.append(run_edit(guider).edited)
    close(*edits)


# guiders and samplers


@pytest.mark.parametrize("correction", ["none", "negative_prompt", "direct"])
def test_the_guider_gives_what_the_edit_sampler_gives(model, trajectory, texts, correction) -> None:
    """With our sampler bit for bit; stock euler has the changes after a step folded into what is
    denoised."""
    import comfy.samplers

    patched = p2p(model)
    rule = Proximal(
        "soft",
        0.6,
        inversion_rate=0.7,
        reconstruction_rate=0.5,
        guide_window=(0.25, 1.0),
        dilation=0,
    )
    expected = torch.cat(run(patched, trajectory, texts, rule, correction)[::-1])
    parts = InversionParts.of(patched, trajectory, correction)
    for sampler, share in ((parts.sampler, 0.0), (comfy.samplers.sampler_object("euler"), 2e-3)):
        guider = guider_of(patched, trajectory, texts, correction=correction, guidance=rule)
        noise = parts.noise.generate_noise(parts.latent)
        rows = guider.sample(noise, parts.latent["samples"], sampler, parts.sigmas, seed=0)
        scale = (1.0 + float(trajectory.sigmas[0]) ** 2) ** 0.5 if share else 1.0
        torch.testing.assert_close(
            rows, expected * scale, rtol=0, atol=share * float(expected.abs().max())
        )


def defaults(node: Any) -> dict[str, Any]:
    """A node's widgets as they come."""
    return {
        entry.id: entry.default
        for entry in node.define_schema().inputs
        if hasattr(entry, "default")
    }


def test_the_nodes_make_the_rules_that_they_name(model, trajectory, texts) -> None:
    nodes = part("nodes.guidance")
    rule_node, guider_node = nodes.PivotProximalGuidance, nodes.PivotProximalGuider
    own = defaults(rule_node)
    assert {
        name: rule_node.execute(**{**own, "preset": name}).args[0] for name in PRESETS
    } == PRESETS
    assert isinstance(rule_node.execute(**own).args[0], Proximal)
    plain = rule_node.execute(**{**own, "operator": "cfg", "source_cfg": 1.5}).args[0]
    assert plain == ClassifierFree(1.5)
    values = {
        "operator": "hard",
        "quantile": 0.3,
        "threshold": 0.2,
        "population": "legacy",
        "start": 0.1,
        "end": 0.9,
    }
    values |= {
        "inversion_rate": 0.2,
        "reconstruction_rate": 0.4,
        "guide_start": 0.5,
        "guide_end": 0.7,
        "dilation": 3,
    }
    made = rule_node.execute(**{**own, **values, "source_cfg": 0.0}).args[0]
    assert made == Proximal("hard", 0.3, 0.2, "legacy", (0.1, 0.9), 0.2, 0.4, (0.5, 0.7), 3, None)
    edits = {
        **{name: texts[name] for name in ("source", "target", "negative")},
        "inversion": trajectory,
    }
    edits |= {"model": model, "cfg": CFG, "correction": "none"}
    guider = guider_node.execute(**edits, **{**own, **values}).args[0]
    assert guider.guidance == made and guider.correction.name == "none" and guider.cfg == CFG


def test_the_values_that_a_preset_uses_are_shown(model, trajectory, texts) -> None:
    """The node's own values count for nothing under a preset, and go on saying 0.4 and target."""
    node = part("nodes.guidance").PivotProximalGuidance
    (preset, *_), own = node.define_schema().inputs, defaults(node)
    said = {}
    for name in ("custom", *PRESETS):
        output = node.execute(**{**own, "preset": name})
        (said[name],) = output.ui.as_dict()["text"]
        report = run_report(model, trajectory, texts, output.args[0])
        assert said[name] in report.splitlines()[1:]
    assert "quantile 0.4," in said["custom"] and "population target," in said["custom"]
    for values in ("quantile 0.7,", "population legacy,", "guide_time 400."):
        assert values in said["proxnpi"]
    assert "proxnpi: operator soft, quantile 0.7, population legacy, inversion_rate 1, " in (
        preset.tooltip
    )
    assert "quantile" not in run_report(model, trajectory, texts, None)


def run_report(model: Any, trajectory: Any, texts: dict[str, Any], rule: Any) -> str:
    options = {**{name: texts[name] for name in ("source", "target", "negative")}, "cfg": CFG}
    return edit(model, trajectory, **options, correction="none", guidance=rule)[2]


def test_guide_time_pulls_by_the_models_own_time(model, trajectory, texts) -> None:
    """Below a step's own time nothing pulls at it, above it does: the host's lookup of times."""
    sampling = model.get_model_object("model_sampling")
    times = [float(sampling.timestep(sigma)) for sigma in trajectory.descending[:-1]]
    place = len(times) // 2
    runs = {
        name: run(model, trajectory, texts, Proximal(**{**ALWAYS, **options}), "none")[0]
        for name, options in {
            "under": {"guide_time": times[place] - 0.5},
            "over": {"guide_time": times[place] + 0.5},
            "window": {"guide_window": (place / len(times), 1.0)},
            "later": {"guide_window": ((place + 1) / len(times), 1.0)},
        }.items()
    }
    assert torch.equal(runs["over"], runs["window"])
    assert torch.equal(runs["under"], runs["later"])
    assert not torch.equal(runs["over"], runs["under"])


# what rows read


def reading(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[list[int], torch.Tensor, Any]]:
    """Fills, while a run goes on: the chunks of every UNet call, the text of its rows, and its
    vectors; rows that are left out inside the UNet are among them."""
    calls: list[tuple[list[int], torch.Tensor, Any]] = []
    original = model.model.apply_model

    def apply_model(x: Any, t: Any, **conds: Any) -> Any:
        options = conds["transformer_options"]
        calls.append(
            (list(options["cond_or_uncond"]), conds["c_crossattn"].clone(), conds.get("y"))
        )
        return original(x, t, **conds)

    monkeypatch.setattr(model.model, "apply_model", apply_model)
    return calls


def unconditional(calls: Any, rows: int) -> list[tuple[torch.Tensor, Any]]:
    """Text [rows, T, D] and vectors [rows, V] of the unconditional chunk of every call that has
    one."""
    found = []
    for chunks, text, vectors in calls:
        if 1 in chunks:
            part_ = slice(chunks.index(1) * rows, (chunks.index(1) + 1) * rows)
            found.append((text[part_], None if vectors is None else vectors[part_]))
    return found


def mixed(texts: dict[str, Any], mix: float) -> Any:
    (source, extra), (negative, other) = texts["source"][0], texts["negative"][0]
    pooled = (
        {"pooled_output": slerp(mix, extra["pooled_output"], other["pooled_output"])}
        if extra
        else {}
    )
    return [[slerp(mix, source, negative), pooled]]


NPI: dict[str, tuple[dict[str, Any], Any]] = {
    "source": ({}, lambda step: (0.0, 0.0)),
    "mixed": ({"interpolation": 0.4}, lambda step: (0.4, 0.4)),
    "negative": ({"interpolation": 1.0}, lambda step: (1.0, 1.0)),
    "kept, mixed": ({"interpolation": 0.4, "keep_source": True}, lambda step: (0.0, 0.4)),
    "kept, negative": ({"interpolation": 1.0, "keep_source": True}, lambda step: (0.0, 1.0)),
    "started": ({"start": 0.5}, lambda step: (0.0, 0.0) if step >= 2 else (1.0, 1.0)),
    "started, kept": (
        {"start": 0.5, "interpolation": 0.4, "keep_source": True},
        lambda step: (0.0, 0.4) if step >= 2 else (1.0, 1.0),
    ),
}
"""Options, and what source and target rows then read at a step: by how much the negative prompt."""


@ALSO_POOLED
@pytest.mark.parametrize(
    ("name", "split"), [*((name, False) for name in NPI), ("kept, mixed", True), ("mixed", True)]
)
def test_every_unconditional_row_reads_its_text_and_pooled_vector(
    model, texts, name, split, monkeypatch
) -> None:
    """Two pictures and two targets, in one call and in calls apart (oracle 9)."""
    options, mixes = NPI[name]
    pivot = with_correction(inverted(model, texts, batch=2), NegativePrompt(**options))
    target = join_rows(texts["target"], texts["other"], "test")
    guider = guider_of(model, pivot, {**texts, "target": target})
    guider.economy = False
    if split:
        monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e18)
    calls = reading(model, monkeypatch)
    run_edit(guider)
    read = unconditional(calls, 6)
    assert len(read) == STEPS and len(calls) == STEPS * (1 + split)
    for step, (text, vectors) in enumerate(read):
        for row in range(6):
            expected, extra = mixed(texts, mixes(step)[row >= 2])[0]
            assert torch.equal(text[row : row + 1], expected)
            assert vectors is None or torch.equal(vectors[row, :1280], extra["pooled_output"][0])
    for chunks, text, vectors in calls:
        if 0 in chunks:
            _check_conditional(text, vectors, chunks.index(0) * 6, texts)


def _check_conditional(text: torch.Tensor, vectors: Any, first: int, texts: dict[str, Any]) -> None:
    for row, name in enumerate(name for name in ("source", "target", "other") for _ in range(2)):
        own, extra = texts[name][0]
        assert torch.equal(text[first + row], own[0])
        assert vectors is None or torch.equal(
            vectors[first + row, :1280], extra["pooled_output"][0]
        )


@ALSO_POOLED
@pytest.mark.parametrize("name", NPI)
def test_with_rows_left_out_each_still_reads_its_own(
    model, trajectory, texts, name, monkeypatch
) -> None:
    """Where the source needs no unconditional row there is none; the target's reads what it
    should."""
    options, mixes = NPI[name]
    calls = reading(model, monkeypatch)
    run(model, with_correction(trajectory, NegativePrompt(**options)), texts, correction="auto")
    read = [(text, chunks) for chunks, text, _ in calls if 1 in chunks]
    assert len(read) == STEPS
    for step, (text, chunks) in enumerate(read):
        source, target = mixes(step)
        rows = text[len(text) // len(chunks) * chunks.index(1) :][: len(text) // len(chunks)]
        if source == 0.0:  # left out of the network, and its text is anybody's
            rows = rows[-1:]
        expected = [target] if source == 0.0 else [source, target]
        assert torch.equal(rows, torch.cat([mixed(texts, mix)[0][0] for mix in expected]))


@pytest.mark.parametrize("single", [False, True])
def test_optimised_embeddings_are_read_by_their_own_picture_and_branch(
    model, texts, single, monkeypatch
) -> None:
    pivot = inverted(model, texts, batch=2)
    nulls = torch.randn(
        STEPS, 2, *texts["negative"][0][0].shape[1:], generator=torch.Generator().manual_seed(3)
    )
    pivot = dataclasses.replace(pivot, extras={NULLS: nulls})
    pivot = with_correction(pivot, NullText(single_branch=single))
    calls = reading(model, monkeypatch)
    run(model, pivot, texts, correction="auto")
    read = unconditional(calls, 4)
    assert len(read) == STEPS
    for step, (text, _) in enumerate(read):
        targets = texts["negative"][0][0].expand_as(nulls[step]) if single else nulls[step]
        assert torch.equal(text, torch.cat([nulls[step], targets]))


@ALSO_POOLED
def test_the_ends_of_interpolation_are_the_two_methods(model, trajectory, texts) -> None:
    """Oracle 34."""
    ends = [with_correction(trajectory, NegativePrompt(interpolation=mix)) for mix in (0.0, 1.0)]
    for end, name in zip(ends, ("negative_prompt", "none"), strict=True):
        by_name = run(model, trajectory, texts, correction=name)
        assert all(
            torch.equal(a, b)
            for a, b in zip(run(model, end, texts, correction="auto"), by_name, strict=True)
        )


@pytest.mark.parametrize("interpolation", [0.4, 1.0])
def test_keep_source_keeps_the_source_and_frees_the_target(
    model, trajectory, texts, interpolation
) -> None:
    """The source row is NPI's own, and the target's guidance that from the text in between."""
    kept = with_correction(
        trajectory, NegativePrompt(interpolation=interpolation, keep_source=True)
    )
    edited, back = run(model, kept, texts, correction="auto")
    close(back, run(model, trajectory, texts, correction="negative_prompt")[1])
    close(edited, run(model, trajectory, texts, negative=mixed(texts, interpolation))[0])


@ALSO_POOLED
def test_texts_of_other_lengths_and_settings_are_stacked_or_refused(
    model, kind, trajectory, texts
) -> None:
    kept = with_correction(trajectory, NegativePrompt(interpolation=1.0, keep_source=True))
    long = unets.conditioning(kind, 7, tokens=154)
    assert torch.isfinite(run(masa(model), kept, texts, correction="auto", negative=long)[0]).all()
    area = [[texts["negative"][0][0], {**texts["negative"][0][1], "strength": 0.5}]]
    with pytest.raises(
        PivotError, match="the same strength .* the source and the negative prompt as its uncond"
    ):
        run(model, kept, texts, correction="auto", negative=area)


# with attention control, several targets and pictures


def blended(model: Any) -> Any:
    mask = torch.zeros(1, *SIZE)
    mask[..., 4:12] = 1.0
    return add_controller(model, LocalBlend(mask=mask, start=0.0))


@pytest.mark.parametrize("correction", ["none", "negative_prompt", "direct"])
def test_a_rule_composes_with_every_control(model, trajectory, texts, correction) -> None:
    """The blend has the last word outside of its mask, and each control and the rule change what is
    inside."""
    everything = masa(blended(p2p(model)))
    edited, back = run(everything, trajectory, texts, PROXNPI, correction)
    assert torch.equal(edited[..., :4], back[..., :4]) and torch.equal(
        edited[..., 12:], back[..., 12:]
    )
    inside = edited[..., 4:12]
    for other, rule in (
        (everything, None),
        (blended(p2p(model)), PROXNPI),
        (masa(blended(model)), PROXNPI),
    ):
        assert differ(inside, run(other, trajectory, texts, rule, correction)[0][..., 4:12])


def test_under_npi_the_same_prompt_gives_the_source_whatever_the_rule(
    model, trajectory, texts
) -> None:
    """Oracle 21: there is no difference to guide."""
    same = {"target": texts["source"]}
    for rule in (Proximal("soft", 0.5), Proximal("hard", 0.5)):
        edited, back = run(p2p(model), trajectory, texts, rule, "negative_prompt", **same)
        close(edited, back)
    plain = run(model, trajectory, texts, Proximal("soft", 0.5), "negative_prompt")[1]
    assert torch.equal(plain, run(model, trajectory, texts, None, "negative_prompt", cfg=1.5)[1])


@ALSO_V
@pytest.mark.parametrize("population", ["target", "legacy"])
def test_two_pictures_in_a_batch_are_edited_as_alone(model, texts, population) -> None:
    rule = Proximal("soft", 0.6, population=population)
    both = inverted(model, texts, batch=2)
    one = dataclasses.replace(both, latents=both.latents[:, 1:])
    together, alone = (
        run(p2p(model), pivot, texts, rule, "negative_prompt")[0] for pivot in (both, one)
    )
    close(together[1:], alone, 5e-3)


def test_two_targets_are_edited_as_alone(model, trajectory, texts) -> None:
    rule, both = Proximal("soft", 0.6), join_rows(texts["target"], texts["other"], "test")
    together = run(p2p(model, 2), trajectory, texts, rule, "negative_prompt", target=both)[0]
    for index, name in enumerate(("target", "other")):
        alone = run(p2p(model), trajectory, texts, rule, "negative_prompt", target=texts[name])[0]
        close(together[index : index + 1], alone, 5e-3)


# direct, the reference's way


def test_adding_the_difference_is_setting_the_row(model, trajectory, texts) -> None:
    """Oracle 32; and the target is plain guidance, oracle 33."""
    added, direct = (with_correction(trajectory, Direct(legacy=legacy)) for legacy in (True, False))
    edited, back = run(model, added, texts, correction="auto")
    torch.testing.assert_close(back, on_host(model, trajectory.latents[0]), rtol=0, atol=1e-5)
    close(edited, run(model, direct, texts, correction="auto")[0])
    close(edited, run(model, trajectory, texts)[0])


def test_directs_ablations_leave_the_source_between_trajectory_and_drift(
    model, trajectory, texts
) -> None:
    watches = []
    for options in ({"scale": 0.0}, {"scale": 0.5}, {"every": 2}, {"legacy": True}):
        watches.append(Watch())
        ablated = with_correction(trajectory, Direct(**options))
        run(add_controller(model, watches[-1]), ablated, texts, correction="auto")
    pivots = [trajectory.latents[STEPS - 1 - step] for step in range(STEPS)]
    off = [
        [float((x[:1] - pivot).norm()) for x, pivot in zip(one.seen, pivots, strict=True)]
        for one in watches
    ]
    drift, half, second, exact = off
    assert max(exact) < 1e-4 * min(drift)
    assert half[0] == pytest.approx(drift[0] / 2, rel=1e-3) and min(half) > 1e-2 * min(drift)
    assert max(second[::2]) < 1e-4 * min(second[1::2])
    close(
        run(model, with_correction(trajectory, Direct(scale=0.0)), texts, correction="auto")[1],
        on_host(model, watches[0].seen[-1][:1]),
    )


# other inversions


def test_fixed_point_comes_back_at_its_own_cfg_and_says_how_exactly(texts) -> None:
    """On a network so flat that iterating contracts."""
    model = unets.build("SD15")
    model.model.diffusion_model.out[2].weight.mul_(0.01)

    def inversion(inverter: Any) -> tuple[Trajectory, float, str]:
        latent = unets.latent(*SIZE)
        return invert_latent(
            model, latent, texts["source"], 6, "reference", inverter, True, texts["negative"], 2.0
        )

    pivot, psnr, report = inversion(FixedPoint(6, 1e-7))
    assert psnr > 25.0 + inversion(Ddim())[1]
    assert "residual" in report and "largest" in report and pivot.guidance == 2.0
    assert "residual" not in inversion(FixedPoint(0))[2]
    back = run(model, pivot, texts, correction="auto", cfg=2.0)[1]
    close(back, on_host(model, pivot.latents[0]), 1e-2)


def test_a_zero_snr_model_inverts_below_its_last_level_and_is_refused_at_it() -> None:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    model = ModelSamplingDiscrete().patch(unets.build("SD20"), "v_prediction", True)[0]
    latent, source = unets.latent(8, 8), unets.conditioning("SD20", 0)
    pivot, psnr, _ = invert_latent(model, latent, source, 50, "reference", Ddim(), True)
    assert torch.isfinite(pivot.latents).all() and psnr > 15.0
    for steps in (500, 999):
        with pytest.raises(
            PivotError, match="the zero-SNR end of this model in DDIM Inversion. Use fewer steps"
        ):
            invert_latent(model, latent, source, steps, "reference", Ddim(), False)


# one run after another


def test_nothing_of_a_rule_is_left_for_the_next_run(model, trajectory, texts, monkeypatch) -> None:
    """A, B, A; then A after a run that broke off."""
    guider, other = (
        guider_of(model, trajectory, texts, correction="negative_prompt", guidance=r)
        for r in (PROXNPI, None)
    )
    first = run_edit(guider).edited
    between = run_edit(other).edited
    assert torch.equal(run_edit(guider).edited, first)
    assert torch.equal(between, run(model, trajectory, texts, None, "negative_prompt")[0])
    with monkeypatch.context() as patch:
        patch.setattr(edit_step, "check_finite", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_edit(guider)
    assert torch.equal(run_edit(guider).edited, first)


SIZES = {
    "width": 1152,
    "height": 768,
    "crop_w": 8,
    "crop_h": 16,
    "target_width": 640,
    "target_height": 512,
}


@pytest.mark.parametrize("kind", ["SDXL"], indirect=True)
@pytest.mark.parametrize("name", ["source", "kept, mixed"])
def test_size_conditioning_reaches_every_row(model, texts, name, monkeypatch) -> None:
    """All of the vector that SDXL is given, pooled text and sizes, of source, target and
    unconditional rows."""
    sized = {
        key: [[text, {**extra, **SIZES}] for text, extra in value] for key, value in texts.items()
    }
    options, mixes = NPI[name]
    pivot = with_correction(inverted(model, sized), NegativePrompt(**options))
    guider = guider_of(model, pivot, sized)
    guider.economy = False
    calls = reading(model, monkeypatch)
    run_edit(guider)

    def vector(text: Any) -> torch.Tensor:
        return model.model.encode_adm(**text[0][1], device=torch.device("cpu"))

    plain = model.model.encode_adm(
        pooled_output=sized["source"][0][1]["pooled_output"], device=torch.device("cpu")
    )
    assert not torch.equal(vector(sized["source"]), plain), "sizes must matter"
    for step, (chunks, _, vectors) in enumerate(calls):
        for place, chunk in enumerate(chunks):
            for row, key in enumerate(("source", "target")):
                wanted = sized[key]
                if chunk == 1:
                    wanted = [[None, {**mixed(sized, mixes(step)[row])[0][1], **SIZES}]]
                torch.testing.assert_close(vectors[2 * place + row], vector(wanted)[0])


@pytest.mark.parametrize("kind", ["SDXL"], indirect=True)
def test_another_size_is_another_source(model, texts) -> None:
    """An inversion made for one size conditioning is not edited under another without a word."""
    other = [[text, {**extra, **SIZES}] for text, extra in texts["source"]]
    with pytest.raises(PivotError, match="source conditioning"):
        guider_of(model, inverted(model, texts), {**texts, "source": other})
