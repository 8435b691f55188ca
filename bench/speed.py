"""`make bench-speed`: what attention control and null-text optimisation cost in time, memory and
UNet rows; writes out/bench/speed.json.

Every figure is a ratio of things measured in one run, on UNets of full size with random weights
where nothing else is
said: SD1.5 at 512x512 on one CPU thread, in bf16 and in fp32, and, where there is CUDA, SDXL at
1024x1024 in fp16. The host's attention is torch's own. fp32 is what ComfyUI takes on a CPU, bf16
the precision of the comparison figures, whose CPU had a matrix unit (AMX).

* A step is one call of the real guider, from the sampler's latents to denoised ones; loading is not
  in the time. Cases take turns, and a ratio is the median over turns of the ratio within a turn.
* Controlled step / plain step: self and cross windows open, against a controller that has the same
  rows run and edits nothing. P2P under direct inversion runs 3 rows, MasaCtrl 4.
* Whole edit / materialised way: 10 steps, cross .8, self .4, put together from one measured step of
  each kind: all windows open, cross alone, all closed. The materialised way is
  tests/host/materialised.py, 4 rows at every step; tests/host/test_materialised.py shows that both
  give the same edit. Under negative-prompt inversion the open steps are those of direct, and the
  closed ones are plain steps of 3 rows.
* Memory: peak of the activations of one step (bench/memory.py; on CUDA the allocator's own peak),
  and the new tensors that have the shape of attention maps of 256 tokens or more.
* Rows per step: counted by the guider over an edit of 50 steps on a small UNet.
* Null-text rows: counted by the optimisation of the toy model's first held-out picture over 50
  steps, because when the reference's optimiser stops depends on a trained network. Its passes,
  forward alone and forward and back, are timed and their memory seen on a UNet of SD1.5's topology,
  in the first step of an optimisation by the pack's own code.

A figure has the `run` that it was measured in, and its `device` says the versions of torch and
ComfyUI. `--only PART` measures some parts anew; the other figures stay those of the earlier run in
out/bench/speed.json, else in docs/figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pathlib
import statistics
import sys
import time
import unittest.mock
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.inversion import FIRST
from bench.memory import MemoryHook, attention_maps
from bench.methods import ATTENTION, CONTROLS, METHODS, Attention, Settings, inverted, optimized
from tools.install import ROOT, import_comfy
from tools.pack import part
from toy.scenes import Scene

OUT = ROOT / "out" / "bench" / "speed.json"
KEPT = ROOT / "docs" / "figures" / "speed.json"
STEPS = 10
COUNTED_STEPS = 50
CFG = 7.5
OVERHEAD = 1.05
FEWER = 0.25  # null-text rows of `fast`, of the reference's, at most
TEXT = 77  # columns of a prompt
# tokens of which maps are looked for; those of the 8x8 in the middle are smaller than all else
SMALLEST = 256
READ = {3: "cond", 4: "both"}
"""Which source rows a control reads when a step under direct inversion has so many rows."""

Figure = dict[str, Any]
Result = dict[str, list[float]]


# -- what is measured on
# -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Setting:
    """A full-size UNet: its kind and what differs from the small one of tests/host/unets.py; side
    of the latent."""

    title: str
    kind: str
    size: dict[str, int]
    side: int
    dtype: torch.dtype
    device: str
    turns: int


SD15 = Setting(
    "SD1.5 512x512 bf16",
    "SD15",
    {"model_channels": 320, "context_dim": 768, "num_heads": 8, "num_head_channels": -1},
    64,
    torch.bfloat16,
    "cpu",
    3,
)
SD15_FP32 = dataclasses.replace(SD15, title="SD1.5 512x512 fp32", dtype=torch.float32)
SDXL = Setting(
    "SDXL 1024x1024 fp16",
    "SDXL",
    {"model_channels": 320, "context_dim": 2048, "num_heads": -1, "num_head_channels": 64},
    128,
    torch.float16,
    "cuda",
    9,
)
SMALL = Setting(
    "small UNet, 256x256 fp32",
    "SD15",
    {"model_channels": 64, "context_dim": 256, "num_heads": 8, "num_head_channels": -1},
    32,
    torch.float32,
    "cpu",
    7,
)


def host_test(name: str) -> Any:
    """A module of tests/host."""
    folder = str(ROOT / "tests" / "host")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def build(setting: Setting) -> Any:
    """A ModelPatcher with random weights that keep activations at unit size."""
    import comfy.model_patcher
    import comfy.supported_models

    unets, device = host_test("unets"), torch.device(setting.device)
    config = getattr(comfy.supported_models, setting.kind)(
        {**unets.COMMON, **unets.SHAPES[setting.kind], **setting.size},
    )
    config.unet_config.update(setting.size)
    config.set_inference_dtype(setting.dtype, None)
    model = config.get_model({}, "", device=device).to(device).eval()
    for weight in model.diffusion_model.parameters():
        weight.requires_grad_(False).normal_(0.0, max(weight[0].numel(), 1) ** -0.5)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


class SameRows(part("core.control").Controller):  # type: ignore[misc]
    """Has the guider run the source's rows and edits nothing: the plain step of as many rows."""

    def __init__(self, read: str) -> None:
        self.read = read

    def wants(self, kind: str, place: Any) -> bool:
        return False

    def reads(self, place: Any) -> str:
        return self.read

    def __call__(self, call: Any, attend: Any, state: Any) -> torch.Tensor:
        return attend(call)


def prompts() -> Any:
    """The pair of two prompts of eight words that differ in one."""
    words = part("core.words")

    def prompt(third: int) -> Any:
        tokens = (49406, 320, 321, third, *range(323, 328), *[49407] * 68)
        listed = tuple(words.Word(str(tokens[i]), (i,), (i,)) for i in range(1, 9))
        return words.Prompt(" ".join(word.text for word in listed), listed, tokens)

    return words.PromptPair(prompt(322), prompt(999))


def alignment(mode: str) -> Any:
    """Their alignment."""
    return prompts().align(mode)


class Bed:
    """A model with random weights, a made-up inversion of 10 steps and random texts: what guiders
    are made from."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = build(setting)
        models = part("host.model.checks")
        sigmas = part("core.path").VP.levels(models.trained_sigmas(self.model), STEPS)
        self.texts = {
            name: self._text(seed) for seed, name in enumerate(("source", "target", "negative"))
        }
        marks = (
            models.fingerprint(self.model),
            models.conditioning_fingerprint(self.texts["source"]),
        )
        latents = torch.randn(STEPS + 1, 1, 4, setting.side, setting.side)
        self.trajectory = part("core.trajectory").Trajectory(sigmas, latents, "ddim", *marks)

    def _text(self, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        text = torch.randn(1, TEXT, self.setting.size["context_dim"], generator=generator)
        return [[text, {"pooled_output": torch.randn(1, 1280, generator=generator)}]]

    def plain(self, read: str) -> Any:
        """The edit guider under direct inversion that runs a control's rows and edits nothing."""
        return self._guider(part("host.run.patching").add_controller(self.model, SameRows(read)))

    def controlled(self, attention: Attention, mode: str = "") -> Any:
        """The edit guider under direct inversion with one attention method, in the papers'
        settings."""
        return self._guider(attention.apply(self.model, (prompts(),), Settings(mode=mode)))

    def _guider(self, model: Any) -> Any:
        return part("host.tasks.editing").edit_guider(
            model, self.trajectory, **self.texts, cfg=CFG, correction="direct"
        )

    def materialised(self) -> Any:
        """The stock guider on four rows with written-out maps."""
        tables, way = alignment("replace"), host_test("materialised")
        model = way.explicit(self.model, way.MapEdit(tables.mapper, tables.target_share))
        return way.guider(model, **self.texts, cfg=CFG)

    def maps(self) -> list[tuple[int, int, int]]:
        """The sizes of this model's attention maps, (heads, queries, keys), of self- and
        cross-attention."""
        unet = self.model.model.diffusion_model
        heads = {module.n_heads for module in unet.modules() if hasattr(module, "n_heads")}
        tokens = {
            (self.setting.side // scale) ** 2
            for scale in part("host.model.layers").scales_of(self.model)
        }
        large = [count for count in tokens if count >= SMALLEST]
        return [(each, count, keys) for each in heads for count in large for keys in (count, TEXT)]

    def measure(self, guider: Any, step: int, how: Callable[[Callable[[], Any]], Any]) -> Any:
        """What `how` makes of one step of a run."""
        found = []

        def sample(
            model_wrap: Any, sigmas: Any, extra_args: Any, callback: Any, noise: Any, *rest: Any
        ) -> Any:
            x = noise * (1.0 + sigmas[step] ** 2) ** 0.5
            found.append(how(lambda: model_wrap(x, sigmas[step].expand(len(x)), **extra_args)))
            return x

        sampler = part("host.run.replay").ReplaySampler(self.trajectory)
        sampler.sample = sample
        noise = torch.randn(2, 4, self.setting.side, self.setting.side)
        guider.sample(noise, noise, sampler, self.trajectory.descending, disable_pbar=True, seed=0)
        return found[0]


# -- how it is measured
# --------------------------------------------------------------------------------------


def seconds_on(device: str) -> Callable[[Callable[[], Any]], float]:
    """How to time a call: on CUDA until the GPU is done; on the CPU in this process's own time,
    because with one thread that is the time on a quiet machine, and other processes do not count.
    """

    def on_cpu(call: Callable[[], Any]) -> float:
        began = time.process_time()
        call()
        return time.process_time() - began

    def on_cuda(call: Callable[[], Any]) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    return on_cuda if device == "cuda" else on_cpu


@dataclasses.dataclass(frozen=True)
class Memory:
    """peak: bytes of activations; largest: elements of the largest new tensor; shapes: of all new
    tensors."""

    peak: int
    largest: int
    shapes: frozenset[tuple[int, ...]]


def memory_on(device: str) -> Callable[[Callable[[], Any]], Memory]:
    """How to measure memory on a device."""

    def memory(call: Callable[[], Any]) -> Memory:
        cuda = device == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else 0
        with MemoryHook() as hook:
            call()
        peak = torch.cuda.max_memory_allocated() - before if cuda else hook.peak
        return Memory(peak, hook.largest, frozenset(hook.shapes))

    return memory


@dataclasses.dataclass(frozen=True)
class Case:
    """A guider at a step, and in how many turns it is timed."""

    guider: Any
    step: int
    turns: int


def cases(bed: Bed) -> dict[str, Case]:
    """What is compared, by name."""
    guiders = {}
    for rows, read in READ.items():
        guiders[f"plain, {rows} rows"] = bed.plain(read)
        for name, (attention, mode) in alone().items():
            if attention.rows == rows:
                guiders[name] = bed.controlled(attention, mode)
    return {name: Case(guider, 0, bed.setting.turns) for name, guider in guiders.items()}


def alone() -> dict[str, tuple[Attention, str]]:
    """Every attention method that a control is made of alone, by title and word alignment."""
    found = {}
    for control in CONTROLS.values():
        if len(control.attention) == 1:
            attention = ATTENTION[control.attention[0]]
            for mode in attention.modes if attention.apply else ():
                found[f"{attention.title} {mode}".strip()] = (attention, mode)
    return found


def whole_edit_cases(bed: Bed) -> dict[str, Case]:
    """One step of each kind of a P2P edit, folded and materialised; the folded first step is
    compared anyway."""
    folded, materialised = bed.controlled(ATTENTION["p2p"], "replace"), bed.materialised()
    first, *later = kinds_of_step()
    made = {f"folded, step {step}": Case(folded, step, 1) for step in later}
    return {
        **made,
        **{f"materialised, step {step}": Case(materialised, step, 1) for step in (first, *later)},
    }


def kinds_of_step() -> dict[int, int]:
    """The first step of each kind, by which windows are open, and how many there are of it."""
    controller, place = (
        part("attention").PromptToPrompt((alignment("replace"),)),
        part("core.control").Place,
    )
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for step in range(STEPS):
        at = place(step, STEPS, 0.0)
        kinds.setdefault((controller.wants("self", at), controller.wants("cross", at)), []).append(
            step
        )
    return {steps[0]: len(steps) for steps in kinds.values()}


def time_all(bed: Bed, all_cases: dict[str, Case]) -> Result:
    """Seconds of every case in every turn."""
    found: Result = {name: [] for name in all_cases}
    seconds = seconds_on(bed.setting.device)
    for turn in range(max(case.turns for case in all_cases.values())):
        for name, case in all_cases.items():
            if turn < case.turns:
                found[name].append(bed.measure(case.guider, case.step, seconds))
                print(f"  {name}: {found[name][-1]:.3f} s", file=sys.stderr, flush=True)
    return found


# -- null-text
# ------------------------------------------------------------------------------------------------


def optimization_rows() -> dict[str, int]:
    """UNet rows, forward and backward, that optimising a picture takes beyond its inversion, by
    preset."""
    encode = part("host.text.prompts").encode
    model, clip, vae = part("toy.loader").load()
    scene = Scene.sample(FIRST)
    source, negative = encode(clip, scene.caption), encode(clip, "")
    latent = {"samples": vae.encode(torch.from_numpy(scene.render())[None])}
    pivot = inverted(model, latent, source, COUNTED_STEPS, "ddim")
    rows = {}
    for preset in presets():
        found = optimized(model, pivot, source, negative, CFG, preset)[0]
        rows[preset] = int((found.forward_rows + found.backward_rows).sum())
    return rows


def presets() -> list[str]:
    """The presets of null-text that methods have."""
    return list(dict.fromkeys(method.preset for method in METHODS.values() if method.preset))


def in_optimization(bed: Bed, checkpointing: str, how: Callable[[Any, torch.Tensor], Any]) -> Any:
    """What how(problem, embedding) gives in the first step of an optimisation: with the weights,
    the attention and the checkpointing that the host's code has there."""
    null_text, found = part("inversion.null_text"), []
    pivot = bed.trajectory
    first = dataclasses.replace(pivot, sigmas=pivot.sigmas[-2:], latents=pivot.latents[-2:])

    class Measuring:
        """Optimises nothing."""

        def __init__(self, settings: Any, start: torch.Tensor) -> None:
            self.start = start

        def __call__(
            self, problem: Any, step: int
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            found.append(how(problem, self.start))
            return self.start, problem.cond, torch.zeros(len(self.start))

    run, texts = (
        part("host.tasks.null_text").run_optimization,
        (bed.texts["source"], bed.texts["negative"]),
    )
    with unittest.mock.patch.dict(null_text.SOLVERS, measuring=Measuring):
        run(bed.model, first, *texts, CFG, null_text.Settings("measuring"), checkpointing)
    return found[0]


def pass_ratio(bed: Bed, checkpointing: str) -> float:
    """Time of a pass forward and back over that of one forward, as optimisations run them."""
    seconds = seconds_on(bed.setting.device)

    def how(problem: Any, embedding: torch.Tensor) -> Result:
        def both() -> None:
            problem.gradient(embedding, problem.pictures)

        def forward() -> None:
            with torch.no_grad():
                problem.predict(embedding, problem.pictures)

        both()  # warms up
        turns = [(seconds(both), seconds(forward)) for _ in range(bed.setting.turns)]
        return {"both": [turn[0] for turn in turns], "forward": [turn[1] for turn in turns]}

    return ratio(in_optimization(bed, checkpointing, how), "both", "forward")


def pass_memory(bed: Bed, checkpointing: str) -> int:
    """Peak bytes of a pass forward and back."""
    memory = memory_on(bed.setting.device)

    def how(problem: Any, embedding: torch.Tensor) -> Memory:
        return memory(lambda: problem.gradient(embedding, problem.pictures))

    return in_optimization(bed, checkpointing, how).peak


# -- figures
# -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sheet:
    """The figures of one setting as they are found."""

    title: str
    device: str
    figures: list[Figure] = dataclasses.field(default_factory=list)

    def add(self, figure: str, value: float, target: float | None, reference: str) -> None:
        """Note a figure; smaller is better, at most `target` is wanted, None: no target.
        `reference` is what the same is elsewhere."""
        entry = {"figure": f"{figure}, {self.title}", "value": round(value, 3), "target": target}
        self.figures.append({**entry, "reference": reference, "device": self.device})


def ratio(times: Result, name: str, plain: str) -> float:
    """The median over turns of a case's time over the plain one's of the same turn."""
    return statistics.median(a / b for a, b in zip(times[name], times[plain], strict=False))


def step_figures(sheet: Sheet, times: Result) -> None:
    """Controlled step / plain step, beside a step with its maps written out where that was measured
    too."""
    reference = "explicit-softmax attention 2.2 on another CPU"
    if "materialised, step 0" in times:
        written = statistics.median(times["materialised, step 0"]) / statistics.median(
            times["plain, 4 rows"]
        )
        reference = f"explicit-softmax attention {written:.2f} in this run"
    for name, (attention, _) in alone().items():
        value = ratio(times, name, f"plain, {attention.rows} rows")
        sheet.add(f"controlled step / plain step, {name}", value, OVERHEAD, reference)


def whole_edit_figures(sheet: Sheet, times: Result) -> None:
    """The whole edit against the materialised four-row way."""
    kinds = kinds_of_step()
    middle = {name: statistics.median(found) for name, found in times.items()}
    middle["folded, step 0"] = middle["P2P replace"]
    edits = {
        way: sum(count * middle[f"{way}, step {step}"] for step, count in kinds.items())
        for way in ("folded", "materialised")
    }
    closed = list(kinds)[-1]
    prompt = edits["folded"] + kinds[closed] * (
        middle["plain, 3 rows"] - middle[f"folded, step {closed}"]
    )
    for correction, time_ in (("direct", edits["folded"]), ("negative_prompt", prompt)):
        name = f"whole P2P edit / materialised four-row way, {correction}"
        reference = f"{edits['materialised']:.0f} s the materialised way"
        sheet.add(name, time_ / edits["materialised"], 0.357, reference)


def memory_figures(sheet: Sheet, bed: Bed, all_cases: dict[str, Case]) -> None:
    """Peak activations against the plain step of as many rows, and attention maps found among the
    new tensors."""
    how = memory_on(bed.setting.device)
    found = {name: bed.measure(case.guider, case.step, how) for name, case in all_cases.items()}
    rows = {name: attention.rows for name, (attention, _) in alone().items()}
    plain = {name: found[f"plain, {rows.get(name, 4)} rows"] for name in found}
    values = {name: _memory_values(bed, memory, plain[name]) for name, memory in found.items()}
    written = values.pop("materialised", None)
    for name, mine in values.items():
        for what, target in zip(MEMORY, (OVERHEAD, OVERHEAD, 0), strict=True):
            reference = "" if written is None else f"{written[what]:.3g} the materialised way"
            if not name.startswith("plain"):
                sheet.add(f"{what}, {name}", mine[what], target, reference)


MEMORY = (
    "peak memory / plain step's",
    "largest tensor / plain step's",
    "shapes of attention maps allocated",
)


def _memory_values(bed: Bed, memory: Memory, plain: Memory) -> dict[str, float]:
    maps = {shape for size in bed.maps() for shape in attention_maps(memory.shapes, *size)}
    values = (memory.peak / plain.peak, memory.largest / plain.largest, len(maps))
    return dict(zip(MEMORY, values, strict=True))


def rows_per_step() -> float:
    """UNet rows a step of P2P at cross .8, self .4 under direct inversion, counted over 50
    steps."""
    unets = host_test("unets")
    model = unets.build("SD15")
    texts = {
        name: unets.conditioning("SD15", seed)
        for seed, name in enumerate(("source", "target", "negative"))
    }
    latent = unets.latent(16, 16)
    pivot = inverted(model, latent, texts["source"], COUNTED_STEPS, "ddim")
    controller = part("attention").PromptToPrompt((alignment("replace"),))
    patched = part("host.run.patching").add_controller(model, controller)
    guider = part("host.tasks.editing").edit_guider(
        patched, pivot, **texts, cfg=CFG, correction="direct"
    )
    return part("host.run.sampling").run_edit(guider).rows_per_step


def sd15_figures(setting: Setting) -> list[Figure]:
    """Steps, whole edits and memory, on the CPU."""
    bed, sheet = Bed(setting), Sheet(setting.title, processor())
    compared, parts = cases(bed), whole_edit_cases(bed)
    memory = Sheet(setting.title, sheet.device)
    memory_figures(
        memory, bed, {**compared, "materialised": parts["materialised, step 0"]}
    )  # warms up as well
    times = time_all(bed, {**compared, **parts})
    step_figures(sheet, times)
    whole_edit_figures(sheet, times)
    return [*sheet.figures, *memory.figures]


def row_figures() -> list[Figure]:
    """What the guider runs."""
    sheet = Sheet("SD1.5, 50 steps", processor())
    reference = "4; 8 for two-pass direct inversion"
    sheet.add("UNet rows per step, direct, cross .8, self .4", rows_per_step(), 2.8, reference)
    return sheet.figures


def null_text_figures() -> list[Figure]:
    """What null-text optimisation takes: rows on the toy model, time and memory of a pass on a
    small UNet."""
    counted, rows = Sheet(f"toy model, {COUNTED_STEPS} steps", processor()), optimization_rows()
    value, reference = (
        rows["fast"] / rows["reference"],
        f"{rows['fast']} and {rows['reference']} rows in this run",
    )
    counted.add("null-text rows beyond the inversion, fast / reference", value, FEWER, reference)
    return [*counted.figures, *pass_figures(SMALL)]


def pass_figures(setting: Setting) -> list[Figure]:
    """Time and memory of a pass of the optimisation, forward and back."""
    bed, sheet = Bed(setting), Sheet(setting.title, processor())
    time_ = {on: pass_ratio(bed, on) for on in ("off", "on")}
    peak = {on: pass_memory(bed, on) for on in ("off", "on")}
    reference = f"{time_['on']:.2f} with checkpointing in this run"
    sheet.add("null-text pass forward and back / forward, time", time_["off"], None, reference)
    reference = f"{peak['off'] / 2**20:.0f} MiB without in this run"
    sheet.add(
        "null-text pass, peak memory with checkpointing / without",
        peak["on"] / peak["off"],
        None,
        reference,
    )
    return sheet.figures


def sdxl_figures() -> list[Figure]:
    """Steps and memory on CUDA; without it, none."""
    if not torch.cuda.is_available():
        print("SDXL 1024x1024 is not measured: it needs CUDA")
        return []
    bed = Bed(SDXL)
    sheet, compared = Sheet(SDXL.title, versioned(torch.cuda.get_device_name())), cases(bed)
    memory_figures(sheet, bed, compared)
    step_figures(sheet, time_all(bed, compared))
    return sheet.figures


PARTS: dict[str, Callable[[], list[Figure]]] = {
    "rows": row_figures,
    "fp32": lambda: sd15_figures(SD15_FP32),
    "bf16": lambda: sd15_figures(SD15),
    "sdxl": sdxl_figures,
    "null-text": null_text_figures,
}
"""What is measured, each part by itself."""


# -- what they are said of
# -----------------------------------------------------------------------------------


def processor() -> str:
    """The CPU's name, whether it has the matrix unit that bf16 attention gains from, versions and
    threads."""
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    names = [
        line.partition(":")[2].strip()
        for line in text.splitlines()
        if line.startswith("model name")
    ]
    unit = "with" if "amx_bf16" in text else "without"
    threads = torch.get_num_threads()
    name = versioned(f"{names[0] if names else 'CPU'} {unit} AMX")
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def versioned(device: str) -> str:
    """A device and what runs on it."""
    return f"{device}, torch {torch.__version__}, ComfyUI {comfyui_version()}"


def comfyui_version() -> str:
    """The host's own; its module is there once the host is imported."""
    return str(importlib.import_module("comfyui_version").__version__)


def earlier() -> list[Figure]:
    """The figures of the last run, else those that are kept; older ones do not say their run."""
    path = OUT if OUT.exists() else KEPT
    found = json.loads(path.read_text()) if path.exists() else []
    return [{**each, "run": each.get("run", "earlier, not noted")} for each in found]


def merged(old: Sequence[Figure], new: Sequence[Figure]) -> list[Figure]:
    """The new figures, and those old ones that were not measured again; every one keeps its place
    and its run."""
    fresh = {each["figure"]: each for each in new}
    kept = [fresh.pop(each["figure"], each) for each in old]
    return [*kept, *fresh.values()]


def table(figures: list[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | value | target | reference | run |", "|---|---|---|---|---|"]
    for each in figures:
        target = "" if each["target"] is None else f"<= {each['target']:g}"
        cells = (each["figure"], f"{each['value']:g}", target, each["reference"], each["run"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measured(parts: Sequence[str]) -> list[Figure]:
    """The figures of some parts, named by the time at which this run began."""
    run = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    with torch.inference_mode():
        return [{**figure, "run": run} for name in parts for figure in PARTS[name]()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.speed", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        choices=PARTS,
        help="these, beside the figures of the earlier run",
    )
    only = parser.parse_args(arguments).only
    torch.set_num_threads(1)
    cpu = () if torch.cuda.is_available() else ("--cpu",)
    import_comfy(flags=("--use-pytorch-cross-attention", *cpu))
    began = time.monotonic()
    figures = merged(earlier() if only else [], measured(only or list(PARTS)))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=2) + "\n")
    print(table(figures))
    print(f"{OUT}, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
