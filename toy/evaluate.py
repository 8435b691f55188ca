"""The toy model's bars on held-out scenes: `python -m toy.evaluate [--count 256] [--json FILE]`.

Everything runs through ComfyUI's own VAE, CLIP and sampler classes, as the stock nodes call them:
* reader: clean held-out renders of which every word is read back, the judge's own accuracy;
* autoencoder: round trip of held-out renders, mean PSNR;
* samples: pictures of held-out captions, 50 DDIM steps (`euler` on `ddim_uniform`), read back word
  by word;
* inversion: DDIM inversion and back at guidance 1, 50 steps, decoded, against the autoencoder's own
  round trip.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from typing import Any

import numpy as np
import torch

from toy.scenes import WORDS, Scene

HELD_OUT = 20_000_000
BATCH = 16
BARS = {
    "reader": 0.99,
    "autoencoder_psnr": 32.0,
    "color": 0.97,
    "background": 0.97,
    "shape": 0.95,
    "pattern": 0.90,
    "position": 0.90,
    "inversion_gap": 0.5,
}


def renders(scenes: list[Scene]) -> torch.Tensor:
    return torch.from_numpy(np.stack([scene.render() for scene in scenes]))


def texts(clip: Any, prompts: list[str]) -> list[Any]:
    """One CONDITIONING with a row for each prompt."""
    rows = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0] for prompt in prompts]
    return [[torch.cat([row[0] for row in rows]), {}]]


def sample(model: Any, clip: Any, prompts: list[str], cfg: float, seed: int) -> torch.Tensor:
    """Latents of a batch of prompts by the stock sampler, 50 DDIM steps."""
    import comfy.sample

    latent = torch.zeros(len(prompts), 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, seed)
    return comfy.sample.sample(
        model,
        noise,
        50,
        cfg,
        "euler",
        "ddim_uniform",
        texts(clip, prompts),
        texts(clip, [""] * len(prompts)),
        latent,
        disable_pbar=True,
        seed=seed,
    )


def read_back(
    model: Any, clip: Any, vae: Any, count: int, cfg: float
) -> tuple[dict[str, float], np.ndarray]:
    """The share of sampled pictures in which each kind of word is read back, and the pictures."""
    from toy.reader import read

    hits = dict.fromkeys(WORDS, 0)
    drawn = []
    for first in range(0, count, BATCH):
        scenes = [Scene.sample(HELD_OUT + i) for i in range(first, min(first + BATCH, count))]
        pictures = vae.decode(
            sample(model, clip, [scene.caption for scene in scenes], cfg, first)
        ).numpy()
        drawn.append(pictures)
        for scene, picture in zip(scenes, pictures, strict=True):
            for kind, right in read(picture).agreement(scene).items():
                hits[kind] += right
    return {kind: hit / count for kind, hit in hits.items()}, np.concatenate(drawn)


def round_trips(model: Any, clip: Any, vae: Any, count: int) -> tuple[float, float]:
    """Mean PSNR of the autoencoder's round trip, and of inversion and back through it."""
    from tools.pack import part

    psnr, invert = part("core.quality").psnr, part("host.tasks.inversion").invert_latent
    replay = part("host.tasks.editing").replay
    plain, inverted = [], []
    for first in range(0, count, BATCH):
        scenes = [
            Scene.sample(HELD_OUT + 1_000_000 + i) for i in range(first, min(first + BATCH, count))
        ]
        picture, source = renders(scenes), texts(clip, [scene.caption for scene in scenes])
        latent = vae.encode(picture)
        plain += map(psnr, vae.decode(latent), picture)
        pivot = invert(
            model, {"samples": latent}, source, 50, "reference", part("inversion").Ddim(), False
        )[0]
        inverted += map(psnr, vae.decode(replay(model, pivot, source)), picture)
    return float(np.mean(plain)), float(np.mean(inverted))


def evaluate(count: int, cfg: float) -> tuple[dict[str, Any], np.ndarray]:
    """All figures, and the sampled pictures [count, 128, 128, 3]."""
    from tools.pack import part
    from toy import reader

    began = time.time()
    renders = range(HELD_OUT + 2_000_000, HELD_OUT + 2_000_000 + count)
    read_right = reader.accuracy(reader.DEGRADATIONS["clean"], renders)["all"]
    with torch.inference_mode():
        model, clip, vae = part("toy.loader").load()
        accuracy, pictures = read_back(model, clip, vae, count, cfg)
        vae_psnr, inversion_psnr = round_trips(model, clip, vae, count)
    figures = {"reader": read_right, "autoencoder_psnr": vae_psnr, **accuracy}
    figures["inversion_gap"] = vae_psnr - inversion_psnr
    return {"count": count, "cfg": cfg, **figures, "seconds": round(time.time() - began)}, pictures


def report(figures: dict[str, Any]) -> str:
    """The figures against their bars, as a Markdown table."""
    lines = ["| figure | value | bar |", "|---|---|---|"]
    for name, bar in BARS.items():
        share = name in WORDS or name == "reader"
        value = f"{100 * figures[name]:.1f} %" if share else f"{figures[name]:.2f} dB"
        wanted = (
            f">= {100 * bar:.0f} %"
            if share
            else f"{'<=' if name == 'inversion_gap' else '>='} {bar:g} dB"
        )
        lines.append(f"| {name.replace('_', ' ')} | {value} | {wanted} |")
    return "\n".join(lines)


def main() -> None:
    from tools.install import import_comfy

    parser = argparse.ArgumentParser(prog="python -m toy.evaluate", description=__doc__)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--sheet", type=pathlib.Path, help="write the first 64 pictures as one PNG")
    options = parser.parse_args()
    import_comfy()
    figures, pictures = evaluate(options.count, options.cfg)
    print(report(figures))
    print(f"{figures['count']} pictures at cfg {figures['cfg']:g}, {figures['seconds']} s")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.sheet:
        from PIL import Image

        rows = [
            np.concatenate(list(pictures[i : i + 8]), 1)
            for i in range(0, min(64, len(pictures) // 8 * 8), 8)
        ]
        Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8)).save(options.sheet)


if __name__ == "__main__":
    main()
