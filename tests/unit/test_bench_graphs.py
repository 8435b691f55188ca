"""API graphs of the benches: what their nodes are set to and how they hang together."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from bench.cases import KINDS
from bench.graphs import edit_graph, prepare_rows, rows_per_step, sampler_of
from bench.jobs import limits_graph
from bench.methods import CONTROLS, METHODS, Case, Settings, proximal
from bench.sweeps import SWEEPS, jobs, settings_of
from tools.pack import part

CASE = Case("a.png", "a red cat", "a blue cat", "cat", "", "blue: 2")
SETTINGS = Settings(steps=7, cfg=4.0)
CONTRACT = json.loads((pathlib.Path(__file__).parents[1] / "contract" / "nodes.json").read_text())


def kinds_of(graph: dict[str, Any]) -> set[str]:
    return {node["class_type"] for node in graph.values()}


@pytest.mark.parametrize("method", METHODS)
def test_every_link_leads_to_a_node_and_every_input_exists(method: str) -> None:
    graph = edit_graph(CASE, method, dict.fromkeys(CONTROLS, SETTINGS), check=True)
    for node in [*graph.values(), *limits_graph("a", "b", "c").values()]:
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                assert value[0] in graph or value[0] in limits_graph("a", "b", "c")
            if node["class_type"] in CONTRACT:
                assert name in CONTRACT[node["class_type"]][0]
    assert set(CONTROLS) | {"ceiling"} <= {
        name for name, node in graph.items() if node["class_type"] == "SaveImage"
    }


def test_methods_are_told_apart() -> None:
    graphs = {method: edit_graph(CASE, method, {"none": SETTINGS}) for method in METHODS}
    corrections = {
        method: graph["none.edit"]["inputs"]["correction"] for method, graph in graphs.items()
    }
    assert corrections == {
        "ddim": "none",
        "negative_prompt": "negative_prompt",
        "null_text_fast": "null_text",
        "null_text_reference": "null_text",
        "direct": "direct",
        "uni": "none",
        "uni_direct": "direct",
        "fixed_point": "none",
    }
    presets = [
        graphs[f"null_text_{name}"]["null_text"]["inputs"]["preset"]
        for name in ("fast", "reference")
    ]
    assert presets == ["fast", "reference"]
    assert graphs["null_text_fast"]["none.edit"]["inputs"]["inversion"] == ["null_text", 0]
    inverted = graphs["fixed_point"]["inversion"]["inputs"]
    assert (inverted["method"], inverted["cfg"]) == ("fixed_point", 4.0)
    assert "cfg" not in graphs["ddim"]["inversion"]["inputs"]


def test_controls_are_chained_in_order() -> None:
    graph = edit_graph(CASE, "direct", {"p2p_blend": SETTINGS})
    assert graph["p2p_blend.edit"]["inputs"]["model"] == ["p2p_blend.blend", 0]
    assert graph["p2p_blend.blend"]["inputs"]["model"] == ["p2p_blend.p2p", 0]
    assert graph["p2p_blend.p2p"]["inputs"]["model"] == ["model", 0]
    assert graph["p2p_blend.p2p"]["inputs"]["word_weights"] == "blue: 2"
    assert graph["p2p_blend.blend"]["inputs"]["blend_words"] == "cat"


def test_plain_edits_have_no_controller_and_no_guidance() -> None:
    found = kinds_of(edit_graph(CASE, "direct", {"none": SETTINGS}))
    assert not found & {
        "PivotPromptToPrompt",
        "PivotLocalBlend",
        "PivotMasaCtrl",
        "PivotProximalGuidance",
    }
    guided = edit_graph(CASE, "direct", {"proxmasactrl": SETTINGS})
    assert guided["proxmasactrl.edit"]["inputs"]["guidance"] == ["proxmasactrl.guidance", 0]
    assert guided["proxmasactrl.guidance"]["inputs"]["preset"] == "proxmasactrl"


def test_settings_reach_their_nodes() -> None:
    odd = Settings(3.5, 9, "refine", 0.11, 0.22, 0.33, 0.44, 0.55, 0.66, False, 0.77, 0.88)
    graph = edit_graph(CASE, "direct", dict.fromkeys(CONTROLS, odd))
    assert graph["inversion"]["inputs"]["steps"] == 9 and graph["none.edit"]["inputs"]["cfg"] == 3.5
    p2p, blend = graph["p2p.p2p"]["inputs"], graph["p2p_blend.blend"]["inputs"]
    assert [p2p[name] for name in ("mode", "cross_end", "self_end", "self_limit")] == [
        "refine",
        0.11,
        0.22,
        0.33,
    ]
    names = ("threshold", "subtract_threshold", "start", "pool")
    assert [blend[name] for name in names] == [0.44, 0.55, 0.66, False]
    assert graph["masactrl.masactrl"]["inputs"]["start"] == 0.77
    assert graph["proxnpi.guidance"]["inputs"]["quantile"] == 0.88
    assert graph["proxnpi.guidance"]["inputs"]["preset"] == "custom"


def test_a_control_may_stand_there_twice() -> None:
    weak = dataclasses.replace(SETTINGS, cross_end=0.1)
    graph = edit_graph(CASE, "direct", {"p2p": SETTINGS, "p2p@weak": weak})
    assert graph["p2p@weak.p2p"]["inputs"]["cross_end"] == 0.1
    assert {"p2p", "p2p@weak"} <= set(graph)


def test_the_source_comes_back_from_the_run_of_the_edit() -> None:
    graph = edit_graph(CASE, "direct", {"none": SETTINGS, "reconstruction": SETTINGS})
    assert graph["reconstruction.decode"]["inputs"]["samples"] == ["none.edit", 1]
    assert graph["none.decode"]["inputs"]["samples"] == ["none.edit", 0]
    assert "reconstruction.edit" not in graph
    alone = edit_graph(CASE, "direct", {"reconstruction": SETTINGS})
    assert alone["reconstruction.decode"]["inputs"]["samples"] == ["reconstruction.edit", 1]


def test_pasting_takes_the_picture_outside_of_the_mask() -> None:
    graph = edit_graph(CASE, "direct", {"p2p_blend_paste": SETTINGS})
    pasted = graph["p2p_blend_paste.paste"]["inputs"]
    assert pasted["destination"] == ["image", 0] and pasted["mask"] == ["p2p_blend_paste.edit", 3]
    assert pasted["source"] == ["p2p_blend_paste.decode", 0]
    assert graph["p2p_blend_paste"]["inputs"]["images"] == ["p2p_blend_paste.paste", 0]


def test_pasting_does_not_run_the_edit_again() -> None:
    graph = edit_graph(
        CASE, "direct", {"p2p": SETTINGS, "p2p_blend": SETTINGS, "p2p_blend_paste": SETTINGS}
    )
    assert (
        sampler_of(graph, "p2p_blend_paste") == sampler_of(graph, "p2p_blend") == "p2p_blend.edit"
    )
    assert sampler_of(graph, "p2p") == "p2p.edit"
    assert graph["p2p_blend_paste.paste"]["inputs"]["mask"] == ["p2p_blend.edit", 3]
    assert graph["p2p_blend"]["inputs"]["images"] != graph["p2p_blend_paste"]["inputs"]["images"]


def test_unlike_settings_of_one_inversion_are_refused() -> None:
    other = dataclasses.replace(SETTINGS, cfg=2.0)
    edit_graph(CASE, "direct", {"none": SETTINGS, "p2p": other})
    for method in ("fixed_point", "null_text_fast"):
        with pytest.raises(ValueError, match="one cfg"):
            edit_graph(CASE, method, {"none": SETTINGS, "p2p": other})
    with pytest.raises(ValueError, match="one number of steps"):
        edit_graph(
            CASE, "direct", {"none": SETTINGS, "p2p": dataclasses.replace(SETTINGS, steps=3)}
        )


def test_checkpoints_take_the_stock_loader() -> None:
    graph = edit_graph(CASE, "direct", {"none": SETTINGS}, "sd15.safetensors")
    assert graph["model"] == {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "sd15.safetensors"},
    }


def test_presets_as_values_are_the_preset() -> None:
    rule = part("host.tasks.guidance").PRESETS["proxmasactrl"]
    values = {
        name: value for name, value in proximal("proxmasactrl", 0.6).items() if name != "preset"
    }
    assert part("host.tasks.guidance").guidance("custom", **values) == rule


def test_rows_are_read_from_reports() -> None:
    assert rows_per_step("50 steps, cfg 7.5, direct, 2.80 UNet rows a step; mind the gap") == 2.8
    with pytest.raises(ValueError, match="UNet rows"):
        rows_per_step("done")
    report = (
        "fast, cfg 7.5: mean squared distance 1e-4, 104 forward and 48 backward UNet rows a picture"
    )
    assert prepare_rows("direct", 50) == 50
    assert prepare_rows("null_text_fast", 50, report) == 202
    assert prepare_rows("fixed_point", 50) == 50 * 2 * (1 + part("inversion").FixedPoint.iterations)
    with pytest.raises(ValueError, match="UNet rows"):
        prepare_rows("null_text_fast", 50)


@pytest.mark.parametrize("sweep", SWEEPS, ids=lambda sweep: sweep.name)
def test_sweeps_vary_one_setting(sweep: Any) -> None:
    found = [dataclasses.asdict(settings_of(sweep, value)) for value in sweep.values]
    varied = {name for name in found[0] if len({json.dumps(each[name]) for each in found}) > 1}
    assert varied == {sweep.field}
    assert sweep.kind in KINDS and sweep.control in CONTROLS and sweep.method in METHODS
    assert len(jobs(2, [sweep])) == 2 and len(jobs(2, [sweep])[0]) == len(sweep.values)
