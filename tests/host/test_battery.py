"""Every registered controller on a real UNet: what a run leaves behind, however it ends.

A controller that can be made without options is tried as it is. Another needs an entry in `OPEN`,
how it is applied to a model, and in `CLOSED`, the options under which it never works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import importlib.util
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch

import nodes
import unets
from clean import at_middle, everything
from pivot_edit import attention, inversion
from pivot_edit.attention import AttentionMaps, LocalBlend
from pivot_edit.core.control import (
    Controller,
    FeatureCall,
    Kind,
    Place,
    Proceed,
    Reads,
    window_open,
)
from pivot_edit.core.correction import Correction, Uncond
from pivot_edit.host.model.layers import layers_of, scales_of
from pivot_edit.host.run import runs
from pivot_edit.host.run.patching import add_controller
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.host.text.conditioning import stack_rows
from pivot_edit.inversion import Ddim
from test_controls import CFG, NEGATIVE, SOURCE, TARGET, blend, close, differ, masa, p2p
from test_controls import run as edited

STEPS, SIZE = 4, (8, 8)


class Idle(Controller):
    """Works nowhere: a run of source and target as rows of one batch, and nothing else."""

    title = "Idle"

    def wants(self, kind: Kind, place: Place) -> bool:
        return False


@dataclasses.dataclass(frozen=True, eq=False)
class Features(Controller):
    """Targets get half of the source's features, in residual blocks."""

    title: ClassVar[str] = "Features"
    start: float = 0.0
    end: float = 0.6

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "resnet" and window_open((self.start, self.end), place, place.steps)

    def reads(self, place: Place) -> Reads:
        return "both"

    def feature(self, call: FeatureCall, proceed: Proceed, state: Any) -> torch.Tensor:
        order = [index if row.source is None else row.source for index, row in enumerate(call.rows)]
        return proceed(call.replace(torch.lerp(call.x, call.x[order], 0.5)))


class Blocks(Features):
    """The same of whole blocks."""

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "block" and window_open((self.start, self.end), place, place.steps)


def registered() -> tuple[Any, ...]:
    """Controllers of attention, of features where there is such a room, and two of features."""
    rooms = [attention]
    if importlib.util.find_spec("pivot_edit.features"):
        rooms.append(importlib.import_module("pivot_edit.features"))
    return (*(kind for room in rooms for kind in room.CONTROLLERS), Features, Blocks)


def recorder(model: Any, **options: Any) -> Any:
    return add_controller(model, AttentionMaps(scales_of(model), **options))


def never_blend(model: Any, **options: Any) -> Any:
    return add_controller(model, LocalBlend((), scales_of(model), **options))


def by_name(room: str, name: str, **options: Any) -> Any:
    """A controller of a room that may have come since."""
    return getattr(importlib.import_module(f"pivot_edit.{room}"), name)(**options)


def style(model: Any, **options: Any) -> Any:
    """In layers of more than one token: of a single one its AdaIN has no spread, and gives NaN."""
    chosen = frozenset(layer for layer in layers_of(model) if layer.scale < min(SIZE))
    options = {"chosen": chosen, **options}
    return add_controller(model, by_name("attention", "StyleAligned", **options))


def plug(model: Any, **options: Any) -> Any:
    return add_controller(model, by_name("features", "PlugAndPlay", **options))


Apply = Callable[..., Any]
READERS = {"AttentionMaps"}
"""Controllers that edit nothing."""
OPEN: dict[str, Apply] = {
    "PromptToPrompt": p2p,
    "LocalBlend": blend,
    "MasaCtrl": masa,
    "AttentionMaps": recorder,
    "StyleAligned": style,
    "PlugAndPlay": plug,
}
"""How a controller is applied to a model, by its class."""
CLOSED: dict[str, Callable[[Any], Any]] = {
    "PromptToPrompt": lambda model: p2p(model, cross=(0.0, 0.0), self_=(0.0, 0.0)),
    "LocalBlend": lambda model: never_blend(model, start=1.0),
    "MasaCtrl": lambda model: masa(model, start=1.0),
    "AttentionMaps": lambda model: recorder(model, start=1.0),
    "StyleAligned": lambda model: style(model, window=(0.0, 0.0)),
    "PlugAndPlay": lambda model: plug(model, features=0.0, attention=0.0),
}
"""The same under options that never let it work; others are closed by `end` 0."""


def applied(kind: Any, model: Any, closed: bool = False) -> Any:
    """The model under a controller."""
    known = (CLOSED if closed else OPEN).get(kind.__name__)
    if known is not None:
        return known(model)
    try:
        return add_controller(model, kind(**({"start": 0.0, "end": 0.0} if closed else {})))
    except (TypeError, ValueError) as error:
        pytest.fail(
            f"{kind.__name__} cannot be made without options: {error}. Add it to OPEN and CLOSED "
            "in tests/host/test_battery.py."
        )


@pytest.fixture(scope="module", params=registered(), ids=lambda kind: kind.__name__)
def controller(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def model() -> Any:
    return unets.build("SD15")


@pytest.fixture(scope="module")
def texts() -> list[Any]:
    return [unets.conditioning("SD15", seed) for seed in range(4)]


@pytest.fixture(scope="module")
def trajectory(model: Any, texts: list[Any]) -> Any:
    with torch.inference_mode():
        latent = unets.latent(*SIZE)
        return invert_latent(model, latent, texts[SOURCE], STEPS, "reference", Ddim(), False)[0]


@dataclasses.dataclass(eq=False)
class Bench:
    """Runs of models, in the Edit Sampler or in the stock sampler with source and target rows.

    controller: the class that is tried.
    """

    controller: Any
    model: Any
    trajectory: Any
    texts: list[Any]
    stock: bool

    def run(self, model: Any) -> torch.Tensor:
        """The samples, source and target."""
        if not self.stock:
            return torch.cat(edited(model, self.trajectory, self.texts, "none")[:2])
        rows = stack_rows(self.texts[SOURCE], self.texts[TARGET])
        latent, texts = {"samples": torch.zeros(2, 4, *SIZE)}, (rows, self.texts[NEGATIVE])
        sampler = nodes.common_ksampler
        return sampler(model, 3, STEPS, CFG, "euler", "normal", *texts, latent)[0]["samples"]

    @functools.cached_property
    def patched(self) -> Any:
        """The model under the controller."""
        return applied(self.controller, self.model)

    @functools.cached_property
    def plain(self) -> torch.Tensor:
        """The samples of the model itself."""
        return self.run(self.model)

    @functools.cached_property
    def uncontrolled(self) -> torch.Tensor:
        """The samples without an edit, of source and target with the noise that edits ask for."""
        policy = self.controller.same_noise and self.controller.needs_source
        return self.run(add_controller(self.model, Idle())) if policy else self.plain

    @functools.cached_property
    def whole(self) -> torch.Tensor:
        """The samples under the controller."""
        return self.run(self.patched)


@pytest.fixture(scope="module", params=["edit", "ksampler"])
def bench(
    request: pytest.FixtureRequest, controller: Any, model: Any, trajectory: Any, texts: list[Any]
) -> Bench:
    return Bench(controller, model, trajectory, texts, request.param == "ksampler")


KNOWN: dict[tuple[str, str], str] = {}
"""What this battery has caught and nobody has mended yet."""


def expect_known(bench: Bench, request: pytest.FixtureRequest) -> None:
    """Expect what is known to be broken to be so still, and say when it no longer is."""
    place, test = "ksampler" if bench.stock else "edit", request.node.originalname
    for detail in (place, "open" if "open_window" in test else "closed"):
        if (bench.controller.__name__, detail) in KNOWN:
            reason = KNOWN[bench.controller.__name__, detail]
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))


def heard(model: Any, left: list[bool]) -> Any:
    """The model with another pack's wrapper around its runs. It notes whether a run of ours is
    still in the options when ours is over, however it ended."""
    from comfy.patcher_extension import WrappersMP

    def around(executor: Any, *args: Any, **kw: Any) -> Any:
        options = executor.class_obj.model_options["transformer_options"]
        try:
            return executor(*args, **kw)
        finally:
            left.append(runs.RUN in options)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "battery", around)
    return clone


@contextlib.contextmanager
def installed(model: Any) -> Iterator[set[str]]:
    """What the network finds in place while it runs: slots of attention, modules with hooks."""
    from comfy.ldm.modules.attention import BasicTransformerBlock

    seen: set[str] = set()
    unet = model.model.diffusion_model

    def look(module: Any, args: Any, kw: dict[str, Any]) -> None:
        options = kw.get("transformer_options") or next(
            (each for each in args if isinstance(each, dict)), {}
        )
        seen.update(slot for slot, filled in options.get("patches_replace", {}).items() if filled)
        seen.update(name for name, each in unet.named_modules() if each._forward_hooks)

    blocks = [each for each in unet.modules() if isinstance(each, BasicTransformerBlock)]
    handles = [each.register_forward_pre_hook(look, with_kwargs=True) for each in blocks]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_a_run_leaves_nothing(bench, monkeypatch) -> None:
    """No run in the options, no hooks, no patches; the run itself and its states are gone."""
    model, plain, born = bench.model, bench.plain, []
    original, begin = everything(model), runs.Run.__init__
    left: list[bool] = []
    patched = applied(bench.controller, heard(model, left))
    before = everything(patched)

    def note(self: Any, *args: Any, **kw: Any) -> None:
        begin(self, *args, **kw)
        born.append(weakref.ref(self))

    with monkeypatch.context() as patch:
        patch.setattr(runs.Run, "__init__", note)
        bench.run(patched)
    gc.collect()
    assert born and not any(run() for run in born)
    assert everything(patched) == before and everything(model) == original
    assert left == [False] and torch.equal(bench.run(model), plain)


def test_an_interrupt_leaves_nothing(bench) -> None:
    """It comes in the middle of a pass, while everything of ours is in place."""
    import comfy.model_management as management

    model, whole, plain, left = bench.model, bench.whole, bench.plain, list[bool]()
    patched = applied(bench.controller, heard(model, left))
    before, original = everything(patched), everything(model)

    def stop(number: int) -> None:
        if number == 2:
            management.interrupt_current_processing(True)
            management.throw_exception_if_processing_interrupted()

    with pytest.raises(management.InterruptProcessingException), at_middle(model, stop):
        bench.run(patched)
    assert left == [False]
    assert everything(patched) == before and everything(model) == original
    assert torch.equal(bench.run(patched), whole) and torch.equal(bench.run(model), plain)


def test_a_closed_window_installs_nothing(bench, request) -> None:
    expect_known(bench, request)
    closed = applied(bench.controller, bench.model, closed=True)
    with installed(bench.model) as seen:
        samples = bench.run(closed)
    assert seen == set() and torch.equal(samples, bench.uncontrolled)
    with installed(bench.model) as seen:
        bench.run(bench.patched)
    assert seen


def test_an_open_window_does_something(bench, request) -> None:
    """Unless the controller only reads."""
    expect_known(bench, request)
    if bench.controller.__name__ in READERS:
        assert torch.equal(bench.whole, bench.uncontrolled)
    else:
        assert differ(bench.whole, bench.uncontrolled)


def test_calls_that_memory_splits_give_the_same(bench, monkeypatch) -> None:
    together, passes = bench.whole, []
    monkeypatch.setattr(bench.model.model, "memory_required", lambda *args, **kwargs: 1e18)
    with at_middle(bench.model, passes.append):
        apart = bench.run(bench.patched)
    assert len(passes) == 2 * STEPS
    close(apart, together)


@dataclasses.dataclass(frozen=True)
class BySigma(Correction):
    """Unconditional rows read a text between source and negative prompt, by the level."""

    name: ClassVar[str] = "by_sigma"
    label: ClassVar[str] = "by the level"
    scale: float = 15.0

    def uncond(self, branch: Any, place: Place) -> Uncond:
        return Uncond("source", min(1.0, place.sigma / self.scale))


def test_a_correction_may_read_the_level(model, trajectory, texts, monkeypatch) -> None:
    monkeypatch.setitem(inversion.CORRECTIONS, BySigma.name, BySigma)
    samples, _, report, _ = edited(model, trajectory, texts, BySigma.name)
    assert BySigma.name in report and torch.isfinite(samples).all()
    assert differ(samples, edited(model, trajectory, texts, "negative_prompt")[0])
    assert differ(samples, edited(model, trajectory, texts, "none")[0])
