"""The starter graph through the API server: it runs, it caches the inversion, and its parts agree
with it."""

from __future__ import annotations

import numpy as np
import pytest

import graphs
from tools.client import Client

pytestmark = pytest.mark.server


def pixels(result, graph) -> np.ndarray:
    (saved,) = result.images[graphs.node(graph, "PivotCompare")]
    return np.asarray(saved).astype(np.int16)


def test_the_starter_has_at_most_nine_nodes_and_runs(client: Client) -> None:
    graph = graphs.starter(client)
    assert len(graph) <= 9
    result = client.run(graph)
    assert pixels(result, graph).shape == (128, 128, 3)
    (shown,) = result.previews[graphs.node(graph, "PivotCompare")]
    assert shown.size == (3 * 128 + 16, 128)


def test_changing_the_target_prompt_does_not_invert_again(client: Client) -> None:
    graph = graphs.starter(client, steps=5)
    client.run(graph)
    graphs.inputs(graph, "PivotPromptPair")["target_prompt"] = graphs.SCENE.change(
        color="cyan"
    ).caption
    again = client.run(graph)
    inversion = graphs.node(graph, "PivotDDIMInversion")
    assert inversion in again.cached and inversion not in again.executed
    assert graphs.node(graph, "PivotEditSampler") in again.executed
    assert (
        again.progress[inversion] == 0
        and again.progress[graphs.node(graph, "PivotEditSampler")] > 0
    )


def test_a_long_run_shows_its_progress(client: Client) -> None:
    """The host may merge messages that come quickly, but a person sees the bar move."""
    graph = graphs.starter(client, steps=12)
    result = client.run(graph)
    assert result.progress[graphs.node(graph, "PivotDDIMInversion")] >= 3
    assert result.progress[graphs.node(graph, "PivotEditSampler")] >= 3


@pytest.mark.parametrize("sampler", [None, "euler"])
def test_the_parts_in_samplercustomadvanced_make_the_same_picture(
    client: Client, sampler: str | None
) -> None:
    graph = graphs.starter(client)
    whole = pixels(client.run(graph), graph)
    parts = graphs.from_parts(graph, sampler)
    difference = np.abs(pixels(client.run(parts), parts) - whole)
    # the stock sampler leaves the last level's scale, sqrt(1 + 0.0292^2), in the latent
    assert difference.max() <= (0 if sampler is None else 3)
