"""`python -m bench.seconds`: seconds and peak memory of every method on this machine's GPU; writes
out/bench/seconds.json.

SD1.5 at 512x512 and SDXL at 1024x1024, fp16, of full size with random weights; one picture, 50
steps, cfg 7.5. Methods are the calls that the pack's nodes make. A figure is the median of a few
whole runs after one that warms up: text encoder, autoencoder and loading are not in it, the copies
to and from the GPU are. Without CUDA nothing is measured; `--model small` tries all of it on the
CPU, on small UNets (seconds_small.json).

* rows, backward_rows: UNet rows of one run, counted as they run. When fixed-point inversion and
  null-text stop depends on the network, and random weights may take more rows or fewer than trained
  ones: seconds are of these rows.
* peak_gib: on CUDA the most that torch held while the method ran; on the CPU the weights and what
  bench/memory.py saw.
* An edit is of a given inversion, and under null_text of given embeddings: what made them has rows
  of its own.
* note: what null-text planned for its memory (checkpointing is `auto`), or why there is no figure.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench import speed
from bench.inversion import CountedRows
from bench.memory import MemoryHook
from tools.install import import_comfy
from tools.pack import part

OUT = speed.OUT.with_name("seconds.json")
STEPS, TURNS, CFG = 50, 3, speed.CFG
CROSS, SELF, SELF_LIMIT = (0.0, 0.8), (0.0, 0.4), 0.25  # P2P's usual windows
Row = dict[str, Any]

_SMALL = {"num_heads": -1, "num_head_channels": 16}
SETTINGS = {
    "full": (
        dataclasses.replace(speed.SD15, title="SD1.5", dtype=torch.float16, device="cuda"),
        dataclasses.replace(speed.SDXL, title="SDXL"),
    ),
    "small": (
        speed.Setting(
            "small SD1.5", "SD15", {**_SMALL, "context_dim": 64}, 16, torch.float32, "cpu", 1
        ),
        speed.Setting(
            "small SDXL", "SDXL", {**_SMALL, "context_dim": 128}, 16, torch.float32, "cpu", 1
        ),
    ),
}


# -- what is measured
# ----------------------------------------------------------------------------------------


class Picture(speed.Bed):
    """A random picture on a model with random weights: its latent, its inversion, and every method
    on it."""

    def __init__(self, setting: speed.Setting, steps: int) -> None:
        super().__init__(setting)
        self.steps = steps
        self.latent = {"samples": torch.randn(1, 4, setting.side, setting.side)}
        self.trajectory = self.inverted("ddim")

    def inverted(self, method: str, cfg: float = 1.0) -> Any:
        """The trajectory by an inversion method, at a cfg of its own."""
        source, negative = self.texts["source"], self.texts["negative"]
        return speed.invert(self.model, self.latent, source, self.steps, method, negative, cfg)

    def optimized(self, preset: str) -> str:
        """Null-text optimisation of the inversion; what it planned for its memory."""
        settings, texts = (
            part("inversion.null_text").PRESETS[preset],
            (self.texts["source"], self.texts["negative"]),
        )
        run = part("host.tasks.null_text").run_optimization
        return run(self.model, self.trajectory, *texts, CFG, settings, "auto")[1]

    def with_nulls(self) -> Any:
        """The inversion with embeddings as `fast` leaves them; for what an edit costs any will
        do."""
        null_text, steps = part("inversion.null_text"), self.steps
        nulls = self.texts["source"][0][0].expand(steps, 1, -1, -1).clone()
        found = null_text.Optimized(
            nulls, *torch.zeros(2, steps, 1), *torch.zeros(2, 1, dtype=torch.long)
        )
        make = part("host.tasks.null_text").with_embeddings
        return make(self.trajectory, found, self.texts["negative"], CFG, null_text.PRESETS["fast"])

    def prompt_to_prompt(self, correction: str) -> None:
        """An edit by Prompt-to-Prompt."""
        kind = part("attention.prompt_to_prompt").PromptToPromptOptions
        options = kind((speed.prompts(),), "replace", CROSS, SELF, SELF_LIMIT)
        self._edit(options, correction)

    def masactrl(self, correction: str) -> None:
        """An edit by MasaCtrl."""
        self._edit(part("attention.masactrl").MasaCtrlOptions(), correction)

    def _edit(self, options: Any, correction: str) -> None:
        model = part("host.tasks.controls").controlled(self.model, options)[0]
        trajectory = self.with_nulls() if correction == "null_text" else self.trajectory
        part("host.tasks.editing").edit(
            model, trajectory, **self.texts, cfg=CFG, correction=correction
        )

    def sampled(self) -> None:
        """The host's own sampling of one picture: two rows a step."""
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(self.model)
        guider.set_conds(self.texts["target"], self.texts["negative"])
        guider.set_cfg(CFG)
        noise, sampler = self.trajectory.noise, comfy.samplers.sampler_object("euler")
        levels = self.trajectory.descending
        guider.sample(noise, torch.zeros_like(noise), sampler, levels, disable_pbar=True, seed=0)


def methods(picture: Picture) -> dict[str, Callable[[], Any]]:
    """Every method by its name."""
    return {
        "plain sampling, 2 rows": picture.sampled,
        "DDIM inversion": lambda: picture.inverted("ddim"),
        f"fixed-point inversion at cfg {CFG:g}": lambda: picture.inverted("fixed_point", CFG),
        "null-text fast, optimisation alone": lambda: picture.optimized("fast"),
        "null-text reference, optimisation alone": lambda: picture.optimized("reference"),
        "P2P edit, direct": lambda: picture.prompt_to_prompt("direct"),
        "P2P edit, negative_prompt": lambda: picture.prompt_to_prompt("negative_prompt"),
        "P2P edit, null_text": lambda: picture.prompt_to_prompt("null_text"),
        "P2P edit, none": lambda: picture.prompt_to_prompt("none"),
        "MasaCtrl edit, direct": lambda: picture.masactrl("direct"),
    }


# -- how it is measured
# --------------------------------------------------------------------------------------


class WholeRows(CountedRows):
    """Rows of the whole latent: null-text also tries on small parts of it what memory it will
    need."""

    def __init__(self, picture: Picture) -> None:
        super().__init__(picture.model)
        self._side = picture.setting.side

    def _seen(self, unet: Any, args: Any, kwargs: Any, out: torch.Tensor) -> None:
        if out.shape[-1] == self._side:
            super()._seen(unet, args, kwargs, out)


def timed(call: Callable[[], Any], device: str, turns: int) -> tuple[float, int]:
    """The median seconds of a few runs, and the most bytes that were held meanwhile; on the CPU
    without weights."""
    seconds = speed.seconds_on(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        times = [seconds(call) for _ in range(turns)]
        return statistics.median(times), torch.cuda.max_memory_allocated()
    times = [seconds(call) for _ in range(turns)]
    with MemoryHook() as hook:
        call()
    return statistics.median(times), hook.peak


def measured(picture: Picture, call: Callable[[], Any], turns: int) -> Row:
    """One method's figures; the first run warms up and counts."""
    with WholeRows(picture) as rows:
        note = call()
    seconds, peak = timed(call, picture.setting.device, turns)
    if picture.setting.device != "cuda":
        peak += sum(weight.nbytes for weight in picture.model.model.diffusion_model.parameters())
    return {
        "seconds": round(seconds, 3),
        "peak_gib": round(peak / 2**30, 3),
        "rows": rows.forward,
        "backward_rows": rows.backward,
        "note": note if isinstance(note, str) else "",
    }


def failed(error: Exception) -> Row:
    """The row of a method that this machine cannot run."""
    empty = dict.fromkeys(("seconds", "peak_gib", "rows", "backward_rows"))
    return {**empty, "note": f"{type(error).__name__}: {str(error).splitlines()[0]}"}


def rows_of(setting: speed.Setting, steps: int, turns: int) -> Iterator[Row]:
    """A row for every method on a model. One that fails leaves the others theirs."""
    forget()
    picture = Picture(setting, steps)
    for name, call in methods(picture).items():
        forget()
        try:
            figures = measured(picture, call, turns)
        except (torch.OutOfMemoryError, part("core.errors").PivotError) as error:
            figures = failed(error)
        yield {**described(setting), "method": name, "steps": steps, **figures}


def described(setting: speed.Setting) -> Row:
    """What a row's figures are of: model, size, precision, device and versions."""
    side = 8 * setting.side
    return {
        "model": setting.title,
        "size": f"{side}x{side}",
        "dtype": str(setting.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if setting.device == "cuda" else speed.processor(),
        "torch": torch.__version__,
        "comfyui": speed.comfyui_version(),
    }


def forget() -> None:
    """Let go of what earlier runs and models left."""
    import comfy.model_management

    gc.collect()
    comfy.model_management.soft_empty_cache()


def write(
    settings: Sequence[speed.Setting], steps: int, turns: int, path: pathlib.Path
) -> list[Row]:
    """Every row as it is measured, into a file that always holds those so far."""
    made: list[Row] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    for setting in settings:
        with torch.inference_mode():
            for row in rows_of(setting, steps, turns):
                made.append(row)
                print(json.dumps(row), flush=True)
                path.write_text(json.dumps(made, indent=2) + "\n")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.seconds", description=__doc__)
    parser.add_argument(
        "--model", choices=SETTINGS, default="full", help="small: small UNets, on the CPU"
    )
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--turns", type=int, default=TURNS, help="timed runs of each method")
    options = parser.parse_args(arguments)
    small = options.model == "small"
    if not small and not torch.cuda.is_available():
        print("seconds of full-size models are not measured: they need a GPU with CUDA")
        return 0
    import_comfy(flags=("--use-pytorch-cross-attention", *(("--cpu",) if small else ())))
    path = OUT.with_name("seconds_small.json") if small else OUT
    write(SETTINGS[options.model], options.steps, options.turns, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
