"""The stock Torch Compile Model beside attention control: the edit is that of the plain model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import unets
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.inversion import Ddim
from test_controls import NEGATIVE, SIZE, SOURCE, blend, masa, p2p, recorded, run

CONTROLS = {
    "p2p": p2p,
    "masa": masa,
    "blend": lambda model: blend(p2p(model)),
    "recorded": lambda model: recorded(model)[0],
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What was compiled in a test is not there in the next."""
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def model() -> Any:
    return unets.build("SD15", shallow=True)


@pytest.fixture(scope="module")
def texts() -> list[Any]:
    return [unets.conditioning("SD15", seed) for seed in (0, 1, 2, NEGATIVE)]


@pytest.fixture(scope="module")
def pivot(model: Any, texts: list[Any]) -> Any:
    with torch.inference_mode():
        return invert_latent(
            model, unets.latent(*SIZE), texts[SOURCE], 3, "reference", Ddim(), False
        )[0]


def compiled(model: Any, backend: str) -> Any:
    """As the stock node does it, guards of the options dropped; the node itself offers no eager
    backend, which is quick enough for tests."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    clone = model.clone()
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(model=clone, backend=backend, options=options)
    return clone


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("first", ["control", "compile"])
def test_a_compiled_model_is_edited_as_the_plain_one(model, texts, pivot, control, first) -> None:
    """One graph would serve all steps, with the edits of the step that it was traced at."""
    apply = CONTROLS[control]
    both = (
        compiled(apply(model), "eager") if first == "control" else apply(compiled(model, "eager"))
    )
    expected, edited = run(apply(model), pivot, texts), run(both, pivot, texts)
    assert torch.equal(edited[0], expected[0]) and torch.equal(edited[1], expected[1])


def test_nothing_is_compiled_anew_at_a_step(model, texts, pivot) -> None:
    counters = torch._dynamo.utils.counters
    counters.clear()
    run(p2p(compiled(model, "eager")), pivot, texts)
    assert counters["stats"]["unique_graphs"] == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, when it is imported
def test_inductor_is_exact_too(model, texts, pivot) -> None:
    expected = run(p2p(model), pivot, texts)
    edited = run(p2p(compiled(model, "inductor")), pivot, texts)
    assert torch.equal(edited[0], expected[0])
