"""Train the toy model: `python -m toy.train autoencoder|diffusion|decoder|pack`.

Seeded, resumable (a checkpoint every few minutes under `toy/runs/`, not tracked), logged as one
JSON line a report (`toy/logs/`, tracked). Another world of captioned pictures trains in the same
stages (bench/second). Needs ComfyUI: `COMFYUI_PATH` or the copy that `make` has unpacked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from toy.architecture import TOY, Shapes, build_autoencoder, build_text_model, build_unet
from toy.scenes import Scene

HERE = pathlib.Path(__file__).parent
LATENT_SCALE = 0.18215
HELD_OUT = 10_000_000  # training draws seeds below this number, judging draws seeds above it
LATENT_NOISE = 0.05


@dataclasses.dataclass(frozen=True)
class World:
    """Captioned pictures that a model is trained on."""

    sample: Callable[[int], Any]
    """The scene of a seed, with `render()` and `caption`."""
    shapes: Shapes
    """The widths of its model."""
    runs: pathlib.Path
    """Where checkpoints lie, which are not tracked."""
    logs: pathlib.Path
    weights: pathlib.Path
    """The file that `pack` writes."""
    seed: int = 0
    """What its stages' seeds begin at."""


TOY_WORLD = World(
    Scene.sample, TOY, HERE / "runs", HERE / "logs", HERE / "weights" / "toy.safetensors"
)


def pictures(world: World, seeds: list[int]) -> torch.Tensor:
    """Rendered scenes as float32 [B, 3, 128, 128] in [-1, 1]."""
    batch = np.stack([world.sample(seed).render() for seed in seeds])
    return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous() * 2.0 - 1.0


class Average:
    """An exponential moving average of a model's parameters."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        for name, p in model.named_parameters():
            self.values[name].lerp_(p.detach(), 1.0 - decay)


def run_training(
    world: World,
    name: str,
    model: torch.nn.Module,
    loss_of: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    *,
    steps: int,
    rate: float,
    seed: int,
    decay: float = 0.999,
    weight_decay: float = 1e-4,
) -> Average:
    """Minimise `loss_of(step)` with AdamW, warm-up and cosine, from the last checkpoint if there is
    one."""
    torch.manual_seed(world.seed + seed)
    world.runs.mkdir(parents=True, exist_ok=True)
    world.logs.mkdir(parents=True, exist_ok=True)
    path = world.runs / f"{name}.pt"
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=weight_decay, betas=(0.9, 0.99))
    average = Average(model, decay)
    first, seconds = 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values = state["average"]
        first, seconds = state["step"], state["seconds"]
        torch.manual_seed(world.seed + seed + first)
    began, saved = time.time() - seconds, time.time()
    sums: dict[str, float] = {}
    since = first
    with (world.logs / f"{name}.jsonl").open("a" if first else "w") as log:
        for step in range(first, steps):
            warm = min(1.0, (step + 1) / 100)
            optimizer.param_groups[0]["lr"] = (
                rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            )
            loss, figures = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            average.update(model, step)
            for key, value in {"loss": loss.item(), **figures}.items():
                sums[key] = sums.get(key, 0.0) + value
            if (step + 1) % 100 == 0:
                means = {key: value / (step + 1 - since) for key, value in sums.items()}
                row = {"step": step + 1, "seconds": round(time.time() - began), **means}
                log.write(json.dumps(row) + "\n")
                log.flush()
                sums, since = {}, step + 1
            if time.time() - saved > 120 or step + 1 == steps:
                state = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.values,
                    "step": step + 1,
                    "seconds": time.time() - began,
                }
                torch.save(state, path.with_suffix(".new"))
                path.with_suffix(".new").replace(path)
                saved = time.time()
    return average


def seeds_of(step: int, batch: int, stage: int) -> list[int]:
    draw = np.random.default_rng([stage, step])
    return [int(seed) for seed in draw.integers(0, HELD_OUT, batch)]


def train_autoencoder(world: World, steps: int, batch: int, rate: float) -> None:
    """Stage 1: squared and absolute error, with the latent kept near unit scale and robust to small
    noise."""
    from tools.pack import part

    psnr = part("core.quality").psnr
    torch.manual_seed(world.seed + 1)
    model = build_autoencoder(world.shapes)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        picture = pictures(world, seeds_of(step, batch, world.seed + 1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latent: Any = model.encode(picture)  # type: ignore[operator]
            latent = latent.float()
            noisy = latent + LATENT_NOISE * torch.randn_like(latent)
            drawn: Any = model.decode(noisy)  # type: ignore[operator]
        error = drawn.float() - picture
        loss = error.abs().mean() + 2.0 * error.square().mean() + 2e-4 * latent.square().mean()
        figures = {
            "psnr": psnr(drawn.detach().float(), picture, 2.0),
            "latent_std": latent.std().item(),
        }
        return loss, figures

    run_training(world, "autoencoder", model, loss_of, steps=steps, rate=rate, seed=1)


def train_decoder(world: World, steps: int, batch: int, rate: float, noise: float) -> None:
    """Stage 3: the encoder and so the latents stay; the decoder alone goes on, on the latents as
    they are used.

    noise: deviation of what is added to the unit-scale latents, so that small errors of a sampler
    stay small.
    """
    from tools.pack import part

    psnr, model = part("core.quality").psnr, trained_autoencoder(world)
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("decoder.", "post_quant_conv.")))

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        picture = pictures(world, seeds_of(step, batch, world.seed + 3))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                latent: Any = model.encode(picture)  # type: ignore[operator]
            shaken = latent.float() + noise / LATENT_SCALE * torch.randn_like(latent.float())
            drawn: Any = model.decode(shaken)  # type: ignore[operator]
        error = drawn.float() - picture
        loss = 0.3 * error.abs().mean() + 4.0 * error.square().mean()
        return loss, {"psnr": psnr(drawn.detach().float(), picture, 2.0), "noise": noise}

    run_training(world, "decoder", model, loss_of, steps=steps, rate=rate, seed=3, weight_decay=0.0)


def standardise(autoencoder: torch.nn.Module, latents: torch.Tensor) -> None:
    """Fold each latent channel's mean and deviation into the 1x1 convolutions around the latent.

    Afterwards `LATENT_SCALE * encode(picture)` has zero mean and unit deviation, as SD's latents
    roughly do, and the posterior's variance is nil: encoding is deterministic.
    """
    mean = latents.mean(dim=(0, 2, 3))
    scale = latents.std(dim=(0, 2, 3)) * LATENT_SCALE
    inner: Any = autoencoder.quant_conv
    outer: Any = autoencoder.post_quant_conv
    with torch.no_grad():
        inner.weight[:4].div_(scale[:, None, None, None])
        inner.bias[:4].sub_(mean).div_(scale)
        inner.weight[4:].zero_()
        inner.bias[4:].fill_(-30.0)
        outer.bias.add_(outer.weight[:, :, 0, 0] @ mean)
        outer.weight.mul_(scale[None, :, None, None])


def trained_autoencoder(world: World) -> torch.nn.Module:
    """The averaged autoencoder of stage 1, standardised on 512 training scenes."""
    model = build_autoencoder(world.shapes)
    model.load_state_dict(averaged(world, "autoencoder"))
    model.eval()
    standardise(model, encode_scenes(world, model, range(512)))
    return model


def finished_autoencoder(world: World) -> torch.nn.Module:
    """The autoencoder with the decoder of stage 3, where there is one."""
    model = trained_autoencoder(world)
    if (world.runs / "decoder.pt").exists():
        model.load_state_dict(averaged(world, "decoder"))
    return model


@torch.no_grad()
def encode_scenes(
    world: World, autoencoder: torch.nn.Module, seeds: range, batch: int = 16
) -> torch.Tensor:
    """Latents float32 [N, 4, 16, 16] of the scenes of `seeds`, as the autoencoder gives them."""
    parts = []
    for first in range(seeds.start, seeds.stop, batch):
        picture = pictures(world, list(range(first, min(first + batch, seeds.stop))))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latent: Any = autoencoder.encode(picture)  # type: ignore[operator]
        parts.append(latent.float())
    return torch.cat(parts)


def cached_latents(world: World, count: int) -> torch.Tensor:
    """Scaled latents of the scenes 0..count-1, encoded once and kept under `toy/runs/`."""
    path = world.runs / f"latents-{count}.pt"
    if not path.exists():
        latents = encode_scenes(world, trained_autoencoder(world), range(count)) * LATENT_SCALE
        torch.save(latents.half(), path)
    return torch.load(path, weights_only=True)


def caption_tokens(captions: list[str]) -> torch.Tensor:
    """Token ids [B, 77] from the host's own CLIP tokenizer."""
    from comfy.sd1_clip import SDTokenizer

    tokenizer = SDTokenizer()
    return torch.tensor(
        [[token for token, _ in tokenizer.tokenize_with_weights(c)[0]] for c in captions]
    )


class Denoiser(torch.nn.Module):
    """UNet and text encoder, trained together: eps from (x, t, token ids)."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.unet = build_unet(shapes)
        self.text = build_text_model(shapes)

    def forward(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.unet(x, t, context=self.encode(tokens))

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """CLIPTextModel's last hidden state; ComfyUI's own forward adds in place, which autograd
        refuses."""
        from comfy.ldm.modules.attention import optimized_attention_for_device

        text: Any = self.text.text_model
        x = text.embeddings(tokens, dtype=torch.float32)
        causal = torch.full((77, 77), torch.finfo(x.dtype).min).triu_(1)
        attend = optimized_attention_for_device(x.device, mask=True, small_input=True)
        for layer in text.encoder.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), causal, attend)
            x = x + layer.mlp(layer.layer_norm2(x))
        return text.final_layer_norm(x)


def train_diffusion(world: World, steps: int, batch: int, rate: float, scenes: int) -> None:
    """Stage 2: eps-prediction on SD's schedule, 10 % empty captions, errors weighted by min(SNR, 5)
    / SNR."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    abar = torch.cumprod(1.0 - betas, 0).float()
    snr = abar / (1.0 - abar)
    weight_of = snr.clamp(max=5.0) / snr
    latents = cached_latents(world, scenes)
    tokens = caption_tokens([world.sample(seed).caption for seed in range(scenes)])
    empty = caption_tokens([""])
    torch.manual_seed(world.seed + 2)
    model = Denoiser(world.shapes)

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        draw = torch.Generator().manual_seed(2_000_000 + 1_000_000 * world.seed + step)
        chosen = torch.randint(0, scenes, (batch,), generator=draw)
        x0 = latents[chosen].float()
        t = torch.randint(0, 1000, (batch,), generator=draw)
        eps = torch.randn(x0.shape, generator=draw)
        dropped = torch.rand(batch, 1, generator=draw) < 0.1
        level = abar[t][:, None, None, None]
        noisy = level.sqrt() * x0 + (1.0 - level).sqrt() * eps
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = model(noisy, t.float(), torch.where(dropped, empty, tokens[chosen]))
        error = (predicted.float() - eps).square().mean(dim=(1, 2, 3))
        return (error * weight_of[t]).mean(), {"mse": error.mean().item()}

    run_training(
        world, "diffusion", model, loss_of, steps=steps, rate=rate, seed=2, weight_decay=1e-2
    )


def averaged(world: World, name: str) -> dict[str, torch.Tensor]:
    """The averaged weights of a stage's last checkpoint."""
    state = torch.load(world.runs / f"{name}.pt", weights_only=True)
    return {**state["model"], **state["average"]}


def trained_words(world: World) -> list[int]:
    """Token ids that occur in captions, special tokens included."""
    captions = [world.sample(seed).caption for seed in range(2000)]
    return sorted(set(caption_tokens([*captions, ""]).flatten().tolist()))


def pack_weights(world: World) -> None:
    """Write the world's weights: averaged weights, fp16, named as in an SD1.x checkpoint.

    Of the vocabulary only the rows of trained words are kept.
    """
    from safetensors.torch import save_file

    from toy.loader import CLIP, UNET, VAE, WORDS

    model = averaged(world, "diffusion")
    vocabulary = model.pop(f"text.{WORDS}.weight")
    model.pop("text.text_projection.weight")
    ids = torch.tensor(trained_words(world))
    tensors = {
        f"{VAE}{name}": value for name, value in finished_autoencoder(world).state_dict().items()
    }
    for name, value in model.items():
        part, _, rest = name.partition(".")
        tensors[f"{UNET if part == 'unet' else CLIP}{rest}"] = value
    tensors[f"{CLIP}{WORDS}.rows"] = vocabulary[ids]
    halves = {name: value.half().contiguous() for name, value in tensors.items()}
    halves[f"{CLIP}{WORDS}.ids"] = ids.to(torch.int32)
    world.weights.parent.mkdir(exist_ok=True)
    save_file(halves, world.weights)
    print(f"{world.weights}: {world.weights.stat().st_size / 1e6:.2f} MB")


def main(world: World = TOY_WORLD, prog: str = "python -m toy.train") -> None:
    """Train one stage of a world, as the command line says."""
    from tools.install import import_comfy

    import_comfy()
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("stage", choices=("autoencoder", "diffusion", "decoder", "pack"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument(
        "--noise", type=float, default=0.02, help="stage decoder: noise on unit-scale latents"
    )
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.stage == "autoencoder":
        train_autoencoder(world, options.steps or 4000, options.batch or 8, options.rate or 1.5e-3)
    if options.stage == "decoder":
        train_decoder(
            world, options.steps or 1500, options.batch or 8, options.rate or 6e-4, options.noise
        )
    if options.stage == "pack":
        pack_weights(world)
    if options.stage == "diffusion":
        train_diffusion(
            world, options.steps or 8000, options.batch or 32, options.rate or 8e-4, options.scenes
        )


if __name__ == "__main__":
    main()
