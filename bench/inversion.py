"""How exactly every method brings a picture back: `make bench-inversion`,
`out/bench/inversion.json`.

Held-out toy pictures are inverted under their captions. They are replayed for their own caption at
cfg 1, 3 and 7.5. A row is of a method at a cfg:

* latent_mse: the mean over steps of the squared distance to the trajectory;
* psnr: of the decoded picture against the source; ceiling_psnr: the autoencoder's own round trip;
* UNet rows that a picture needs before it can be edited, forward and backward.

Methods that cost most run on the first 20 pictures; `null_text_fast` on the same 20 stands beside
the reference's null-text. `--edits` also makes edits at cfg 7.5 under every correction
(`inversion_edits.json`). `--keep` copies the figures to `docs/figures/`, for README's tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from bench.cases import HELD_OUT, KINDS, Edit
from bench.judge import judge
from bench.methods import ATTENTION, METHODS, STEPS, Method, Settings
from tools import install
from tools.pack import part
from tools.pictures import psnr
from toy.scenes import Scene

OUT = install.ROOT / "out" / "bench" / "inversion.json"
EDITS = OUT.with_name("inversion_edits.json")
CFGS, CHUNK, FEW = (1.0, 3.0, 7.5), 10, 20
FIRST = HELD_OUT + 500_000


class Bench:
    """The toy model in this process."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = part("toy.loader").load()


class CountedRows:
    """Rows that the UNet of a model patcher runs while it is entered: `forward`, and `backward`.

    They are counted at its last layer, because a call may leave rows out inside of it.
    """

    def __init__(self, model: Any) -> None:
        self.unet = model.model.diffusion_model.out
        self.forward = self.backward = 0

    def __enter__(self) -> CountedRows:
        self._handle = self.unet.register_forward_hook(self._seen, with_kwargs=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self._handle.remove()

    def _seen(self, unet: Any, args: Any, kwargs: Any, out: torch.Tensor) -> None:
        self.forward += len(out)
        if out.requires_grad:
            out.register_hook(self._went_back)

    def _went_back(self, gradient: torch.Tensor) -> None:
        self.backward += len(gradient)


@dataclasses.dataclass(frozen=True)
class Way:
    """A method by its name in `METHODS`, and whether it runs on the first pictures only."""

    name: str
    few: bool = False

    @property
    def method(self) -> Method:
        """Its entry."""
        return METHODS[self.name]


def ways() -> list[Way]:
    """Every method; beside one that runs on few pictures, its like on the same few."""
    costly = {method.correction for method in METHODS.values() if method.few}
    found = []
    for name, method in METHODS.items():
        found += [Way(name, method.few)]
        if method.correction in costly and not method.few:
            found.append(Way(name, few=True))
    return found


class Pictures:
    """Toy pictures inverted together, each under its own text."""

    def __init__(self, bench: Bench, scenes: list[tuple[Scene, str]]) -> None:
        prompts = part("host.text.prompts")
        self.bench, self.scenes = bench, [scene for scene, _ in scenes]
        self.texts = [prompts.encode(bench.clip, text) for _, text in scenes]
        self.empty = prompts.encode(bench.clip, "")
        self.together = [[torch.cat([text[0][0] for text in self.texts]), self.texts[0][0][1]]]
        encoded = [
            bench.vae.encode(torch.from_numpy(scene.render())[None]) for scene in self.scenes
        ]
        self.latent = {"samples": torch.cat(encoded)}
        self.ceiling = [
            psnr(self._decoded(one), scene.render())
            for one, scene in zip(encoded, self.scenes, strict=True)
        ]

    def prepared(self, method: Method, cfg: float, steps: int = STEPS) -> tuple[Any, int, int]:
        """The trajectory under a method, ready for a cfg, and the rows that were run for it."""
        with CountedRows(self.bench.model) as rows:
            pivot = method.prepared(
                self.bench.model, self.latent, self.together, self.empty, steps, cfg
            )
        return pivot, rows.forward, rows.backward

    def each(self, pivot: Any) -> Iterator[tuple[int, Any]]:
        """The trajectory of every single picture."""
        mark = part("host.model.checks").conditioning_fingerprint
        for i, text in enumerate(self.texts):
            extras = {name: extra[:, i : i + 1] for name, extra in pivot.extras.items()}
            latents = pivot.latents[:, i : i + 1]
            yield (
                i,
                dataclasses.replace(pivot, latents=latents, extras=extras, conditioning=mark(text)),
            )

    def back(self, method: Method, pivot: Any, cfg: float) -> list[tuple[float, float]]:
        """Of every picture, the mean squared distance to the trajectory over the steps and PSNR of
        what comes back."""
        if method.preset:
            runs = [self._through_guider(method, one, i, cfg) for i, one in self.each(pivot)]
            seen, made = (
                torch.cat(each, dim)
                for each, dim in zip(zip(*runs, strict=True), (1, 0), strict=True)
            )
        else:
            seen, made = self._together(method, pivot, cfg)
        mse = (seen - pivot.latents.flip(0)[1:]).square().mean((0, 2, 3, 4))
        found = [
            psnr(self._decoded(made[i : i + 1]), scene.render())
            for i, scene in enumerate(self.scenes)
        ]
        return list(zip(mse.tolist(), found, strict=True))

    def _through_guider(
        self, method: Method, pivot: Any, i: int, cfg: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents after every step [N, 1, C, H, W] and samples of one picture, by the Edit Guider's
        source row."""
        text, seen = self.texts[i], []
        make, run = part("host.tasks.editing").edit_guider, part("host.run.sampling").run_edit
        guider = make(self.bench.model, pivot, text, text, self.empty, cfg, method.correction)
        result = run(guider, lambda x: seen.append(x[:1].float().cpu()))
        return torch.stack(seen), result.reconstructed.cpu()

    def _together(
        self, method: Method, pivot: Any, cfg: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of all pictures at once, each under its own text, which the Edit Guider has
        not."""
        import comfy.samplers

        model, seen = self.bench.model, []
        correction = method.correction if method.correction == "direct" else "none"
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(
            self.together, self.together if method.correction == "negative_prompt" else self.empty
        )
        guider.set_cfg(cfg)
        samples = guider.sample(
            torch.zeros_like(self.latent["samples"]),
            self.latent["samples"],
            part("host.run.replay").ReplaySampler(pivot, correction),
            pivot.descending,
            callback=lambda i, denoised, x, steps: seen.append(x.float().cpu()),
            seed=0,
        )
        return torch.stack(seen), samples.cpu()

    def _decoded(self, latent: torch.Tensor) -> np.ndarray:
        return self.bench.vae.decode(latent)[0].numpy()


def chosen(only: list[str]) -> list[Way]:
    """The methods of these names, or all."""
    return [way for way in ways() if not only or way.name in only]


def reconstruction(bench: Bench, count: int, only: list[str]) -> Iterator[dict[str, Any]]:
    """A row for every method and cfg over the first held-out pictures."""
    scenes = [Scene.sample(FIRST + i) for i in range(count)]
    chunks = [
        Pictures(bench, [(s, s.caption) for s in scenes[at : at + CHUNK]])
        for at in range(0, count, CHUNK)
    ]
    for way in chosen(only):
        of = chunks[: FEW // CHUNK] if way.few else chunks
        for cfg in CFGS:
            yield {"method": way.name, "cfg": cfg, **_measured(way.method, of, cfg)}


def _measured(method: Method, chunks: list[Pictures], cfg: float) -> dict[str, Any]:
    began, found, forward, backward = time.time(), [], 0, 0
    for chunk in chunks:
        pivot, ahead, behind = chunk.prepared(method, cfg)
        forward, backward = forward + ahead, backward + behind
        found += chunk.back(method, pivot, cfg)
    mse, back = np.mean(found, axis=0)
    count = len(found)
    return {
        "n": count,
        "latent_mse": float(mse),
        "psnr": round(float(back), 3),
        "worst_psnr": round(float(np.min(found, axis=0)[1]), 3),
        "ceiling_psnr": round(
            float(np.mean([one for chunk in chunks for one in chunk.ceiling])), 3
        ),
        "forward_rows": round(forward / count, 2),
        "backward_rows": round(backward / count, 2),
        "seconds": round(time.time() - began, 1),
    }


P2P = {
    "color": Settings(cross_end=0.8, self_end=0.8, self_limit=1.0),
    "pattern": Settings(cross_end=0.8, self_end=0.8, self_limit=1.0),
    "shape": Settings(mode="refine", cross_end=0.8, self_end=0.2),
}
"""Settings of edits by P2P alone."""


def edit_cases(count: int) -> list[tuple[str, Edit]]:
    """Held-out edits of the kinds in P2P, as many of each."""
    per = -(-count // len(P2P))
    return [(name, edit) for name in P2P for edit in KINDS[name].cases(per)][:count]


def edited(bench: Bench, count: int, only: list[str], cfg: float = 7.5) -> Iterator[dict[str, Any]]:
    """A row for every method: P2P edits of `count` pictures, each kind with its settings."""
    these = edit_cases(count)
    pictures = Pictures(bench, [(edit.scene, edit.source) for _, edit in these])
    for name in dict.fromkeys(way.name for way in chosen(only)):
        method = METHODS[name]
        pivot, forward, backward = pictures.prepared(method, cfg)
        means = judged_edits(bench, pictures, pivot, these, cfg, method.correction)
        rows = {
            "forward_rows": round(forward / count, 2),
            "backward_rows": round(backward / count, 2),
        }
        yield {"method": name, "cfg": cfg, "n": count, **means, **rows}


def judged_edits(
    bench: Bench,
    pictures: Pictures,
    pivot: Any,
    these: list[tuple[str, Edit]],
    cfg: float,
    correction: str,
) -> dict[str, float]:
    """Means over P2P edits from a trajectory of all pictures: read as the target, dB outside the
    object and to the true edit."""
    prompts, run, judged = part("host.text.prompts"), part("host.tasks.editing").edit, []
    for (i, one), (kind, edit) in zip(pictures.each(pivot), these, strict=True):
        words = (prompts.read_pair(bench.clip, edit.source, edit.target),)
        model = ATTENTION["p2p"].apply(bench.model, words, P2P[kind])
        target = prompts.encode(bench.clip, edit.target)
        made = run(model, one, pictures.texts[i], target, pictures.empty, cfg, correction)[0]
        judged.append(judge(edit, bench.vae.decode(made["samples"])[0].numpy()))
    names = ("success", "background_psnr", "truth_psnr")
    return {
        name: round(float(np.mean([getattr(one, name) for one in judged])), 3) for name in names
    }


def write(rows: Iterator[dict[str, Any]], path: pathlib.Path, go_on: bool) -> None:
    """Every row as it is measured, into a file that always holds those so far; go_on: beside what
    it held before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = json.loads(path.read_text()) if go_on and path.exists() else []
    for row in rows:
        made = [old for old in made if _key(old) != _key(row)] + [row]
        print(json.dumps(row), flush=True)
        path.write_text(json.dumps(sorted(made, key=_place), indent=2) + "\n")


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["n"], row["cfg"]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    """By method in the order of the registry, then by pictures and cfg."""
    return list(METHODS).index(row["method"]), -row["n"], row["cfg"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.inversion", description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="pictures")
    parser.add_argument(
        "--edits",
        type=int,
        default=0,
        help="pictures edited at cfg 7.5 under every correction, too",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="these, beside the rows of earlier runs",
    )
    parser.add_argument("--keep", action="store_true", help="copy the figures to docs/figures")
    options = parser.parse_args()
    if options.keep and (options.count < 50 or options.edits < 20):
        parser.error("figures are kept from 50 pictures and 20 edits on")
    install.import_comfy()
    with torch.inference_mode():
        bench = Bench()
        if options.count:
            write(reconstruction(bench, options.count, options.only), OUT, bool(options.only))
        if options.edits:
            write(edited(bench, options.edits, options.only), EDITS, bool(options.only))
    if options.keep:
        for path in (OUT, EDITS):
            shutil.copy(path, install.ROOT / "docs" / "figures" / path.name)


if __name__ == "__main__":
    main()
