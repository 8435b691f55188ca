"""Every shipped workflow: both forms agree, every node and input exists, and no input was renamed
or moved."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from bench import thumbnails, workflows
from tools.client import Client

FILES = sorted(workflows.API.glob("*.json"))
CONTRACT = pathlib.Path(__file__).parent.parent / "contract" / "nodes.json"


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    return workflows.declarations()


def essentials(page: dict[str, Any]) -> tuple[Any, ...]:
    """A page without what versions of the host may draw differently: sizes, places, outputs that
    nothing reads."""
    nodes = [
        {key: node[key] for key in ("id", "type", "title", "inputs", "widgets_values", "mode")}
        | {"outputs": [output for output in node["outputs"] if output["links"]]}
        for node in page["nodes"]
    ]
    return nodes, page["links"], page["version"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_pages_form_is_the_api_form(path: pathlib.Path, known: dict[str, Any]) -> None:
    page = json.loads((path.parent.parent / path.name).read_text())
    graph = json.loads(path.read_text())
    assert essentials(page) == essentials(workflows.to_page(graph, known))
    for key, node in workflows.to_api(page, known).items():
        kept = {
            name: value for name, value in node["inputs"].items() if name in graph[key]["inputs"]
        }
        assert (node["class_type"], kept) == (graph[key]["class_type"], graph[key]["inputs"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_node_and_input_exists(path: pathlib.Path, known: dict[str, Any]) -> None:
    for node in json.loads(path.read_text()).values():
        assert set(node["inputs"]) <= set(known[node["class_type"]]["inputs"])


def test_ids_inputs_and_their_order_are_the_contract(known: dict[str, Any]) -> None:
    """Workflows store values by position and prompts by name: what is in nodes.json may only grow
    at its ends."""
    frozen = json.loads(CONTRACT.read_text())
    for node, (inputs, outputs) in frozen.items():
        assert list(known[node]["inputs"])[: len(inputs)] == inputs
        assert known[node]["outputs"][: len(outputs)] == outputs
    pack = {name for name in known if name.startswith("Pivot")}
    assert pack == set(frozen), "a new node goes into tests/contract/nodes.json"


def test_every_node_and_input_explains_itself() -> None:
    for node in workflows.pack_nodes():
        schema = node.define_schema()
        assert schema.node_id.startswith("Pivot")
        assert schema.description and schema.display_name and schema.search_aliases
        for entry in schema.inputs:
            assert entry.tooltip and len(entry.tooltip) > 20, (
                f"{schema.node_id}.{entry.id} has no tooltip"
            )


@pytest.mark.server
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_runs_and_shows_something(path: pathlib.Path, client: Client) -> None:
    """Everything that is shipped, with a few steps; and a picture of it lies beside it."""
    graph = thumbnails.filled(path.stem, client.upload(thumbnails.example(), "pivot_example.png"))
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 4
    assert thumbnails.shown(graph, client.run(graph))
    assert (path.parent.parent / f"{path.stem}.jpg").stat().st_size < 200_000
