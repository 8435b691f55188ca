"""The battery over everything registered, and over broken methods that it has to catch.

A new method is tried as soon as it is registered. Where it cannot be made without options,
`EXAMPLES` needs an entry under the name of its class.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import battery
import pytest
import torch
from battery import CHECKS, COLUMNS, LATENT, LAYERS, SCALES, TARGETS, Example, hold
from reference import generator, noise

from pivot_edit import attention, guidance, inversion
from pivot_edit.attention.local_blend import BlendWords
from pivot_edit.attention.masactrl import AutoMask
from pivot_edit.core.control import (
    Attend,
    AttentionCall,
    Controller,
    FeatureCall,
    Kind,
    Place,
    Proceed,
    Reads,
    Row,
    all_pairs,
    window_open,
)
from pivot_edit.core.correction import NEGATIVE, SOURCE, Correction, Uncond
from pivot_edit.core.errors import check_finite
from pivot_edit.core.guidance import Guidance, Guided
from pivot_edit.core.inverter import Inverted, Inverter, Move, Step
from pivot_edit.core.path import Denoise
from pivot_edit.core.stepper import Moment, StepRule
from pivot_edit.core.trajectory import Trajectory
from pivot_edit.core.words import Alignment

# -- everything that is registered -------------------------------------------------------------


def registered(package: Any, name: str) -> tuple[type, ...]:
    """The classes of a registry, whether it names them or lists them."""
    registry = getattr(package, name)
    return tuple(registry.values() if isinstance(registry, Mapping) else registry)


def controllers() -> tuple[type, ...]:
    """Those of attention, and of features where there is such a room."""
    rooms = [attention]
    if importlib.util.find_spec("pivot_edit.features"):
        rooms.append(importlib.import_module("pivot_edit.features"))
    return tuple(kind for room in rooms for kind in registered(room, "CONTROLLERS"))


FAMILIES: dict[str, tuple[type, ...]] = {
    "controller": controllers(),
    "rule": registered(guidance, "RULES"),
    "correction": registered(inversion, "CORRECTIONS"),
    "stepper": registered(inversion, "STEPPERS"),
    "inverter": registered(inversion, "INVERTERS"),
}


def alignments(kept: float, weighted: bool) -> tuple[Alignment, ...]:
    """Random ones, one for each target."""
    made = []
    for target in range(TARGETS):
        random = generator(target)
        mapper = torch.rand(COLUMNS, COLUMNS, generator=random)
        own = (torch.rand(COLUMNS, generator=random) < kept).float()
        weights = 2.0 * torch.rand(COLUMNS, generator=random) if weighted else None
        windows = (((1, 2), (0.0, 0.4)),) if weighted else ()
        mapper = mapper / mapper.sum(1, keepdim=True)
        made.append(Alignment(mapper, own, "random", "", weights, windows))
    return tuple(made)


def half_mask(side: int) -> torch.Tensor:
    """A mask [1, H, W] of the left or the right half."""
    mask = torch.zeros(1, *LATENT)
    mask[..., side * LATENT[1] // 2 :][..., : LATENT[1] // 2] = 1.0
    return mask


WORDS = tuple(
    BlendWords(COLUMNS, COLUMNS, *((("word", (column,)),) for column in (2 + i, 3 + i, 5, 6)))
    for i in range(TARGETS)
)
GROUPS = {
    (branch, target): (COLUMNS, ((4, 5),))
    for branch in ("source", "target")
    for target in range(TARGETS)
}
EVERYWHERE = frozenset(LAYERS)
Options = Callable[[], dict[str, Any]]


def nulls(steps: int, pictures: int) -> dict[str, torch.Tensor]:
    """Optimised embeddings [N, B, T, D]."""
    return {"nulls": noise(3, steps, pictures, 2, 3).float()}


EXAMPLES: dict[str, dict[str, dict[str, Any]]] = {
    "PromptToPrompt": {
        "replace": {"alignments": alignments(0.0, False)},
        "refine": {"alignments": alignments(0.3, True), "cross": (0.0, 0.5), "self_": (0.2, 0.6)},
    },
    "LocalBlend": {
        "words": {"words": WORDS, "scales": SCALES, "threshold": 0.6, "subtract_threshold": 0.8},
        "mask": {"mask": half_mask(0), "start": 0.4},
        "both": {"words": WORDS, "scales": SCALES, "mask": half_mask(1), "pool": True},
    },
    "MasaCtrl": {
        "plain": {"layers": EVERYWHERE, "start": 0.2},
        "union": {"layers": EVERYWHERE, "start": 0.2, "union": True},
        "masks": {"layers": EVERYWHERE, "source_mask": half_mask(0), "target_mask": half_mask(1)},
        "union_masks": {"layers": EVERYWHERE, "source_mask": half_mask(0), "union": True},
        "apart": {"layers": EVERYWHERE, "inject_uncond": "joint"},
        "cond": {"layers": EVERYWHERE, "inject_uncond": "none"},
        "uncond": {"layers": EVERYWHERE, "inject_cond": "none", "source_mask": half_mask(0)},
        "auto": {"layers": EVERYWHERE, "start": 0.2, "auto": AutoMask(GROUPS, (2,), 0.5)},
    },
    "AttentionMaps": {"recorded": {"scales": SCALES, "start": 0.2, "end": 0.8}},
    "Proximal": {
        "default": {},
        "hard": {"operator": "hard", "threshold": 0.4},
        "inversion": {"inversion_rate": 0.6, "reconstruction_rate": 0.2, "window": (0.2, 1.0)},
        "source": {"inversion_rate": 1.0, "guide_window": (0.0, 0.5), "source_cfg": 1.0},
        "time": {"inversion_rate": 1.0, "guide_time": 400.0},
    },
    "NegativePrompt": {
        "default": {},
        "mixed": {"interpolation": 0.4, "keep_source": True, "start": 0.3},
    },
    "Direct": {"default": {}, "legacy": {"legacy": True}, "scaled": {"scale": 0.5, "every": 2}},
    "Ddim": {"reference": {}, "naive": {"evaluation": "naive"}},
    "FixedPoint": {"default": {}, "none": {"iterations": 0}, "coarse": {"tolerance": 0.1}},
}
"""Options under which methods are tried, by class and a name; where there is no entry, the
defaults."""
SAYS: dict[str, dict[str, Any]] = {
    "NullText": {"extras": nulls},
    # unconditioned rows that run first have no maps of their own step
    "MasaCtrl": {"cond_first": True},
}
"""What an `Example` has to say of a class beyond its options."""


KNOWN: dict[tuple[str, str], str] = {}
"""What the battery has caught and nobody has mended yet: an entry goes when its method is sound."""


def examples() -> list[Any]:
    """(family, class, options) of everything registered."""
    return [
        pytest.param(family, kind, options, id=f"{kind.__name__}-{label}")
        for family, kinds in FAMILIES.items()
        for kind in kinds
        for label, options in EXAMPLES.get(kind.__name__, {"default": {}}).items()
    ]


def example_of(kind: Any, options: dict[str, Any]) -> Example:
    """A method with its options, or a failure that says where to write some."""
    try:
        method = kind(**options)
    except (TypeError, ValueError) as error:
        pytest.fail(
            f"{kind.__name__} cannot be made of {options}: {error}. Add options for it to "
            "EXAMPLES in tests/contract/test_battery.py."
        )
    return Example(method, **SAYS.get(kind.__name__, {}))


@pytest.mark.parametrize(("family", "kind", "options"), examples())
def test_a_registered_method_keeps_every_promise(
    family: str, kind: type, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    example, label = example_of(kind, options), request.node.callspec.id
    broken = {
        name: caught
        for name, check in CHECKS[family].items()
        if (caught := sentence(check, example))
    }
    known = {name for named, name in KNOWN if named == label}
    assert {name: caught for name, caught in broken.items() if name not in known} == {}
    assert known <= set(broken), "mended: take it out of KNOWN"


def sentence(check: battery.Check, example: Example) -> str:
    """What a check has to say of a method; nothing where the promise is kept."""
    try:
        hold(check, example)
    except AssertionError as error:
        return str(error) or "an assertion without a sentence"
    return ""


def test_every_family_is_tried() -> None:
    assert all(FAMILIES.values())
    assert set(FAMILIES) == set(CHECKS) == set(BROKEN)
    known = {kind.__name__ for kinds in FAMILIES.values() for kind in kinds}
    assert set(EXAMPLES) | set(SAYS) <= known


def test_a_method_that_needs_options_is_told_where_they_go() -> None:
    @dataclasses.dataclass(frozen=True)
    class Needy(Whole):
        amount: float

    with pytest.raises(pytest.fail.Exception, match="Needy .* EXAMPLES in tests/contract"):
        example_of(Needy, {})


# -- controllers, sound and broken -------------------------------------------------------------

SHARED: list[Any] = []
"""Where methods keep things that should be in a run's state."""


@pytest.fixture(autouse=True)
def nothing_shared() -> None:
    SHARED.clear()


@dataclasses.dataclass(frozen=True, eq=False)
class Borrow(Controller):
    """Target rows read the source's keys and values in self-attention."""

    title: ClassVar[str] = "Borrow"
    start: float = 0.2
    end: float = 0.8

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "self" and window_open((self.start, self.end), place, place.steps)

    def reads(self, place: Place) -> Reads:
        return "both" if self.wants("self", place) else "nothing"

    def __call__(self, call: AttentionCall, attend: Attend, state: Any) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        order = borrowed(call.rows)
        return attend(call.replace(call.q, call.k[order], call.v[order]))


@dataclasses.dataclass(frozen=True, eq=False)
class Lend(Borrow):
    """Target rows get half of the source's features, and a part of its latents."""

    sets_latents: ClassVar[bool] = True

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "resnet" and window_open((self.start, self.end), place, place.steps)

    def reads(self, place: Place) -> Reads:
        return "both"

    def feature(self, call: FeatureCall, proceed: Proceed, state: Any) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return proceed(call)
        return proceed(call.replace(torch.lerp(call.x, call.x[borrowed(call.rows)], 0.5)))

    def after_step(self, x: torch.Tensor, rows: Any, place: Place, state: Any) -> torch.Tensor:
        return torch.lerp(x, x[borrowed(rows)], 0.25)


@dataclasses.dataclass(frozen=True, eq=False)
class Watch(Controller):
    """Sums what self-attention gives, and edits nothing."""

    title: ClassVar[str] = "Watch"
    needs_source: ClassVar[bool] = False
    same_noise: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False

    def wants(self, kind: Kind, place: Place) -> bool:
        return kind == "self"

    def begin(self) -> list[float]:
        return []

    def __call__(self, call: AttentionCall, attend: Attend, state: list[float]) -> torch.Tensor:
        out = attend(call)
        state.append(float(out.sum()))
        return out


def borrowed(rows: tuple[Row, ...]) -> list[int]:
    """The row that each row reads: its source's, or itself."""
    return [index if row.source is None else row.source for index, row in enumerate(rows)]


class Zeros(Borrow):
    """Returns nothing but zeros, which passed every contract test before there was a battery."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        return torch.zeros_like(call.q)


class OpenZeros(Borrow):
    """Returns zeros in its window."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        works = self.works(call.site, call.place)
        return torch.zeros_like(call.q) if works else attend(call)


class EditsSource(Borrow):
    """Touches source rows, by the last bits only."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        out = super().__call__(call, attend, state)
        if not self.works(call.site, call.place):
            return out
        scale = [1.0 + 1e-12 * (row.branch == "source") for row in call.rows]
        return out * torch.tensor(scale, dtype=out.dtype)[:, None, None]


class EditsSourceLatents(Lend):
    """Touches source rows after a step."""

    def after_step(self, x: torch.Tensor, rows: Any, place: Place, state: Any) -> torch.Tensor:
        return x * 0.999


class IgnoresWindow(Borrow):
    """Works whenever it is called."""

    def works(self, site: Any, place: Place) -> bool:
        return super().works(site, place)

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        order = borrowed(call.rows)
        return attend(call.replace(call.q, call.k[order], call.v[order]))


class HandsOnCopies(Borrow):
    """Copies what it hands on, where its window is closed."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        copied = call.replace(call.q.clone(), call.k.clone(), call.v.clone())
        return super().__call__(copied, attend, state)


class AsksTwice(Borrow):
    """Runs the rest of the chain twice, where its window is closed."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        attend(call)
        return super().__call__(call, attend, state)


class FeaturesIgnoreWindow(Lend):
    """Works at all features, whenever it is called."""

    def feature(self, call: FeatureCall, proceed: Proceed, state: Any) -> torch.Tensor:
        return proceed(call.replace(torch.lerp(call.x, call.x[borrowed(call.rows)], 0.5)))


class WritesQuery(Borrow):
    """Scales the host's own queries in place."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        if self.works(call.site, call.place):
            call.q[[row for row, _ in all_pairs(call.rows)]] *= 0.5
        return super().__call__(call, attend, state)


class WritesFeatures(Lend):
    """Changes the host's own features in place."""

    def feature(self, call: FeatureCall, proceed: Proceed, state: Any) -> torch.Tensor:
        if self.works(call.site, call.place):
            call.x.copy_(torch.lerp(call.x, call.x[borrowed(call.rows)], 0.5))
        return proceed(call)


class WritesLatents(Lend):
    """Sets the sampler's own latents in place."""

    def after_step(self, x: torch.Tensor, rows: Any, place: Place, state: Any) -> torch.Tensor:
        x.copy_(super().after_step(x, rows, place, state))
        return x


class RemembersRuns(Borrow):
    """Reads keys of the run before, from the module's own list."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        SHARED.append(float(call.k.abs().mean()))
        scale = torch.ones(len(call.q), 1, 1, dtype=call.q.dtype)
        scale[[row for row, _ in all_pairs(call.rows)]] = 1.0 + SHARED[0] * len(SHARED) / 1e4
        return super().__call__(call.replace(call.q * scale, call.k, call.v), attend, state)


class SharesState(Borrow):
    """Gives every run the same state."""

    def begin(self) -> Any:
        return SHARED


class KeepsKeys(Borrow):
    """Keeps keys where no run's end drops them."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        SHARED.append(call.k)
        return super().__call__(call, attend, state)


class SaysOneSentence(Borrow):
    """Says a text, whose letters would be remarks."""

    def remark(self, state: Any) -> Any:
        return "All is well."


class SaysNoSentence(Borrow):
    """Says what is no sentence."""

    def remark(self, state: Any) -> tuple[str, ...]:
        return ("mask 0.3",)


class SaysMoreEachTime(Borrow):
    """Counts its runs in its remark."""

    def remark(self, state: Any) -> tuple[str, ...]:
        SHARED.append(None)
        return (f"This is run {len(SHARED)}.",)


class Widens(Borrow):
    """Returns fp32, whatever comes."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        out = super().__call__(call, attend, state)
        return out.float() if self.works(call.site, call.place) else out


class Coarse(Borrow):
    """Loses digits in half precision, as a sum of many numbers does."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        out = super().__call__(call, attend, state)
        if not self.works(call.site, call.place) or call.q.dtype == torch.float64:
            return out
        rows = [row for row, _ in all_pairs(call.rows)]
        edited = out.clone()
        edited[rows] = (out[rows] + 3000.0) - 3000.0
        return edited


class Overflows(Borrow):
    """Goes beyond what fp16 holds."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        rows = [row for row, _ in all_pairs(call.rows)]
        q = call.q.clone()
        q[rows] = q[rows] * 1e5 / 1e5
        return super().__call__(call.replace(q, call.k, call.v), attend, state)


class ByPosition(Borrow):
    """Takes the first rows of a call for the sources of the others."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        pairs = all_pairs(call.rows)
        k, v = call.k.clone(), call.v.clone()
        for row, _ in pairs:
            k[row], v[row] = call.k[row % 2], call.v[row % 2]
        return attend(call.replace(call.q, k, v))


class MixesPictures(Borrow):
    """Target rows read the mean of all target rows of their text."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        k = call.k.clone()
        for row, _ in all_pairs(call.rows):
            peers = [i for i, _ in all_pairs(call.rows) if call.rows[i].cond == call.rows[row].cond]
            k[row] = call.k[peers].mean(0)
        return attend(call.replace(call.q, k, call.v))


class NeedsBothTexts(Borrow):
    """Unconditioned targets read the conditioned source, where it is in the same call."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        sources = {row.picture: i for i, row in enumerate(call.rows) if row.cond and not row.target}
        order = [
            i if row.source is None else sources.get(row.picture, row.source)
            for i, row in enumerate(call.rows)
        ]
        return attend(call.replace(call.q, call.k[order], call.v[order]))


class ReadsInSecret(Borrow):
    """Reads source rows and does not say so."""

    def reads(self, place: Place) -> Reads:
        return "cond"


class Counts(Borrow):
    """Closes its window after so many calls."""

    def begin(self) -> Any:
        return []

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        state.append(None)
        return attend(call) if len(state) > 7 else super().__call__(call, attend, state)


class DoesNothing(Borrow):
    """Hands on what came, always."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        return attend(call)


class NeverOpen(Borrow):
    """Wants nothing at all."""

    needs_source: ClassVar[bool] = False

    def wants(self, kind: Kind, place: Place) -> bool:
        return False


class ReadsWithPolicies(Borrow):
    """Reads only, and asks for the source's noise all the same."""

    needs_source: ClassVar[bool] = False

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        return attend(call)


class SetsInSecret(Lend):
    """Sets latents and does not say so."""

    sets_latents: ClassVar[bool] = False


class CutsTokens(Borrow):
    """Gives fewer tokens than it was asked for."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        out = super().__call__(call, attend, state)
        return out[:, :-1] if self.works(call.site, call.place) else out


class CountsKeys(Borrow):
    """Takes as many keys for granted as there are tokens."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        if self.works(call.site, call.place):
            call.k.view(len(call.q), call.site.height * call.site.width, -1)[
                :, :, call.k.shape[2] - 1
            ]
            weight = torch.ones(call.site.height * call.site.width, 1, dtype=call.k.dtype)
            call = call.replace(call.q, call.k * weight, call.v)
        return super().__call__(call, attend, state)


class FlatKeys(Borrow):
    """Counts keys through all rows of a call, as many a row as there are tokens."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        if not self.works(call.site, call.place):
            return attend(call)
        out, tokens = attend(call).clone(), call.q.shape[1]
        keys, values = (each.flatten(0, 1) for each in (call.k, call.v))
        for row, source in all_pairs(call.rows):
            part = slice(source * tokens, (source + 1) * tokens)
            out[row] = call.fused(call.q[row : row + 1], keys[part][None], values[part][None])[0]
        return out


class ChangesOptions(Borrow):
    """Notes something in its options."""

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        object.__setattr__(self, "end", 0.79)
        return super().__call__(call, attend, state)


class IsCopied(Borrow):
    """Is another after a copy of the model."""

    def __deepcopy__(self, memo: Any) -> Controller:
        return dataclasses.replace(self)


# -- guidance rules ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shrink(Guidance):
    """Small differences of targets do not guide, and pull latents to the pivot."""

    title: ClassVar[str] = "shrink"
    threshold: float = 0.4

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        edit = (delta.abs() > self.threshold).to(delta)
        edit[:batch] = 1.0
        return Guided(delta * edit, edit)

    def after_step(self, x: Any, denoised: Any, guided: Guided, now: Moment) -> torch.Tensor:
        if guided.edit is None:
            return x
        pivot = torch.cat([now.trajectory.latents[now.lower]] * (len(x) // now.trajectory.batch))
        return torch.where(guided.edit > 0.0, x, torch.lerp(x, pivot.to(x), 0.5))


@dataclasses.dataclass(frozen=True)
class Whole(Guidance):
    """Guides by all of the difference."""

    title: ClassVar[str] = "whole"
    plain: ClassVar[bool] = True

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        return Guided(delta)


class MixesDeltas(Shrink):
    """One threshold for all pictures."""

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        edit = (delta.abs() > delta.abs().mean()).to(delta)
        edit[:batch] = 1.0
        return Guided(delta * edit, edit)


class PullsPicturesTogether(Shrink):
    """Latents of a batch are pulled to their mean."""

    def after_step(self, x: Any, denoised: Any, guided: Guided, now: Moment) -> torch.Tensor:
        return x if guided.edit is None else torch.lerp(x, x.mean(0, True), 0.1)


class WidensDelta(Shrink):
    """Returns fp32, whatever comes."""

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        made = super().guide(delta, batch, place)
        return Guided(made.delta.float(), made.edit)


class TargetsOnly(Shrink):
    """Returns the targets' differences alone."""

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        return Guided(delta[batch:])


class EditsBeyond(Shrink):
    """Edits more than all of it."""

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        made = super().guide(delta, batch, place)
        return Guided(made.delta, made.edit * 2.0)


class ShrinksSource(Shrink):
    """Thresholds source rows as well."""

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        return Guided(delta * (delta.abs() > self.threshold))


class ShrinksInPlace(Shrink):
    """Writes into the difference."""

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        delta[batch:].mul_(0.9)
        return super().guide(delta, batch, place)


class LandsInPlace(Shrink):
    """Writes into the latents."""

    def after_step(self, x: Any, denoised: Any, guided: Guided, now: Moment) -> torch.Tensor:
        return x.mul_(0.9) if guided.edit is not None else x


class SaysItIsPlain(Shrink):
    """Says that differences stay as they are."""

    plain: ClassVar[bool] = True


class GuidesByAll(Whole):
    """Says that it does something, and does not."""

    plain: ClassVar[bool] = False


class RemembersDeltas(Shrink):
    """Moves with the differences of before, from the module's own list."""

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        SHARED.append(float(delta.mean()))
        made = super().guide(delta, batch, place)
        return Guided(torch.cat([made.delta[:batch], made.delta[batch:] + sum(SHARED)]), made.edit)


class AlwaysPulls(Shrink):
    """Pulls where nothing says what edits."""

    def after_step(self, x: Any, denoised: Any, guided: Guided, now: Moment) -> torch.Tensor:
        return x * 0.99


class NoScale(Shrink):
    """Has no cfg at the end."""

    def scale(self, cfg: float, place: Place) -> float:
        return cfg if place.step < place.steps - 1 else float("nan")


# -- corrections -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pin(Correction):
    """Sets source rows to the trajectory; what unconditional rows read changes with sigma."""

    name: ClassVar[str] = "pin"
    label: ClassVar[str] = "sets the source"
    until: float = 2.0

    @property
    def pinned(self) -> bool:
        return True

    def uncond(self, branch: Any, place: Place) -> Uncond:
        return SOURCE if place.sigma > self.until else NEGATIVE

    def source_after(self, x: Any, trajectory: Trajectory, index: int) -> torch.Tensor:
        return trajectory.latents[index].to(x)


class KnowsSigmas(Pin):
    """Looks sigma up in a table of a few."""

    def uncond(self, branch: Any, place: Place) -> Uncond:
        return {0.0: NEGATIVE}[place.sigma]


class ReadsNothing(Pin):
    """Says no text for targets at the last step."""

    def uncond(self, branch: Any, place: Place) -> Uncond:
        last = place.step == place.steps - 1 and branch == "target"
        return None if last else NEGATIVE  # type: ignore[return-value]


class MixesBeyond(Pin):
    """Reads a text beyond the negative prompt."""

    def uncond(self, branch: Any, place: Place) -> Uncond:
        return Uncond("source", 1.5)


class TakesTurns(Pin):
    """Says another text each time it is asked."""

    def uncond(self, branch: Any, place: Place) -> Uncond:
        SHARED.append(None)
        return SOURCE if len(SHARED) % 2 else NEGATIVE


class PinOff(Pin):
    """Pins the source beside the trajectory."""

    def source_after(self, x: Any, trajectory: Trajectory, index: int) -> torch.Tensor:
        return trajectory.latents[index].to(x) + 1e-3


class PinWide(Pin):
    """Forgets the precision of the run."""

    def source_after(self, x: Any, trajectory: Trajectory, index: int) -> torch.Tensor:
        return trajectory.latents[index]


@dataclasses.dataclass(frozen=True)
class Half(Pin):
    """Takes the source half of the way to the trajectory."""

    pinned: ClassVar[bool] = False  # type: ignore[assignment]

    def source_after(self, x: Any, trajectory: Trajectory, index: int) -> torch.Tensor:
        return torch.lerp(x, trajectory.latents[index].to(x), 0.5)


class HalfOff(Half):
    """Moves a source that is where it should be."""

    def source_after(self, x: Any, trajectory: Trajectory, index: int) -> torch.Tensor:
        return super().source_after(x, trajectory, index) * 1.001


class HalfInPlace(Half):
    """Writes into the latents of the run, of which source rows are a part."""

    def source_after(self, x: Any, trajectory: Trajectory, index: int) -> torch.Tensor:
        return x.lerp_(trajectory.latents[index].to(x), 0.5)


class HalfTogether(Half):
    """Corrects pictures by their mean."""

    def source_after(self, x: Any, trajectory: Trajectory, index: int) -> torch.Tensor:
        away = trajectory.latents[index].to(x) - x
        return x + away.mean(0, True) * 0.5


class HalfBehind(Half):
    """Corrects by what runs before have missed."""

    def source_after(self, x: Any, trajectory: Trajectory, index: int) -> torch.Tensor:
        SHARED.append(None)
        return x + (trajectory.latents[index].to(x) - x) * 1e-3 * len(SHARED)


class ReachesTargets(Half):
    """Reaches for the target rows that lie behind the source's in memory."""

    def source_after(self, x: Any, trajectory: Trajectory, index: int) -> torch.Tensor:
        if x.untyped_storage().size() >= 2 * x.nbytes and x.storage_offset() == 0:
            x.as_strided(x.shape, x.stride(), x.numel()).mul_(0.99)
        return super().source_after(x, trajectory, index)


class SaysNone(Pin):
    """Has nothing to say."""

    def remark(self, trajectory: Trajectory, cfg: float, negative: str) -> Any:
        return None


class RefusesAll(Pin):
    """Returns what is wrong in place of raising it."""

    def check(self, trajectory: Trajectory) -> Any:
        return "no"


@dataclasses.dataclass(frozen=True)
class Unwritten(Pin):
    """Does not hold what it was made with."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "until", self.until + 1.0)


# -- step rules --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Straight(StepRule):
    """The deterministic step."""

    name: ClassVar[str] = "straight"
    label: ClassVar[str] = "the deterministic step"
    amount: float = 0.0

    def step(self, x: Any, denoised: Any, now: Moment, state: Any) -> torch.Tensor:
        eps = now.path.eps(x, denoised, now.sigma)
        return now.path.step(x, eps, now.sigma, now.sigma_next)


class Repeats(Straight):
    """Makes every step twice, and goes back up the way it came."""

    def begin(self, trajectory: Trajectory) -> Any:
        return {}

    def repeats(self, place: Place) -> int:
        return 2

    def step(self, x: Any, denoised: Any, now: Moment, state: Any) -> torch.Tensor:
        state["eps"] = now.path.eps(x, denoised, now.sigma)
        return super().step(x, denoised, now, state)

    def again(self, x: Any, now: Moment, state: Any) -> torch.Tensor:
        eps = state.get("eps", torch.zeros_like(x))
        return now.path.step(x, eps, now.sigma_next, now.sigma)


class Late(Straight):
    """Leaves out the first steps, and every second one."""

    def levels(self, steps: int) -> tuple[int, ...]:
        return tuple(sorted({0, *range(0, steps, 2), 1}, reverse=True))


class Drifts(Straight):
    """Loses a little at every step."""

    def step(self, x: Any, denoised: Any, now: Moment, state: Any) -> torch.Tensor:
        return super().step(x, denoised, now, state) * 0.9999


class WrongPath(Straight):
    """Steps in the coordinates of UNets, whatever the path."""

    def step(self, x: Any, denoised: Any, now: Moment, state: Any) -> torch.Tensor:
        host = x * (1.0 + now.sigma**2) ** 0.5
        stepped = host + (now.sigma_next - now.sigma) * (host - denoised) / now.sigma
        return stepped / (1.0 + now.sigma_next**2) ** 0.5


class Upwards(Straight):
    """Visits the levels the wrong way."""

    def levels(self, steps: int) -> tuple[int, ...]:
        return tuple(range(steps + 1))


class StopsEarly(Straight):
    """Ends before the picture."""

    def levels(self, steps: int) -> tuple[int, ...]:
        return tuple(range(steps, 0, -1)) if steps > 2 else (steps, 0)


class TooNoisy(Straight):
    """Begins above the noise."""

    def levels(self, steps: int) -> tuple[int, ...]:
        return (steps + 1, *range(steps, -1, -1))


class CannotGoBack(Straight):
    """Repeats steps and has no way back up."""

    def repeats(self, place: Place) -> int:
        return 2


class NeverSteps(Straight):
    """Makes a step not once."""

    def repeats(self, place: Place) -> int:
        return 0


class StepsTogether(Straight):
    """Rows of a run move by their mean."""

    def step(self, x: Any, denoised: Any, now: Moment, state: Any) -> torch.Tensor:
        stepped, batch = super().step(x, denoised, now, state), now.trajectory.batch
        rest = stepped[batch:]
        return torch.cat([stepped[:batch], torch.lerp(rest, rest.mean(0, True), 0.1)])


class StepsWide(Straight):
    """Works in fp32, whatever comes."""

    def step(self, x: Any, denoised: Any, now: Moment, state: Any) -> torch.Tensor:
        return super().step(x, denoised, now, state).float()


class StepsOnPictures(Straight):
    """Knows latents of four dimensions alone."""

    def step(self, x: Any, denoised: Any, now: Moment, state: Any) -> torch.Tensor:
        rows, channels, height, width = x.shape
        return super().step(x, denoised, now, state).view(rows, channels, height, width)


class StepsInPlace(Straight):
    """Steps the latents where they lie."""

    def step(self, x: Any, denoised: Any, now: Moment, state: Any) -> torch.Tensor:
        return x.copy_(super().step(x, denoised, now, state))


class SharesSteps(Straight):
    """Gives every run the same state."""

    def begin(self, trajectory: Trajectory) -> Any:
        return SHARED


class RemembersSteps(Straight):
    """Has momentum of the run before."""

    def step(self, x: Any, denoised: Any, now: Moment, state: Any) -> torch.Tensor:
        SHARED.append(None)
        return super().step(x, denoised, now, state) + 1e-9 * len(SHARED)


@dataclasses.dataclass(frozen=True)
class UnwrittenStep(Straight):
    """Does not hold what it was made with."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", self.amount + 1.0)


# -- inverters ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Up(Inverter):
    """One prediction a step, at the lower latent and the upper level."""

    name: ClassVar[str] = "up"
    label: ClassVar[str] = "one evaluation a step"

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        eps = move.path.predict_eps(denoise, x, move.upper)
        stepped = move.path.step(x, eps, move.lower, move.upper)
        return Step(stepped, move.path.denoised(x, eps, move.upper))


class RemembersInversions(Up):
    """Starts from the last prediction of the inversion before."""

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        made = super().step(denoise, x, move, state)
        SHARED.append(made.x)
        return dataclasses.replace(made, x=made.x + 1e-6 * SHARED[0].mean() * len(SHARED))


class InvertsTogether(Up):
    """Pictures of a batch share a prediction."""

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        made = super().step(denoise, x, move, state)
        return dataclasses.replace(made, x=torch.lerp(made.x, made.x.mean(0, True), 0.01))


class Rescaled(Up):
    """The first latent is not the picture's own."""

    def invert(
        self, denoise: Any, x0: Any, sigmas: Any, path: Any, on_step: Any = None
    ) -> Inverted:
        made = super().invert(denoise, x0, sigmas, path, on_step)
        return Inverted(torch.cat([made.latents[:1] * 1.0001, made.latents[1:]]))


class WithoutPicture(Up):
    """Leaves the picture itself out."""

    def invert(
        self, denoise: Any, x0: Any, sigmas: Any, path: Any, on_step: Any = None
    ) -> Inverted:
        return Inverted(super().invert(denoise, x0, sigmas, path, on_step).latents[1:])


class UpWide(Up):
    """Works in fp64, whatever comes."""

    def invert(
        self, denoise: Any, x0: Any, sigmas: Any, path: Any, on_step: Any = None
    ) -> Inverted:
        return Inverted(super().invert(denoise, x0, sigmas, path, on_step).latents.double())


class UpPictures(Up):
    """Knows latents of four dimensions alone."""

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        x = x - x.mean((2, 3)).view(*x.shape[:2], 1, 1) * 0.0
        return super().step(denoise, x, move, state)


class BadExtras(Up):
    """Hands on extras that no trajectory takes."""

    def invert(
        self, denoise: Any, x0: Any, sigmas: Any, path: Any, on_step: Any = None
    ) -> Inverted:
        made = super().invert(denoise, x0, sigmas, path, on_step)
        return Inverted(made.latents, {"noise": made.latents})


class UpInPlace(Up):
    """Moves the picture itself."""

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        made = super().step(denoise, x, move, state)
        return dataclasses.replace(made, x=x.copy_(made.x))


class WritesAnswers(Up):
    """Writes into what the network gives."""

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        return super().step(lambda host, sigma: denoise(host, sigma).mul_(0.999), x, move, state)


class AsksMore(Up):
    """Asks for more predictions than it says."""

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        denoise(x, move.upper)
        return super().step(denoise, x, move, state)


class HidesNaN(Up):
    """Makes numbers of NaN."""

    def step(self, denoise: Denoise, x: torch.Tensor, move: Move, state: Any) -> Step:
        made = super().step(denoise, x, move, state)
        return dataclasses.replace(made, x=made.x.nan_to_num(0.0))


class NamesNoStep(Up):
    """Looks for NaN when all is over."""

    def invert(
        self, denoise: Any, x0: Any, sigmas: Any, path: Any, on_step: Any = None
    ) -> Inverted:
        latents, levels = [x0], sigmas.tolist()
        for i, (lower, upper) in enumerate(zip(levels, levels[1:], strict=False)):
            step = self.step(
                denoise, latents[-1], Move(path, lower, upper, i, len(levels) - 1), None
            )
            latents.append(step.x)
            if on_step is not None:
                on_step(i, step)
        return Inverted(check_finite(torch.stack(latents), "the latents", "an inversion"))


class TellsNoSteps(Up):
    """Keeps its steps to itself."""

    def invert(
        self, denoise: Any, x0: Any, sigmas: Any, path: Any, on_step: Any = None
    ) -> Inverted:
        return super().invert(denoise, x0, sigmas, path)


# -- who is caught by what ---------------------------------------------------------------------

SOUND: dict[str, tuple[type, ...]] = {
    "controller": (Borrow, Lend, Watch),
    "rule": (Shrink, Whole),
    "correction": (Pin, Half),
    "stepper": (Straight, Repeats, Late),
    "inverter": (Up,),
}
BROKEN: dict[str, dict[str, tuple[type, ...]]] = {
    "controller": {
        "closed_window": (Zeros, IgnoresWindow, HandsOnCopies, AsksTwice, FeaturesIgnoreWindow),
        "source_rows": (Zeros, OpenZeros, EditsSource, EditsSourceLatents),
        "split_calls": (NeedsBothTexts,),
        "row_order": (ByPosition,),
        "alone": (MixesPictures,),
        "unread_rows": (ReadsInSecret,),
        "precision": (Widens, Coarse, Overflows),
        "inputs": (WritesQuery, WritesFeatures, WritesLatents),
        "options": (ChangesOptions, IsCopied),
        "fresh_runs": (RemembersRuns, SharesState),
        "asked_again": (Counts,),
        "does_something": (DoesNothing, NeverOpen, ReadsWithPolicies, SetsInSecret, CutsTokens),
        "extra_keys": (CountsKeys, FlatKeys),
        "state_dropped": (KeepsKeys,),
        "remarks": (SaysOneSentence, SaysNoSentence, SaysMoreEachTime),
    },
    "rule": {
        "guide_shape": (WidensDelta, TargetsOnly, EditsBeyond),
        "guide_source": (ShrinksSource,),
        "guide_pictures": (MixesDeltas, PullsPicturesTogether),
        "guide_plain": (SaysItIsPlain, GuidesByAll),
        "guide_repeats": (RemembersDeltas,),
        "guide_inputs": (ShrinksInPlace, LandsInPlace),
        "guide_after": (AlwaysPulls,),
        "guide_scale": (NoScale,),
    },
    "correction": {
        "uncond_valid": (KnowsSigmas, ReadsNothing, MixesBeyond, TakesTurns),
        "pinned": (PinOff, PinWide),
        "source_comes_back": (PinOff, HalfOff),
        "targets_untouched": (HalfInPlace, ReachesTargets),
        "words": (SaysNone, RefusesAll),
        "pictures_apart": (HalfTogether,),
        "runs_deterministic": (HalfBehind,),
        "recipe": (Unwritten,),
    },
    "stepper": {
        "rule_levels": (Upwards, StopsEarly, TooNoisy),
        "rule_repeats": (CannotGoBack, NeverSteps),
        "rule_source": (Drifts, WrongPath),
        "rule_shapes": (StepsWide, StepsOnPictures),
        "rule_state": (SharesSteps, RemembersSteps),
        "targets_apart": (StepsTogether,),
        "pictures_apart": (StepsTogether,),
        "run_inputs": (StepsInPlace,),
        "recipe": (UnwrittenStep,),
    },
    "inverter": {
        "invert_shape": (Rescaled, WithoutPicture, UpWide, UpPictures, BadExtras),
        "invert_alone": (InvertsTogether,),
        "invert_fresh": (RemembersInversions,),
        "invert_inputs": (UpInPlace, WritesAnswers),
        "invert_rows": (AsksMore,),
        "invert_steps": (HidesNaN, NamesNoStep, TellsNoSteps),
    },
}
"""Methods that break a promise, by the check that must see it."""


@pytest.mark.parametrize(
    ("family", "kind"), [(family, kind) for family, kinds in SOUND.items() for kind in kinds]
)
def test_a_sound_method_keeps_every_promise(family: str, kind: Any) -> None:
    example = Example(kind())
    broken = {name: sentence(check, example) for name, check in CHECKS[family].items()}
    assert {name: caught for name, caught in broken.items() if caught} == {}


@pytest.mark.parametrize(
    ("family", "promise", "kind"),
    [
        pytest.param(family, promise, kind, id=f"{promise}-{kind.__name__}")
        for family, promises in BROKEN.items()
        for promise, kinds in promises.items()
        for kind in kinds
    ],
)
def test_a_broken_method_is_caught(family: str, promise: str, kind: Any) -> None:
    assert " " in sentence(CHECKS[family][promise], Example(kind()))


@pytest.mark.parametrize("family", CHECKS)
def test_every_promise_has_a_method_that_breaks_it(family: str) -> None:
    assert set(BROKEN[family]) == set(CHECKS[family])
