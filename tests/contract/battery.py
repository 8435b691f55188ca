"""What every registered method has promised, one check for each promise; torch alone, no ComfyUI.

A check takes an `Example`, a method with what it needs to be tried, and raises AssertionError with
the promise that was broken. `CHECKS` holds the checks of each family by name. Calls, latents and
predictions are made by what a row is and not by where it stands, so that the same rows can come in
another order, in several calls, or alone.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import itertools
import math
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from calls import Chunk, Member, row_noise, rows_of
from reference import fused, noise, sd_sigmas

from pivot_edit.core.control import (
    AttentionCall,
    Controller,
    FeatureCall,
    Kind,
    Place,
    Reads,
    Row,
    Site,
)
from pivot_edit.core.correction import Correction, Uncond
from pivot_edit.core.errors import PivotError
from pivot_edit.core.guidance import Guidance, Guided
from pivot_edit.core.inverter import Inverted, Inverter
from pivot_edit.core.layers import Layer
from pivot_edit.core.path import FLOW, PATHS, VP, Denoise, Path
from pivot_edit.core.recipe import built, recipe_of
from pivot_edit.core.step import EditStep, Predict, Prediction
from pivot_edit.core.stepper import Moment, StepRule
from pivot_edit.core.trajectory import Trajectory

Extras = Callable[[int, int], Mapping[str, torch.Tensor]]
"""(steps, pictures) -> the extras that a trajectory must have."""


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A method with options, and what it says of itself that a contract has no word for.

    extras: what it reads in a trajectory; peers: a controller in which pictures of a batch read one
    another; cond_first: a controller whose unconditioned rows need what conditioned ones have left
    in the same step; edits_source: a guidance rule that changes source rows too; exact: whether a
    step rule brings the source back from the trajectory's own predictions, and nothing else.
    """

    method: Any
    extras: Extras = lambda steps, pictures: {}
    peers: bool = False
    cond_first: bool = False
    edits_source: bool = False
    exact: bool = True

    @functools.cached_property
    def whole(self) -> dict[Key, torch.Tensor]:
        """The outputs of a controller's run in one call of all rows, which others must equal."""
        return Trial(self.method).outputs()


Check = Callable[[Example], None]
HALVES = {torch.float16: 0.02, torch.bfloat16: 0.1}
"""Half precisions, and how near to fp32 they are, as a share of the greatest value."""


def hold(check: Check, example: Example) -> None:
    """Make one check; whatever else a method dies of is a broken promise too."""
    try:
        check(example)
    except AssertionError:
        raise
    except Exception as error:
        promise = (check.__doc__ or "").splitlines()[0]
        raise AssertionError(f"{promise} It died of {error!r}") from error


def require(holds: object, promise: str, *where: object) -> None:
    """Raise AssertionError with the promise unless it holds."""
    if not holds:
        place = f" ({', '.join(str(each) for each in where)})" if where else ""
        raise AssertionError(f"{promise}{place}")


def same(
    ours: torch.Tensor, other: torch.Tensor, promise: str, *where: object, share: float = 0.0
) -> None:
    """Require two tensors to be equal, bit for bit or to a share of the greatest value."""
    if not torch.equal(ours, other):
        require(ours.shape == other.shape, promise, *where, tuple(ours.shape), tuple(other.shape))
        off = float((ours - other).abs().max()) if ours.numel() else 0.0
        limit = share * max(float(other.abs().max()), 1.0)
        require(off <= limit, promise, *where, f"off by {off:.3g}")


class Untouched:
    """Copies of tensors, to see afterwards whether somebody has written into them."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = tensors
        self.before = {name: tensor.clone() for name, tensor in tensors.items()}

    def check(self, promise: str, *where: object) -> None:
        """Require every tensor to hold what it held."""
        for name, before in self.before.items():
            same(self.tensors[name], before, promise, name, *where)


def options_of(value: Any) -> Any:
    """Everything in a method's options that can be compared, for before and after a run."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, tuple(value.flatten().tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return type(value), options_of({**fields, **getattr(value, "__dict__", {})})
    if isinstance(value, Mapping):
        return tuple((name, options_of(each)) for name, each in value.items())
    if isinstance(value, tuple | list):
        return tuple(options_of(each) for each in value)
    if isinstance(value, set | frozenset):
        return frozenset(options_of(each) for each in value)
    simple = value is None or isinstance(value, str | int | float | bool)
    return value if simple else id(value)  # results of runs are kept in objects of their own


def check_options(example: Example, use: Callable[[], object]) -> None:
    """Options never change, and a copy of a model's options holds the same method."""
    method, before = example.method, options_of(example.method)
    use()
    require(options_of(method) == before, "options never change: they did in a run")
    require(dataclasses.is_dataclass(method), "a method is a frozen dataclass of options")
    require(
        type(method).__dataclass_params__.frozen,
        "options never change: the dataclass is not frozen",
    )


# -- controllers -------------------------------------------------------------------------------

STEPS, LATENT, HEADS, CHANNELS, COLUMNS = 5, (6, 8), 2, 16, 16
LAYERS = (
    Layer("down", 1, 0, 0, 2),
    Layer("up", 1, 1, 0, 2),
    Layer("up", 2, 1, 0, 1),
)
SCALES = (1, 2)
KINDS: tuple[Kind, ...] = ("resnet", "self", "cross", "block")
SITES = tuple(
    Site(kind, layer, *(math.ceil(side / layer.scale) for side in LATENT), LATENT)
    for layer in LAYERS
    for kind in KINDS
)
PLACES = tuple(
    Place(i, STEPS, sigma, VP.time(sd_sigmas(), sigma))
    for i, sigma in enumerate((13.0, 6.0, 3.0, 1.2, 0.4))
)
TARGETS, PICTURES = 3, 2
EVERYBODY: tuple[Member, ...] = (
    *(("source", 0, picture) for picture in range(PICTURES)),
    *(("target", target, picture) for target in range(TARGETS) for picture in range(PICTURES)),
)
Rows = tuple[Row, ...]
Calls = Callable[[Place], Sequence[Rows]]
"""The UNet calls of a step, each by its rows."""
Key = tuple[int, int, bool, Member]
"""(step, number of the site or LATENTS for what is after it, conditioned, who)."""
NUMBER, LATENTS = {site: number for number, site in enumerate(SITES)}, -1


def joint(members: Sequence[Member] = EVERYBODY, conds: str = "uc", first: int = 0) -> Rows:
    """One call of both texts, as the host makes it; first: the number of its first chunk."""
    chunks = [Chunk(name == "c", tuple(members), first + i) for i, name in enumerate(conds)]
    return rows_of(*chunks)


def always(*calls: Rows) -> Calls:
    """The same calls at every step."""
    return lambda place: calls


def member(row: Row) -> Member:
    """Who a row is."""
    return row.branch, row.target, row.picture


@dataclasses.dataclass(eq=False)
class Trial:
    """One run of a controller, without a network: every site is asked in its turn.

    extended: a link before it appends keys; twice: every call is made twice; watch: what is told of
    every tensor that the controller is given.
    """

    controller: Controller | None
    calls: Calls = always(joint())
    members: Sequence[Member] = EVERYBODY
    dtype: torch.dtype = torch.float64
    extended: bool = False
    twice: bool = False
    seed: int = 0
    watch: Callable[[str, torch.Tensor], None] = lambda name, tensor: None

    def outputs(self, state: Any = None) -> dict[Key, torch.Tensor]:
        """What every row gets at every site, and its latents after every step."""
        if self.controller is not None and state is None:
            state = self.controller.begin()
        outputs: dict[Key, torch.Tensor] = {}
        for place in PLACES:
            for rows in self.calls(place):
                keys = [(row.cond, member(row)) for row in rows]
                for site in (*SITES, *SITES) if self.twice else SITES:
                    made = self.output(rows, site, place, state)
                    for key, out in zip(keys, made, strict=True):
                        outputs[(place.step, NUMBER[site], *key)] = out
            batch, x = rows_of(Chunk(True, tuple(self.members))), self.latents(place)
            self.watch("latents", x)
            if self.controller is not None:
                x = self.controller.after_step(x, batch, place, state)
            for row, latent in zip(batch, x, strict=True):
                outputs[place.step, LATENTS, True, member(row)] = latent
        if self.controller is not None:
            self.controller.finish(x, batch, state)
        return outputs

    def latents(self, place: Place) -> torch.Tensor:
        """Latents that a sampler has made: [rows, 4, h, w]."""
        batch = rows_of(Chunk(True, tuple(self.members)))
        return self._noise(batch, (4, *LATENT), place.step)

    def output(self, rows: Rows, site: Site, place: Place, state: Any) -> torch.Tensor:
        """What one site gives."""
        if site.kind in ("resnet", "block"):
            feature = self.feature(rows, site, place)
            if self.controller is None or not self.controller.works(site, place):
                return feature.x
            return self.controller.feature(feature, lambda inner: inner.x, state)
        call = self.attention(rows, site, place)
        if self.controller is None or not self.controller.works(site, place):
            return attend(call)
        return self.controller(self._probed(call, state), attend, state)

    def feature(self, rows: Rows, site: Site, place: Place) -> FeatureCall:
        """A call of features."""
        x = self._noise(rows, (CHANNELS, site.height, site.width), NUMBER[site], place.step)
        self.watch("x", x)
        return FeatureCall(x, site, place, rows)

    def attention(self, rows: Rows, site: Site, place: Place) -> AttentionCall:
        """A call of attention."""
        tokens = site.height * site.width
        keys = tokens if site.kind == "self" else COLUMNS
        where = NUMBER[site], place.step
        q = self._noise(rows, (tokens, CHANNELS), "q", *where)
        k, v = (self._noise(rows, (keys, CHANNELS), name, *where) for name in "kv")
        if self.extended:
            k, v = (torch.cat([each, each[:, : keys // 2].flip(2)], 1) for each in (k, v))
        for name, tensor in zip("qkv", (q, k, v), strict=True):
            self.watch(name, tensor)
        return AttentionCall(q, k, v, HEADS, site, place, rows, fused(HEADS))

    def _probed(self, call: AttentionCall, state: Any) -> AttentionCall:
        """The call with a probe, as the host makes it: the chain again, on the same state."""

        def probe(values: torch.Tensor) -> torch.Tensor:
            assert self.controller is not None
            return self.controller(dataclasses.replace(call, v=values, probe=None), attend, state)

        return dataclasses.replace(call, probe=probe)

    def _noise(self, rows: Rows, shape: tuple[int, ...], *name: Any) -> torch.Tensor:
        """Numbers that fp16 and bf16 hold too, so that precisions are compared on equal inputs."""
        return row_noise(rows, shape, self.seed, *name).to(torch.bfloat16).to(self.dtype)


@functools.cache
def uncontrolled() -> dict[Key, torch.Tensor]:
    """The outputs of a run without a controller."""
    return Trial(None).outputs()


def attend(call: AttentionCall) -> torch.Tensor:
    """The rest of the chain: the host's attention."""
    return call.fused(call.q, call.k, call.v)


def where_of(key: Key) -> tuple[str, ...]:
    """A key in words."""
    step, number, cond, (branch, target, picture) = key
    site = SITES[number]
    at = "the latents" if number == LATENTS else f"{site.kind} {site.layer.name}"
    who = f"{branch} {target} of picture {picture}, {'cond' if cond else 'uncond'}"
    return f"step {step}", at, who


def agree(
    ours: Mapping[Key, torch.Tensor],
    other: Mapping[Key, torch.Tensor],
    promise: str,
    share: float = 1e-6,
) -> None:
    """Require the outputs of one run to be those of another, wherever both have any."""
    for key in (key for key in other if key in ours):
        same(ours[key], other[key], promise, *where_of(key), share=share)


def closed_window(example: Example) -> None:
    """Where a controller does not work, it hands the call on as it is."""
    control, trial = example.method, Trial(None)
    promise = "a closed window is bit-equal to no controller"
    for place in PLACES:
        for site in (site for site in SITES if not control.works(site, place)):
            rows, state = joint(), control.begin()
            where = f"step {place.step}", site.kind, site.layer.name
            if site.kind in ("resnet", "block"):
                feature, seen = trial.feature(rows, site, place), list[FeatureCall]()
                out = control.feature(
                    feature, lambda inner, s=seen: s.append(inner) or inner.x, state
                )
                handed = [(inner.x,) for inner in seen]
                wanted, given = feature.x, (feature.x,)
            else:
                call, asked = trial.attention(rows, site, place), list[AttentionCall]()
                out = control(call, lambda inner, s=asked: s.append(inner) or attend(inner), state)
                handed = [(inner.q, inner.k, inner.v) for inner in asked]
                wanted, given = attend(call), (call.q, call.k, call.v)
            same(out, wanted, promise, *where)
            passed = len(handed) == 1 and all(a is b for a, b in zip(handed[0], given, strict=True))
            require(passed, "a closed window hands on the tensors that came, once", *where)


def source_rows(example: Example) -> None:
    """Source rows are what they are without the controller, bit for bit."""
    plain, ours = uncontrolled(), example.whole
    chosen = {key: out for key, out in plain.items() if key[3][0] == "source"}
    agree(ours, chosen, "a source row is never edited", 0.0)


def split_calls(example: Example) -> None:
    """The host may run conditioned and unconditioned rows in calls of their own."""
    whole = example.whole
    promise = "conditioned and unconditioned rows in two calls give the rows of one call"
    for order in ("cu",) if example.cond_first else ("uc", "cu"):
        apart = [joint(conds=name) for name in order]
        agree(Trial(example.method, always(*apart)).outputs(), whole, promise)


def row_order(example: Example) -> None:
    """What a row gets follows from what it is, not from where it stands."""
    whole = example.whole
    mixed = tuple(sorted(EVERYBODY, key=lambda each: (each[2], each[0])))  # as under KSampler
    for members, conds, first in (
        (EVERYBODY, "cu", 0),
        (EVERYBODY, "uc", 5),
        (mixed, "uc", 0),
        (EVERYBODY[::-1], "cu", 1),
    ):
        moved = Trial(example.method, always(joint(members, conds, first)), members).outputs()
        agree(moved, whole, "rows in another order get the same")


def alone(example: Example) -> None:
    """Several pictures and targets are each as alone."""
    whole = example.whole
    for target in range(TARGETS):
        pictures = range(PICTURES) if example.peers else [target % PICTURES]
        sources = [("source", 0, picture) for picture in pictures]
        members = [*sources, *(("target", target, picture) for picture in pictures)]
        few = Trial(example.method, always(joint(members)), members).outputs()
        agree(few, whole, "a picture and a target among others get what they get alone")


def unread_rows(example: Example) -> None:
    """Source rows that `reads` does not name are not run, and nobody misses them."""
    control = example.method
    targets = [who for who in EVERYBODY if who[0] == "target"]
    reads: set[Reads] = {control.reads(place) for place in PLACES}
    require(reads <= {"nothing", "cond", "both"}, "reads says nothing, cond or both", reads)

    def economical(place: Place) -> Sequence[Rows]:
        read = control.reads(place)
        uncond = EVERYBODY if read == "both" else targets
        cond = targets if read == "nothing" else EVERYBODY
        return [rows_of(Chunk(False, tuple(uncond), 0), Chunk(True, tuple(cond), 1))]

    few, whole = Trial(control, economical).outputs(), example.whole
    agree(few, whole, "a controller needs no source rows but those that `reads` names")


def precision(example: Example) -> None:
    """Half precision in, half precision out, and near to fp32; thresholds may tip a few numbers."""
    whole = Trial(example.method, dtype=torch.float32).outputs()
    for dtype, share in HALVES.items():
        half = Trial(example.method, dtype=dtype).outputs()
        near = []
        for key, out in half.items():
            require(out.dtype == dtype, f"{dtype} in, {dtype} out", out.dtype)
            require(torch.isfinite(out).all(), f"outputs in {dtype} are finite")
            near.append((out.float() - whole[key]).abs() <= share * whole[key].abs().max())
        nearly = float(torch.cat([each.flatten() for each in near]).float().mean())
        require(nearly > 0.97, f"{dtype} is close to fp32", f"{nearly:.3f} of the numbers are")


def inputs(example: Example) -> None:
    """q, k, v, features and latents are never written to."""
    given: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    watch = lambda name, tensor: given.append((name, tensor, tensor.clone()))  # noqa: E731
    Trial(example.method, watch=watch).outputs()
    for name, tensor, before in given:
        same(tensor, before, "a controller never writes into what it is given", name)


def options(example: Example) -> None:
    """Options never change, and ComfyUI's copies of a model hold the controller itself."""
    check_options(example, lambda: Trial(example.method).outputs())
    require(copy.deepcopy(example.method) is example.method, "a deep copy is the controller itself")


def fresh_runs(example: Example) -> None:
    """A run remembers nothing of runs before it."""
    control = example.method
    states = control.begin(), control.begin()
    require(states[0] is None or states[0] is not states[1], "begin makes fresh state for each run")
    first = Trial(control).outputs()
    Trial(control, seed=1).outputs()
    agree(Trial(control).outputs(), first, "runs with fresh state are equal bit for bit", 0.0)


def asked_again(example: Example) -> None:
    """Steps are known by sigma, not by counting: a call that is made twice is made twice."""
    again, once = Trial(example.method, twice=True).outputs(), example.whole
    agree(again, once, "a call asked again is the same call again", 0.0)


def does_something(example: Example) -> None:
    """An open window has an effect, unless the controller only reads."""
    control = example.method
    plain, ours = uncontrolled(), example.whole
    for key, out in ours.items():
        require(out.shape == plain[key].shape, "outputs have the shape of what came", key[0])
    changed = {key for key, out in ours.items() if not torch.equal(out, plain[key])}
    latents = any(key[1] == LATENTS for key in changed)
    attention = any(key[1] != LATENTS for key in changed)
    works = any(control.works(site, place) for site in SITES for place in PLACES)
    require(works or latents, "an open window is open somewhere in the run")
    reader = not control.needs_source and not attention
    require(attention or latents or reader, "an open window does something")
    policies = control.same_noise or control.deterministic or control.sets_latents
    promise = "a reader asks for no policy: the picture stays as it is without it"
    require(attention or latents or not policies, promise)
    require(control.sets_latents or not latents, "latents are set only where sets_latents says so")


def extra_keys(example: Example) -> None:
    """A link before it may append keys: everything fits still, or a refusal says why not."""
    whole = extended(example.method, EVERYBODY)
    pictures = range(PICTURES) if example.peers else [1]
    members = [(branch, t, i) for branch, t in (("source", 0), ("target", 1)) for i in pictures]
    promise = "rows still read their own picture's keys where a link before has appended some"
    agree(extended(example.method, members), whole, promise)


def extended(control: Controller, members: Sequence[Member]) -> dict[Key, torch.Tensor]:
    """What attention gives where a link before the controller has appended keys."""
    rows, outputs = joint(members), dict[Key, torch.Tensor]()
    trial, plain = Trial(control, extended=True), Trial(None, extended=True)
    state = control.begin()
    sites = [site for site in SITES if site.kind in ("self", "cross")]
    for place, site in itertools.product(PLACES, sites):
        where = f"step {place.step}", site.kind, site.layer.name
        try:
            out = trial.output(rows, site, place, state)
        except PivotError as error:  # words belong to columns: a readable refusal is an answer
            promise = "self-attention takes any number of keys"
            require(site.kind == "cross", promise, *where, error)
            continue
        except (RuntimeError, IndexError, ValueError) as error:
            promise = "keys that another link appends do not break shapes"
            raise AssertionError(f"{promise} ({', '.join(where)}): {error}") from error
        wanted = plain.output(rows, site, place, None)
        require(out.shape == wanted.shape, "appended keys do not change the output's shape")
        for row, each, other in zip(rows, out, wanted, strict=True):
            outputs[place.step, NUMBER[site], row.cond, member(row)] = each
            if row.branch == "source":
                same(each, other, "a source row reads all keys of its call", *where)
    return outputs


def state_dropped(example: Example) -> None:
    """What a controller keeps of a run goes with the run's state."""
    control, kept = example.method, list[tuple[str, Any]]()

    def watch(name: str, tensor: torch.Tensor) -> None:
        kept.append((name, weakref.ref(tensor)))

    state = control.begin()
    Trial(control, watch=watch).outputs(state)
    try:
        kept.append(("state", weakref.ref(state)))
    except TypeError:  # of None and of built-in types there are no weak references
        pass
    del state
    if any(reference() is not None for _, reference in kept):
        gc.collect()
    alive = {name for name, reference in kept if reference() is not None}
    require(not alive, "what a controller keeps is dropped with its state", *sorted(alive))


def remarks(example: Example) -> None:
    """What a controller says of a run are whole sentences, the same in equal runs."""
    control, said = example.method, list[tuple[str, ...]]()
    for _ in range(2):
        state = control.begin()
        Trial(control).outputs(state)
        said.append(control.remark(state))
    for each in (*said, control.remark(control.begin())):
        require(isinstance(each, tuple), "remark gives a tuple of sentences", repr(each))
        for line in each:
            whole = isinstance(line, str) and line.endswith(".") and "\n" not in line
            require(whole, "a remark is a whole sentence in one line", repr(line))
    require(said[0] == said[1], "equal runs have equal remarks", *said)


# -- what a run of an edit needs ---------------------------------------------------------------

N, CFG = 6, 3.0
SHAPE, VIDEO = (4, 4, 5), (4, 3, 4, 5)
"""A latent [C, H, W], and one of a video [C, F, H, W]."""


def eps_of(text: float, constant: bool = False) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """A small smooth network for one text: eps, or the velocity, of every number by itself."""
    if constant:
        return lambda x, sigma: torch.full_like(x, 0.3 + text)
    return lambda x, sigma: torch.tanh(0.4 * x + text + 0.1 * math.log1p(sigma)) + 0.2 * text


def levels_of(path: Path, steps: int) -> torch.Tensor:
    """Ascending levels [steps + 1]."""
    table = sd_sigmas() if path is VP else torch.linspace(0.001, 1.0, 1000, dtype=torch.float64)
    return path.levels(table, steps)


def picture_noise(pictures: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Latents [pictures, *shape] by the pictures' names."""
    return torch.stack([noise(70 + picture, *shape) for picture in pictures])


def pivot(
    example: Example,
    pictures: Sequence[int] = (0, 1),
    path: Path = VP,
    shape: tuple[int, ...] = SHAPE,
    steps: int = N,
    constant: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Trajectory:
    """A trajectory whose own predictions lead back exactly: it was made by sampling down."""
    sigmas, net = levels_of(path, steps), eps_of(0.0, constant)
    latents = [picture_noise(pictures, shape)]
    for upper, lower in zip(sigmas.flip(0).tolist(), sigmas.flip(0).tolist()[1:], strict=False):
        eps = net(latents[-1], upper)
        latents.append(path.step(latents[-1], eps, upper, lower))
    extras = {
        name: torch.stack([extra[:, picture] for picture in pictures], 1)
        for name, extra in example.extras(steps, 1 + max(pictures)).items()
    }
    stacked = torch.stack(latents[::-1]).to(dtype)
    return Trajectory(sigmas, stacked, "made", "toy", "a cat", extras=extras, path=path.name)


def edit_step(example: Example, trajectory: Trajectory) -> EditStep:
    """A step with the method in its place, and the plainest of the others."""
    parts: dict[str, Any] = {"correction": Plain(), "guidance": Whole(), "rule": Straight()}
    for name, kind in (("correction", Correction), ("guidance", Guidance), ("rule", StepRule)):
        if isinstance(example.method, kind):
            parts[name] = example.method
    return EditStep(trajectory, **parts, table=sd_sigmas())


class Plain(Correction):
    """Corrects nothing."""

    name, label = "plain", "nothing"


class Whole(Guidance):
    """Guides by the whole difference."""

    title, plain = "whole", True

    def guide(self, delta: torch.Tensor, batch: int, place: Place) -> Guided:
        return Guided(delta)


class Straight(StepRule):
    """The deterministic step."""

    name, label = "straight", "the deterministic step"

    def step(self, x: torch.Tensor, denoised: torch.Tensor, now: Moment, state: Any) -> Any:
        return now.path.step(x, now.path.eps(x, denoised, now.sigma), now.sigma, now.sigma_next)


def predictor(
    step: EditStep, texts: Sequence[float], constant: bool = False, drift: bool = True
) -> Predict:
    """Predictions under guidance. The source row's conditioned ones are the trajectory's own, from
    its level to the next that the run visits; each target reads its own text. Unconditioned rows
    read one text, and where nothing is to drift, source rows their conditioned one."""
    batch = step.trajectory.batch

    def predict(x: torch.Tensor, now: Moment) -> Prediction:
        path, groups = now.path, x.split(batch)
        cond = [own_prediction(now, groups[0])]

        def read(text: float, group: torch.Tensor) -> torch.Tensor:
            return path.denoised(group, eps_of(text, constant)(group, now.sigma), now.sigma)

        uncond = [read(0.1, group) if drift or i else cond[0] for i, group in enumerate(groups)]
        cond += [read(text, group) for text, group in zip(texts, groups[1:], strict=True)]

        def combine(guiding: torch.Tensor, scale: float) -> torch.Tensor:
            rest = torch.cat(uncond)[batch:]
            return rest + scale * (guiding[batch:] - rest)

        return step.guide(torch.cat(cond), torch.cat(uncond), now.place, CFG, combine)

    return predict


def own_prediction(now: Moment, x: torch.Tensor) -> torch.Tensor:
    """The x0 that leads from the trajectory's level to the next, for source rows x that are on
    it."""
    upper, lower = (now.trajectory.latents[i].to(x) for i in (now.upper, now.lower))
    ends = now.path.to_host(upper, now.sigma), now.path.to_host(lower, now.sigma_next)
    slope = (ends[1] - ends[0]) / (now.sigma_next - now.sigma)
    return now.path.denoised(x, slope, now.sigma)


def replayed(
    example: Example,
    trajectory: Trajectory,
    texts: Sequence[float] = (0.5, -0.7),
    constant: bool = False,
    drift: bool = True,
) -> list[torch.Tensor]:
    """The latents [(1 + targets) * B, ...] at the start and after every step of a whole run."""
    step = edit_step(example, trajectory)
    predict, state = predictor(step, texts, constant, drift), step.rule.begin(trajectory)
    latents = [step.start(1 + len(texts))]
    for now in step.moments:
        latents.append(step(latents[-1], now, predict, lambda x, place: x, state).x)
    return latents


def runs_alike(
    ours: Sequence[torch.Tensor], other: Sequence[torch.Tensor], promise: str, share: float = 0.0
) -> None:
    """Require two runs to have the same latents at every level."""
    for i, (a, b) in enumerate(zip(ours, other, strict=True)):
        same(a, b, promise, f"step {i}", share=share)


def pictures_apart(example: Example) -> None:
    """Pictures of a batch do not know of each other."""
    both = replayed(example, pivot(example))
    for picture in (0, 1):
        one = replayed(example, pivot(example, (picture,)))
        chosen = [x[picture::2] for x in both]
        runs_alike(chosen, one, "a picture of a batch is edited as it is alone", 1e-6)


def targets_apart(example: Example) -> None:
    """Targets do not know of each other."""
    both = replayed(example, pivot(example), (0.5, -0.7))
    for target, text in enumerate((0.5, -0.7)):
        one = replayed(example, pivot(example), (text,))
        rows = [0, 1, 2 + 2 * target, 3 + 2 * target]
        chosen = [x[rows] for x in both]
        runs_alike(chosen, one, "a target among others is edited as it is alone", 1e-6)


def runs_deterministic(example: Example) -> None:
    """A run remembers nothing of runs before it."""
    check_options(example, lambda: replayed(example, pivot(example)))
    first = replayed(example, pivot(example))
    replayed(example, pivot(example, (2, 3)), (0.9, 0.1))
    runs_alike(replayed(example, pivot(example)), first, "runs are equal bit for bit")


def run_inputs(example: Example) -> None:
    """Nobody writes into the trajectory, or into what a step is given."""
    trajectory = pivot(example)
    step = edit_step(example, trajectory)
    predict, state = predictor(step, (0.5,)), step.rule.begin(trajectory)
    before = Untouched(latents=trajectory.latents, sigmas=trajectory.sigmas, **trajectory.extras)
    x = step.start(2)
    for now in step.moments:
        given = Untouched(x=x)
        x = step(x, now, predict, lambda x, place: x, state).x
        given.check("a step never writes into the latents it is given", now.place.step)
    before.check("a trajectory never changes")


def run_precision(example: Example) -> None:
    """The latents of a run keep their precision, and their shape when they are a video's."""
    for dtype in (torch.float32, torch.float64):
        for x in replayed(example, pivot(example, dtype=dtype)):
            require(x.dtype == dtype, "latents keep their precision", dtype, x.dtype)


def recipe(example: Example) -> None:
    """A method can be written down as its name and options, and made again."""
    method = example.method
    again = built(recipe_of(method), {method.name: type(method)}, "method")
    require(again == method, "a method that is made again from its recipe is equal")


# -- guidance rules ----------------------------------------------------------------------------

PAIRS = (2, 3)
"""Pictures and targets of a delta."""


def delta_of(
    pictures: Sequence[int] = range(PAIRS[0]), dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Differences [(1 + targets) * B, C, H, W]: the source's small, the targets' larger."""
    rows = [
        noise(7 * group + picture, *SHAPE) * (0.3 if group == 0 else 1.0)
        for group in range(1 + PAIRS[1])
        for picture in pictures
    ]
    return torch.stack(rows).to(torch.bfloat16).to(dtype)


def guided(example: Example, delta: torch.Tensor, place: Place, batch: int = PAIRS[0]) -> Guided:
    """What the rule makes of a difference."""
    return example.method.guide(delta, batch, place)


def guide_shape(example: Example) -> None:
    """What guides has the shape and precision of the difference; what edits is a share."""
    for dtype in (torch.float32, torch.float64, *HALVES):
        for place in PLACES:
            delta = delta_of(dtype=dtype)
            made = guided(example, delta, place)
            require(made.delta.shape == delta.shape, "delta keeps its shape", made.delta.shape)
            require(made.delta.dtype == dtype, "delta keeps its precision", dtype, made.delta.dtype)
            require(torch.isfinite(made.delta).all(), "delta is finite", dtype)
            if made.edit is not None:
                torch.broadcast_shapes(made.edit.shape, delta.shape)
                inside = bool(((made.edit >= 0.0) & (made.edit <= 1.0)).all())
                require(inside, "edit is a share between 0 and 1")


def guide_source(example: Example) -> None:
    """A rule leaves source rows alone, unless it says that it does not."""
    for place in PLACES:
        delta = delta_of()
        made = guided(example, delta, place).delta[: PAIRS[0]]
        if not example.edits_source:
            same(made, delta[: PAIRS[0]], "source rows are guided by all of their difference")


def guide_pictures(example: Example) -> None:
    """Pictures of a batch do not know of each other."""
    for place in PLACES:
        whole = guided(example, delta_of(), place)
        for picture in range(PAIRS[0]):
            one = guided(example, delta_of([picture]), place, 1)
            promise = "a picture of a batch is guided as it is alone"
            same(whole.delta[picture :: PAIRS[0]], one.delta, promise, share=1e-6)
            require((whole.edit is None) == (one.edit is None), promise, "edit")
            if whole.edit is not None and one.edit is not None:
                same(whole.edit[picture :: PAIRS[0]], one.edit, promise, "edit", share=1e-6)
    pictures_apart(example)


def guide_plain(example: Example) -> None:
    """A rule that says it is plain is plain; one that is not does something."""
    changed = False
    for place in PLACES:
        delta = delta_of()
        made = guided(example, delta, place)
        changed = changed or not torch.equal(made.delta, delta) or made.edit is not None
        if example.method.plain:
            same(made.delta, delta, "plain: differences stay as they are")
    moves = any(not torch.equal(x, y) for x, y in zip(*_with_and_without(example), strict=True))
    require(example.method.plain or changed or moves, "a rule that is not plain does something")


def _with_and_without(example: Example) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    trajectory = pivot(example)
    return replayed(example, trajectory), replayed(Example(Whole()), trajectory)


def guide_repeats(example: Example) -> None:
    """The same difference again is guided the same."""
    for place in PLACES:
        first, _, again = (guided(example, d, place) for d in (delta_of(), -delta_of(), delta_of()))
        same(again.delta, first.delta, "a rule has no state: the same again gives the same")
    runs_deterministic(example)


def guide_inputs(example: Example) -> None:
    """A rule writes into nothing that it is given."""
    rule, trajectory = example.method, pivot(example)
    for now in edit_step(example, trajectory).moments:
        delta, x, denoised = (picture_noise(range(6), SHAPE) + i for i in range(3))
        given = Untouched(delta=delta, x=x, denoised=denoised)
        made = rule.guide(delta, 2, now.place)
        rule.limit(denoised, now)
        rule.after_step(x, denoised, made, now)
        given.check("a rule never writes into what it is given")
    run_inputs(example)


def guide_after(example: Example) -> None:
    """Where a rule says nothing of what edits, latents are left as they are."""
    rule, trajectory = example.method, pivot(example)
    for now in edit_step(example, trajectory).moments:
        x, denoised, delta = (picture_noise(range(6), SHAPE) + i for i in range(3))
        out = rule.after_step(x, denoised, Guided(delta), now)
        same(out, x, "without `edit` nothing pulls on the latents", now.place.step)
        made = rule.after_step(x, denoised, rule.guide(delta, 2, now.place), now)
        require(made.shape == x.shape and made.dtype == x.dtype, "latents keep shape and precision")
        limited = rule.limit(denoised, now)
        alike = limited.shape == denoised.shape and limited.dtype == denoised.dtype
        require(alike, "a limited x0 keeps shape and precision")


def guide_scale(example: Example) -> None:
    """The cfg at a place is a number, and so is that of source rows where it is their own."""
    for place in PLACES:
        for cfg in (1.0, 7.5):
            scale = example.method.scale(cfg, place)
            sound = isinstance(scale, float | int) and math.isfinite(scale)
            require(sound, "the cfg at a place is a finite number", scale)
    cfg = example.method.source_cfg
    require(cfg is None or math.isfinite(cfg), "source_cfg is None or a number", cfg)


# -- corrections -------------------------------------------------------------------------------


def uncond_valid(example: Example) -> None:
    """What unconditional rows read is said for every step and branch, and always the same."""
    for steps in (1, N, 50):
        for now in edit_step(example, pivot(example, steps=steps)).moments:
            for branch in ("source", "target"):
                read = example.method.uncond(branch, now.place)
                where = branch, now.place.step
                require(isinstance(read, Uncond), "uncond says what is read", *where)
                sound = read.base in ("negative", "source") and 0.0 <= read.mix <= 1.0
                require(sound and isinstance(read.null, bool), "uncond names a text", *where, read)
                again = example.method.uncond(branch, now.place)
                require(again == read, "uncond says the same when it is asked again", *where)


def pinned(example: Example) -> None:
    """A correction that says its source rows are pinned sets them to the trajectory exactly."""
    method = example.method
    require(isinstance(method.pinned, bool), "pinned is true or false", method.pinned)
    for dtype in (torch.float32, torch.float64, torch.float16):
        trajectory = pivot(example)
        for index in range(N):
            x = picture_noise((5, 6), SHAPE).to(dtype)
            out = method.source_after(x, trajectory, index)
            sound = out.shape == x.shape and out.dtype == dtype
            require(sound, "source rows keep shape and precision", out.shape, out.dtype)
            require(torch.isfinite(out).all(), "source rows are finite")
            if method.pinned:
                wanted = trajectory.latents[index].to(dtype)
                same(out, wanted, "a pinned source is the trajectory, bit for bit", index)


def source_comes_back(example: Example) -> None:
    """A source that is on its trajectory stays there."""
    trajectory = pivot(example)
    for index in range(N):
        x = trajectory.latents[index].clone()
        out = example.method.source_after(x, trajectory, index)
        promise = "a correction does not move a source that is on its trajectory"
        same(out, trajectory.latents[index], promise, index, share=1e-9)


def targets_untouched(example: Example) -> None:
    """A correction sets source rows and no others."""
    trajectory = pivot(example)
    ours, other = edit_step(example, trajectory), edit_step(Example(Plain()), trajectory)
    for a, b in zip(ours.moments, other.moments, strict=True):
        x = picture_noise(range(6), SHAPE)
        same(
            ours.land(x, Prediction(x), a)[2:], other.land(x, Prediction(x), b)[2:], "targets stay"
        )
    given = Untouched(latents=trajectory.latents, x=x[:2])
    example.method.source_after(x[:2], trajectory, 0)
    given.check("a correction never writes into what it is given")
    chosen, plain = (replayed(each, trajectory) for each in (example, Example(Plain())))
    runs_alike(
        [x[2:] for x in chosen],
        [x[2:] for x in plain],
        "a correction leaves target rows alone, bit for bit",
    )


def words(example: Example) -> None:
    """What a correction has to say is text, and a trajectory that suits it is no error."""
    trajectory = pivot(example)
    require(example.method.check(trajectory) is None, "check returns nothing, or raises")
    for cfg in (1.0, 7.5):
        for negative in ("", "another"):
            said = example.method.remark(trajectory, cfg, negative)
            require(
                isinstance(said, str) and "\n" not in said, "a remark is one line of text", said
            )
    if example.extras(N, 1):
        try:
            example.method.check(pivot(Example(example.method)))
        except PivotError:
            return
        raise AssertionError("a trajectory that lacks what a method needs is refused")


# -- step rules --------------------------------------------------------------------------------


def rule_levels(example: Example) -> None:
    """The levels of a run go down, within those that there are, to the clean end."""
    for steps in (1, 2, 3, N, 20, 50):
        levels = example.method.levels(steps)
        down = all(a > b for a, b in zip(levels, levels[1:], strict=False))
        require(down and len(levels) >= 2, "the levels of a run descend", steps, levels)
        require(levels[0] <= steps and levels[-1] == 0, "a run ends at the picture", steps, levels)
        trajectory = pivot(example, steps=steps)
        chosen = trajectory.sigmas[list(levels)].float()
        same(example.method.descending(trajectory), chosen, "descending gives those levels")


def rule_repeats(example: Example) -> None:
    """A step is made once or more often, and a rule that repeats it can go back up."""
    rule, trajectory = example.method, pivot(example)
    for now in edit_step(example, trajectory).moments:
        times = rule.repeats(now.place)
        require(isinstance(times, int) and times >= 1, "a step is made at least once", times)
        require(rule.reads(now.place) in ("nothing", "cond", "both"), "reads names source rows")
        if times > 1:
            x = trajectory.latents[now.lower]
            up = rule.again(x, now, rule.begin(trajectory))
            require(up.shape == x.shape, "time travel keeps the latents' shape", up.shape)
    require(rule.check(trajectory) is None, "check returns nothing, or raises")


def rule_source(example: Example) -> None:
    """The trajectory's own predictions bring the source back, on both paths, of videos too."""
    if not example.exact:
        return
    for path in PATHS.values():
        for shape in (SHAPE, VIDEO):
            for constant in (True, False):
                trajectory = pivot(example, path=path, shape=shape, constant=constant)
                back = replayed(example, trajectory, constant=constant, drift=False)[-1][:2]
                promise = "the source comes back from the trajectory's own predictions"
                same(back, trajectory.latents[0], promise, path.name, len(shape), share=1e-6)


def rule_shapes(example: Example) -> None:
    """A run keeps shape and precision, and gives finite numbers."""
    run_precision(example)
    for path in PATHS.values():
        for shape in (SHAPE, VIDEO):
            for x in replayed(example, pivot(example, path=path, shape=shape)):
                require(x.shape == (6, *shape), "a step keeps the latents' shape", x.shape)
                require(torch.isfinite(x).all(), "a step gives finite numbers")


def rule_state(example: Example) -> None:
    """State is fresh in each run."""
    trajectory = pivot(example)
    first, second = (example.method.begin(trajectory) for _ in range(2))
    require(first is None or first is not second, "begin makes fresh state for each run")
    runs_deterministic(example)


# -- inverters ---------------------------------------------------------------------------------


class Counted:
    """A denoiser that counts the predictions of a picture, and breaks down above a level."""

    def __init__(self, path: Path, breaks: float = math.inf, text: float = 0.2) -> None:
        self.path, self.breaks, self.net, self.asked = path, breaks, eps_of(text), 0

    def __call__(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.asked += 1
        out = x - sigma * self.net(self.path.from_host(x, sigma), sigma)
        return torch.full_like(out, math.nan) if sigma >= self.breaks else out


def inverted(
    example: Example,
    x0: torch.Tensor,
    path: Path = VP,
    steps: int = N,
    denoise: Denoise | None = None,
    on_step: Any = None,
) -> Inverted:
    """The inversion of pictures."""
    method: Inverter = example.method
    return method.invert(denoise or Counted(path), x0, levels_of(path, steps), path, on_step)


def invert_shape(example: Example) -> None:
    """All latents of all levels, the first the picture itself, on both paths, of videos too."""
    for path in (VP, FLOW):
        for shape in (SHAPE, VIDEO):
            for dtype in (torch.float32, torch.float64):
                x0 = picture_noise((0, 1), shape).to(dtype)
                try:
                    made = inverted(example, x0, path)
                except PivotError:  # a method may be of one path alone, and says so
                    require(path is FLOW, "every inversion works on UNets' path")
                    continue
                latents, where = made.latents, (path.name, len(shape), dtype)
                require(latents.shape == (N + 1, 2, *shape), "one latent of each level", *where)
                require(latents.dtype == dtype, "latents keep their precision", *where)
                require(torch.isfinite(latents).all(), "latents are finite", *where)
                same(latents[0], x0, "the first latent is the picture itself", *where)
                Trajectory(levels_of(path, N), latents, "a", "b", "c", extras=made.extras)


def invert_alone(example: Example) -> None:
    """Pictures of a batch do not know of each other."""
    x0 = picture_noise((0, 1), SHAPE)
    both = inverted(example, x0).latents
    for picture in (0, 1):
        one = inverted(example, x0[picture : picture + 1]).latents
        promise = "a picture of a batch is inverted as it is alone"
        same(both[:, picture : picture + 1], one, promise, share=1e-6)


def invert_fresh(example: Example) -> None:
    """An inversion remembers nothing of inversions before it."""
    x0, other = (picture_noise(pictures, SHAPE) for pictures in ((0, 1), (2, 3)))
    check_options(example, lambda: inverted(example, x0))
    first = inverted(example, x0).latents
    inverted(example, other)
    same(inverted(example, x0).latents, first, "inversions are equal bit for bit")


def invert_inputs(example: Example) -> None:
    """Nobody writes into the picture, and latents that were given are not changed afterwards."""
    x0, seen = picture_noise((0, 1), SHAPE), list[Untouched]()
    given, net = Untouched(x0=x0), Counted(VP)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        out = net(x, sigma)
        seen.append(Untouched(x=x, denoised=out))
        return out

    inverted(example, x0, denoise=denoise)
    given.check("an inversion never writes into the picture")
    for each in seen:
        each.check("an inversion never writes into what the network is asked or answers")


def invert_rows(example: Example) -> None:
    """`rows` is an upper bound of the predictions that an inversion asks for."""
    for steps in (1, 2, N, 20):
        net = Counted(VP)
        inverted(example, picture_noise((0,), SHAPE), steps=steps, denoise=net)
        most = example.method.rows(steps)
        require(net.asked <= most, "rows says how many predictions there are at most", steps, most)


def invert_steps(example: Example) -> None:
    """Every step is told, in its order, and NaN is an error that names the step."""
    told: list[int] = []
    made = inverted(
        example, picture_noise((0,), SHAPE), on_step=lambda i, step: told.append((i, step.x))
    )
    require([i for i, _ in told] == list(range(N)), "on_step is called after each step", told)
    for i, x in told:
        same(x, made.latents[i + 1], "on_step gets the latents of its step", i)
    sigma = float(levels_of(VP, N)[3])
    try:
        inverted(example, picture_noise((0,), SHAPE), denoise=Counted(VP, sigma))
    except PivotError as error:
        named = re.search(r"step (\d+)", str(error))
        require(named and int(named[1]) in (3, 4), "an error names the step of the NaN", error)
        return
    raise AssertionError("NaN is an error that names the step: there was none")


# -- all of them -------------------------------------------------------------------------------

CHECKS: dict[str, dict[str, Check]] = {
    "controller": {
        "closed_window": closed_window,
        "source_rows": source_rows,
        "split_calls": split_calls,
        "row_order": row_order,
        "alone": alone,
        "unread_rows": unread_rows,
        "precision": precision,
        "inputs": inputs,
        "options": options,
        "fresh_runs": fresh_runs,
        "asked_again": asked_again,
        "does_something": does_something,
        "extra_keys": extra_keys,
        "state_dropped": state_dropped,
        "remarks": remarks,
    },
    "rule": {
        "guide_shape": guide_shape,
        "guide_source": guide_source,
        "guide_pictures": guide_pictures,
        "guide_plain": guide_plain,
        "guide_repeats": guide_repeats,
        "guide_inputs": guide_inputs,
        "guide_after": guide_after,
        "guide_scale": guide_scale,
    },
    "correction": {
        "uncond_valid": uncond_valid,
        "pinned": pinned,
        "source_comes_back": source_comes_back,
        "targets_untouched": targets_untouched,
        "words": words,
        "pictures_apart": pictures_apart,
        "runs_deterministic": runs_deterministic,
        "recipe": recipe,
    },
    "stepper": {
        "rule_levels": rule_levels,
        "rule_repeats": rule_repeats,
        "rule_source": rule_source,
        "rule_shapes": rule_shapes,
        "rule_state": rule_state,
        "targets_apart": targets_apart,
        "pictures_apart": pictures_apart,
        "run_inputs": run_inputs,
        "recipe": recipe,
    },
    "inverter": {
        "invert_shape": invert_shape,
        "invert_alone": invert_alone,
        "invert_fresh": invert_fresh,
        "invert_inputs": invert_inputs,
        "invert_rows": invert_rows,
        "invert_steps": invert_steps,
    },
}
"""Every promise of every family, by name."""
