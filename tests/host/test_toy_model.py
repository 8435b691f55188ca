"""The toy model is an ordinary MODEL, CLIP and VAE, and it draws what it is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pivot_edit.attention.prompt_to_prompt import PromptToPromptOptions
from pivot_edit.core.quality import psnr
from pivot_edit.host.model.checks import fingerprint
from pivot_edit.host.tasks.controls import controlled
from pivot_edit.host.tasks.editing import edit
from pivot_edit.host.tasks.inversion import invert_latent
from pivot_edit.host.text.prompts import encode, read_pair, read_prompt
from pivot_edit.inversion import Ddim
from pivot_edit.toy.loader import WEIGHTS, load
from toy import evaluate
from toy.reader import read
from toy.scenes import Scene


@pytest.fixture(scope="module")
def toy() -> Any:
    with torch.inference_mode():
        return load()


def test_the_weights_are_small_enough() -> None:
    assert WEIGHTS.stat().st_size <= 20_000_000


def test_the_autoencoder_keeps_the_picture(toy: Any) -> None:
    pictures = evaluate.renders([Scene.sample(30_000_000 + i) for i in range(8)])
    back = toy[2].decode(toy[2].encode(pictures))
    assert sum(map(psnr, back, pictures)) / 8 > 30.0


def test_stock_sampling_draws_the_caption(toy: Any) -> None:
    """A small part of `python -m toy.evaluate`, with room for chance: 8 pictures, 40 words."""
    scenes = [Scene.sample(30_000_100 + i) for i in range(8)]
    latents = evaluate.sample(toy[0], toy[1], [scene.caption for scene in scenes], 3.0, 7)
    drawn = toy[2].decode(latents).numpy()
    right = sum(sum(read(p).agreement(s).values()) for p, s in zip(drawn, scenes, strict=True))
    assert right >= 34


def test_fingerprints_tell_models_apart(toy: Any) -> None:
    model = toy[0]
    mine = fingerprint(model)
    assert fingerprint(load()[0]) == mine
    patched = model.clone()
    patched.add_patches({"diffusion_model.out.2.bias": (torch.ones(4),)}, 0.5)
    assert fingerprint(patched) != mine
    assert fingerprint(model) == mine


@pytest.mark.parametrize(
    ("text", "phrase", "columns"),
    [
        ("a red star", "red", (2,)),
        ("a red, shiny Star.", "star", (5,)),
        ("a red, shiny Star.", "red shiny", (2, 4)),
        ("a  red   star", "star", (3,)),
        ("a (red:1.3) star", "red", (2,)),
        ("a ((very red)) star", "very red", (2, 3)),
        ("red star and red moon", "red", (1, 4)),
        ("a cyan star", "cyan", (2, 3)),
        ("a storm-trooper", "storm-trooper", (2, 3, 4)),
        ("a café naïve", "café", (2,)),
    ],
)
def test_words_are_found_on_the_real_tokens(
    toy: Any, text: str, phrase: str, columns: tuple[int, ...]
) -> None:
    prompt = read_prompt(toy[1], text)
    assert prompt.find(phrase) == columns


def test_words_beyond_the_first_chunk_are_found(toy: Any) -> None:
    text = " ".join(["red"] * 80 + ["moon"])
    prompt = read_prompt(toy[1], text)
    assert len(prompt.tokens) == 154
    assert prompt.find("moon") == (77 + 81 - 75,)


def test_the_alignment_of_real_prompts_is_told_in_words(toy: Any) -> None:
    pair = read_pair(toy[1], "a red star at night", "a shiny red moon at night")
    assert pair.align().mode == "refine"
    assert "'shiny' new" in pair.align().note and "'star' gone" in pair.align().note
    assert (
        "red -> blue replaced; 2 words kept"
        in read_pair(toy[1], "a red star", "a blue star").align().note
    )


def test_two_text_encoders_have_the_same_columns(toy: Any) -> None:
    """SDXL reads a prompt twice on the same tokens; padding differs, words do not."""
    import types

    from comfy.sdxl_clip import SDXLTokenizer

    text = "a (storm-trooper:1.2), on a sofa"
    both = read_prompt(types.SimpleNamespace(tokenizer=SDXLTokenizer()), text)
    assert both.words == read_prompt(toy[1], text).words
    assert len(both.tokens) == 77


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a red star", "a (blue:1.3) star"),
        ("a red star " + "at night " * 40, "a blue star " + "at night " * 40),
        ("a red star " + "at night " * 40, "a blue star"),
        ("a red star", "a shiny blue star " + "at night " * 40),
    ],
)
def test_long_and_weighted_prompts_edit(toy: Any, source: str, target: str) -> None:
    model, clip, _ = toy
    words = (read_pair(clip, source, target),)
    texts = [encode(clip, text) for text in (source, target, "")]
    latent = {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))}
    pivot = invert_latent(model, latent, texts[0], 3, "reference", Ddim(), False)[0]
    options = PromptToPromptOptions(
        words, "auto", (0.0, 1.0), (0.0, 0.0), 1.0, "blue: 2", "star: 0-0.5"
    )
    edited, plain = (
        edit(m, pivot, *texts, 3.0, "direct")[0]["samples"]
        for m in (controlled(model, options)[0], model)
    )
    assert torch.isfinite(edited).all()
    assert (edited - plain).abs().max() > 1e-2
