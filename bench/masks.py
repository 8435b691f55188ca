"""Whether masks of words find the object, on a model that was tuned for and on one that was not.

`python -m bench.masks [--scenes 40] [--worlds toy second] [--keep]`, `out/bench/masks.json`.

Held-out scenes of the toy world and of the second world (bench/second) are edited by Prompt-to-
Prompt and Local Blend under direct inversion, with the nodes' defaults. All words of the object are
listed, of either prompt. Several rules make their masks of the same maps; only the pack's own one
blends. A mask is compared with the object before and after, cell by cell of the latent. A new
background subtracts the object's words, and what is subtracted is compared.

Then the same edits are made under the paper's rule and without Local Blend: how near are they to
the true edit, and how well is the rest kept? `--keep` copies the figures to `docs/figures/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bench.cases import HELD_OUT
from bench.methods import inverted
from bench.second.scenes import WORDS as SECOND_WORDS
from bench.second.world import SECOND
from tools import install
from tools.pack import part
from tools.pictures import psnr
from toy.scenes import WORDS as TOY_WORDS
from toy.scenes import kept
from toy.train import TOY_WORLD, World

OUT = install.ROOT / "out" / "bench" / "masks.json"
CFG, STEPS, FIRST, GOOD = 7.5, 20, HELD_OUT + 700_000, 0.7
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Judged:
    """A world, the words of its object, and which of its words are changed."""

    world: World
    words: dict[str, tuple[str, ...]]
    object: tuple[str, ...]
    kinds: tuple[str, ...]


WORLDS = {
    "toy": Judged(
        TOY_WORLD,
        TOY_WORDS,
        ("pattern", "color", "shape"),
        ("color", "pattern", "shape", "background"),
    ),
    "second": Judged(
        SECOND, SECOND_WORDS, ("size", "color", "shape"), ("color", "size", "shape", "background")
    ),
}


# -- rules


def paper(blend: Any) -> Any:
    """The paper's rule, at the paper's threshold."""
    return dataclasses.replace(blend, pool=True, threshold=0.3, subtract_threshold=0.3)


def greatest(words_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A share of the greatest value, without pooling."""
    found = part("core.maps").resize(words_map, size)
    return found > 0.3 * found.max()


def ranged(words_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A share of the range, without smoothing."""
    maps = part("core.maps")
    shares: torch.Tensor = maps.share_of_range(maps.resize(words_map, size, "bilinear"))
    return shares >= 0.4


def otsu(words_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Otsu's threshold (1979), which parts values into two groups by the variance between them."""
    found = part("core.maps").resize(words_map, size, "bilinear")
    values = found.flatten().sort().values
    count = torch.arange(1, len(values), device=values.device)
    share = count / len(values)
    low = values.cumsum(0)[:-1] / count
    high = (values.sum() - values.cumsum(0)[:-1]) / (len(values) - count)
    best = int((share * (1 - share) * (low - high) ** 2).argmax())
    return found > values[best]


RULES: dict[str, Callable[[torch.Tensor, tuple[int, int]], torch.Tensor] | None] = {
    "share of the range, smoothed (default)": None,
    "share of the range, not smoothed": ranged,
    "Otsu's threshold": otsu,
    "share of the greatest value": greatest,
    "the paper's (`pool`)": None,
}
DEFAULT, *_, PAPER = RULES


def looked_at(
    rule: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor],
    maps: Sequence[torch.Tensor],
    size: tuple[int, int],
    *given: Any,
) -> torch.Tensor:
    """Where any of some maps [h, w, words] is said to be by a rule, instead of Local Blend's."""
    return torch.stack([rule(words.sum(-1), size) for words in maps]).any(0)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Local blends that make their masks by every rule, without blending."""

    blends: dict[str, Any]

    @classmethod
    def beside(cls, blend: Any) -> Rules:
        """All rules of a local blend's words."""
        kind = part("attention").LocalBlend

        class Watching(kind):  # type: ignore[misc, valid-type]
            """Makes its masks and changes no latent."""

            def after_step(self, x: Any, *given: Any) -> Any:
                super().after_step(x, *given)
                return x

        fields = {field.name: getattr(blend, field.name) for field in dataclasses.fields(blend)}
        results = part("core.maps").Results

        def watching(rule: Any, pool: bool) -> Any:
            one = Watching(**{**fields, "results": results()})
            if pool:
                return dataclasses.replace(paper(one), results=results())
            if rule is not None:
                object.__setattr__(one, "_looked_at", functools.partial(looked_at, rule))
            return one

        return cls({name: watching(rule, name == PAPER) for name, rule in RULES.items()})


# -- scenes


@dataclasses.dataclass(frozen=True)
class Case:
    """A scene, and the true edit of one of its words."""

    kind: str
    scene: Any
    truth: Any

    def words(self, world: Judged) -> str:
        """All words that name the object before and after, as people list them."""
        said = set(f"{self.scene.caption} {self.truth.caption}".split())
        listed = [getattr(one, kind) for kind in world.object for one in (self.scene, self.truth)]
        return ", ".join(word for word in dict.fromkeys(listed) if word in said)

    def object(self, size: tuple[int, int]) -> np.ndarray:
        """Where the object is, before or after: the cells [H, W] that it covers by half."""
        both = np.maximum(self.scene.object_mask(), self.truth.object_mask())
        height, width = (all_ // cells for all_, cells in zip(both.shape, size, strict=True))
        covered: np.ndarray = both.reshape(size[0], height, size[1], width).mean((1, 3)) >= 0.5
        return covered


def cases(world: Judged, count: int) -> Iterator[Case]:
    """Held-out scenes, each kind of edit in turn."""
    for i in range(count):
        scene, draw = world.world.sample(FIRST + i), random.Random(FIRST + i)
        kind = world.kinds[i % len(world.kinds)]
        others = [word for word in world.words[kind] if word != getattr(scene, kind)]
        yield Case(kind, scene, scene.change(**{kind: draw.choice(others)}))


def overlap(mask: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union."""
    return float((mask & true).sum() / max(1, (mask | true).sum()))


# -- edits


class Editor:
    """A world's model in this process."""

    def __init__(self, world: Judged) -> None:
        self.world = world
        load = part("toy.loader").load
        self.model, self.clip, self.vae = load(world.world.weights, world.world.shapes)

    def take(self, case: Case) -> None:
        """Inverts the case's picture, which the edits after it are of."""
        prompts, words = part("host.text.prompts"), part("core.words")
        source, target = case.scene.caption, case.truth.caption
        self.texts = {
            name: prompts.encode(self.clip, text)
            for name, text in (("source", source), ("target", target), ("negative", ""))
        }
        latent = {"samples": self.vae.encode(torch.from_numpy(case.scene.render())[None])}
        self.pivot = inverted(self.model, latent, self.texts["source"], STEPS, "ddim")
        read = prompts.read_prompt
        self.pair = words.PromptPair(read(self.clip, source), read(self.clip, target))

    def blend(self, case: Case, **options: Any) -> Any:
        """Local Blend by its node's inputs, at the object's words or everywhere but there."""
        found = part("host.model.layers")
        facts = part("core.control").ModelFacts(
            found.layers_of(self.model), found.scales_of(self.model)
        )
        name = "subtract_words" if case.kind == "background" else "blend_words"
        options = {"words": (self.pair,), name: case.words(self.world), **options}
        return part("attention.local_blend").LocalBlendOptions(**options).build(facts)[0]

    def edit(
        self, chain: Sequence[Any], cfg: float = CFG, p2p: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, torch.Tensor]:
        """The edited picture [H, W, 3] and its latent, under Prompt-to-Prompt by its node's inputs
        (None: without it) and more controllers."""
        model = self.model
        if p2p is not None:
            options = part("attention.prompt_to_prompt").PromptToPromptOptions((self.pair,), **p2p)
            model = part("host.tasks.controls").controlled(model, options)[0]
        for one in chain:
            model = part("host.run.patching").add_controller(model, one)
        run = part("host.tasks.editing").edit
        samples = run(model, self.pivot, **self.texts, cfg=cfg, correction="direct")[0]["samples"]
        shown: np.ndarray = self.vae.decode(samples)[0].cpu().numpy().clip(0.0, 1.0)
        return shown, samples[0]


def found_by_rules(editor: Editor, case: Case) -> Iterator[Row]:
    """What every rule finds in a case, and what the edit gives under the rules that blend."""
    editor.take(case)
    blend = editor.blend(case)
    rules = Rules.beside(blend).blends
    picture, samples = editor.edit((blend, *rules.values()), p2p={})
    for name, one in rules.items():
        mask = one.results.get(samples).numpy() > 0.5
        inside = ~mask if case.kind == "background" else mask
        yield {
            "rule": name,
            "overlap": round(overlap(inside, case.object(mask.shape)), 4),
            "share": round(float(mask.mean()), 4),
        }
    edits = {
        DEFAULT: picture,
        PAPER: editor.edit((paper(editor.blend(case)),), p2p={})[0],
        "without Local Blend": editor.edit((), p2p={})[0],
    }
    for name, shown in edits.items():
        yield {"blend": name, **judged(case, shown)}


def judged(case: Case, picture: np.ndarray) -> Row:
    """dB to the true edit, and of the part that it keeps to the source."""
    scene, truth = case.scene, case.truth
    return {
        "truth_psnr": round(psnr(picture, truth.render()), 3),
        "kept_psnr": round(psnr(picture, scene.render(), kept(scene, truth)), 3),
    }


# -- figures


def figures(lines: Sequence[Row]) -> list[Row]:
    """Of every world and rule, over all kinds and over each: how often the object is found, and
    what the edits give."""
    rows: list[Row] = []
    for world in dict.fromkeys(line["world"] for line in lines):
        for kind in ("all", *WORLDS[world].kinds):
            chosen = [
                one for one in lines if one["world"] == world and kind in ("all", one["kind"])
            ]
            for name in dict.fromkeys(one["rule"] for one in chosen if "rule" in one):
                found = [one for one in chosen if one.get("rule") == name]
                overlaps = np.array([one["overlap"] for one in found])
                rows.append(
                    {
                        "world": world,
                        "kind": kind,
                        "rule": name,
                        "n": len(found),
                        "found": round(float((overlaps >= GOOD).mean()), 4),
                        "median": round(float(np.median(overlaps)), 3),
                        "useless": sum(not 0.01 <= one["share"] <= 0.95 for one in found),
                    }
                )
            for name in dict.fromkeys(one["blend"] for one in chosen if "blend" in one):
                made = [one for one in chosen if one.get("blend") == name]
                means = {
                    key: round(float(np.mean([one[key] for one in made])), 2)
                    for key in ("truth_psnr", "kept_psnr")
                }
                rows.append({"world": world, "kind": kind, "blend": name, "n": len(made), **means})
    return rows


def tables(rows: Sequence[Row]) -> str:
    """The figures as they stand in docs/BENCHMARKS.md."""
    worlds = list(dict.fromkeys(row["world"] for row in rows))

    def cells(kind: str, name: str, key: str, form: str) -> str:
        every = {row["world"]: row for row in rows if (row["kind"], row.get(key)) == (kind, name)}
        return " | ".join(form.format(**every[world]) for world in worlds)

    head = " | ".join(f"{world}: found | median overlap | useless" for world in worlds)
    lines = [f"| rule | {head} |", f"|---|{'---|' * (3 * len(worlds))}"]
    form = "{found:.0%} of {n} | {median:.2f} | {useless}"
    lines += [f"| {name} | {cells('all', name, 'rule', form)} |" for name in RULES]
    head = " | ".join(f"{world}: to the true edit, dB | kept part, dB" for world in worlds)
    lines += ["", f"| edit | {head} |", f"|---|{'---|' * (2 * len(worlds))}"]
    form = "{truth_psnr:.1f} | {kept_psnr:.1f}"
    names = dict.fromkeys(row["blend"] for row in rows if "blend" in row)
    lines += [f"| {name} | {cells('all', name, 'blend', form)} |" for name in names]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.masks", description=__doc__)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--worlds", nargs="+", choices=tuple(WORLDS), default=tuple(WORLDS))
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    install.import_comfy()
    lines: list[Row] = []
    for name in options.worlds:
        editor = Editor(WORLDS[name])
        for i, case in enumerate(cases(WORLDS[name], options.scenes)):
            with torch.inference_mode():
                found = list(found_by_rules(editor, case))
            lines += [{"world": name, "kind": case.kind, **row} for row in found]
            print(
                f"{name} {i + 1}/{options.scenes} {case.kind}: {lines[-8]['overlap']}", flush=True
            )
    rows = figures(lines)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("\n".join(["[", ",\n".join(json.dumps(row) for row in rows), "]"]) + "\n")
    print(tables(rows))
    if options.keep:
        shutil.copy(OUT, install.ROOT / "docs" / "figures" / OUT.name)


if __name__ == "__main__":
    main()
