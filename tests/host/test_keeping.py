"""What a controller may do with q, k, v on real UNets: keep them, and hand on other numbers of
keys."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch

import unets
from pivot_edit.core.control import Attend, AttentionCall, Controller, Kind, Place
from pivot_edit.host.run.patching import add_controller
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.inversion import Ddim
from test_controls import NEGATIVE, SIZE, SOURCE, close, differ, masa, p2p, run


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
            model, unets.latent(*SIZE), texts[SOURCE], 2, "reference", Ddim(), False
        )[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Keeper(Controller):
    """Keeps every self-attention's q, k, v, and copies of them made at once."""

    title: ClassVar[str] = "Keeper"
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = dataclasses.field(default_factory=list)

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "self"

    def __call__(self, call: AttentionCall, attend: Attend, state: Any) -> torch.Tensor:
        self.pairs.extend((each, each.clone()) for each in (call.q, call.k, call.v))
        return attend(call)


@dataclasses.dataclass(frozen=True, eq=False)
class Doubled(Controller):
    """Hands on every key and value twice, which changes attention by rounding alone."""

    title: ClassVar[str] = "Doubled"
    rank: ClassVar[int] = -1

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "self"

    def __call__(self, call: AttentionCall, attend: Attend, state: Any) -> torch.Tensor:
        k, v = (torch.cat([each, each], 1) for each in (call.k, call.v))
        return attend(call.replace(call.q, k, v))


@dataclasses.dataclass(frozen=True, eq=False)
class Biased(Controller):
    """Reads itself through `fused`, its last key out of sight by a bias."""

    title: ClassVar[str] = "Biased"
    amount: float = -1e4

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "self"

    def __call__(self, call: AttentionCall, attend: Attend, state: Any) -> torch.Tensor:
        bias = torch.zeros(1, 1, call.k.shape[1])
        bias[..., -1] = self.amount
        return call.fused(call.q, call.k, call.v, bias)


def test_what_is_kept_keeps_its_values(model, texts, pivot) -> None:
    """The host's own keys and values are emptied after the call; a controller has aliases."""
    keeper = Keeper()
    run(add_controller(model, keeper), pivot, texts)
    assert keeper.pairs and all(torch.equal(kept, copy) for kept, copy in keeper.pairs)


@pytest.mark.parametrize("control", [lambda model: model, p2p, masa])
def test_keys_may_change_their_number_along_the_chain(model, texts, pivot, control) -> None:
    doubled = add_controller(control(model), Doubled())
    expected = run(add_controller(control(model), Keeper()), pivot, texts, "none")
    close(run(doubled, pivot, texts, "none")[0], expected[0])


def test_fused_takes_a_bias(model, texts, pivot) -> None:
    plain = run(model, pivot, texts, "none")[0]
    close(run(add_controller(model, Biased(0.0)), pivot, texts, "none")[0], plain)
    hidden = run(add_controller(model, Biased()), pivot, texts, "none")[0]
    assert torch.isfinite(hidden).all() and differ(hidden, plain)
