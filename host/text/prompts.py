"""Prompts through the host's CLIP: conditioning, and words on the token columns of the real
tokenizer."""

from __future__ import annotations

import re
from typing import Any

import torch

from ...core.errors import PivotError
from ...core.words import Prompt, PromptPair, Word, bare

Conditioning = list[tuple[torch.Tensor, dict[str, Any]]]
PROMPT = "pivot_prompt"
"""In a conditioning's options: the text it was encoded from."""


def encode(clip: Any, text: str) -> Conditioning:
    """The CONDITIONING of a prompt, as the stock CLIP Text Encode node gives it, with the prompt
    noted in it."""
    check_clip(clip)
    return clip.encode_from_tokens_scheduled(clip.tokenize(text), add_dict={PROMPT: text})


def prompt_of(conditioning: Conditioning) -> str:
    """The prompt that `encode` made a conditioning of; empty where another node made it."""
    return str(conditioning[0][1].get(PROMPT, "")) if conditioning else ""


def check_clip(clip: Any) -> None:
    """Raise PivotError unless `clip` is a text encoder with CLIP tokens."""
    if clip is None:
        raise PivotError(
            "a CLIP model", "none", "Connect the CLIP of a checkpoint that contains a text encoder."
        )
    if not _tokenizers(clip):
        raise PivotError(
            "a text encoder with CLIP tokens (SD1.x, SD2.x, SDXL)",
            type(clip.tokenizer).__name__,
            "Prompt alignment needs CLIP; T5 and LLM encoders belong to models without UNet "
            "cross-attention.",
        )


def check_prompt(text: str, what: str) -> str:
    """Return the prompt, or raise PivotError when it is empty."""
    if not text.strip():
        raise PivotError(
            f"a {what} prompt",
            "an empty text",
            "Describe the picture in a few words, e.g. 'a cat on a sofa'.",
        )
    return text


def read_pair(clip: Any, source: str, target: str) -> PromptPair:
    """Both prompts on the columns of the host's tokenizer.

    Raises PivotError for an empty prompt.
    """
    check_clip(clip)
    pair = PromptPair(
        read_prompt(clip, check_prompt(source, "source")),
        read_prompt(clip, check_prompt(target, "target")),
    )
    for prompt in (pair.source, pair.target):
        if not prompt.words:
            raise PivotError("a prompt with words", repr(prompt.text), "Write at least one word.")
    return pair


def read_prompt(clip: Any, text: str) -> Prompt:
    """The words of a prompt and the token columns of each, by a walk over the real tokenization.

    CLIP's tokenizer never joins text across white space. So tokenizing word by word gives the same
    tokens as the whole, which is checked. Weights such as `(word:1.2)` and embeddings are read as
    ComfyUI reads them.
    """
    tokenizer = _tokenizers(clip)[0]
    chunks = tokenizer.tokenize_with_weights(text, return_word_ids=True)
    flat = [entry for chunk in chunks for entry in chunk]
    # the host numbers the words of a prompt from 1; 0 is what belongs to none
    columns = [index for index, entry in enumerate(flat) if entry[2] != 0]
    words, used = [], 0
    for word in _split(text):
        parts = [_count(tokenizer, part) for part in _parts(word)]
        span = columns[used : used + sum(parts)]
        used += len(span)
        if span:
            core = span[parts[0] : parts[0] + parts[1]] or span
            words.append(Word(word, tuple(span), tuple(core)))
    if used != len(columns):
        raise PivotError(
            f"a prompt whose words give its {len(columns)} tokens",
            f"{used} tokens from {text!r}",
            "Put spaces around unusual characters and around embedding:name.",
        )
    return Prompt(text, tuple(words), tuple(_token_id(entry[0]) for entry in flat))


def _tokenizers(clip: Any) -> list[Any]:
    """The SDTokenizers of a CLIP that walk CLIP's BPE: one for SD1.x and SD2.x, two for SDXL."""
    tokenizer = getattr(clip, "tokenizer", None)
    inner = [getattr(tokenizer, name, None) for name in ("clip_l", "clip_g", "clip_h")]
    return [one for one in inner if one is not None and hasattr(one, "tokenize_with_weights")]


def _split(text: str) -> list[str]:
    """The words between white space, without ComfyUI's syntax for weights."""
    from comfy.sd1_clip import escape_important, token_weights, unescape_important

    return [
        word
        for part, _ in token_weights(escape_important(text), 1.0)
        for word in unescape_important(part).split()
    ]


def _parts(word: str) -> tuple[str, str, str]:
    """A word in three parts: leading punctuation, the word itself, trailing punctuation."""
    if word.startswith("embedding:") or not bare(word):
        return "", word, ""
    start = re.search(re.escape(bare(word)), word, re.IGNORECASE)
    if start is None:
        return "", word, ""
    return word[: start.start()], word[start.start() : start.end()], word[start.end() :]


def _count(tokenizer: Any, text: str) -> int:
    """How many tokens a part of a word has."""
    if not text:
        return 0
    entries = tokenizer.tokenize_with_weights(text, return_word_ids=True, disable_weights=True)
    return sum(entry[2] != 0 for chunk in entries for entry in chunk)


def _token_id(token: Any) -> int:
    """A token's id.

    An embedding gets a negative number made of its content, so that it matches only itself.
    """
    if isinstance(token, int):
        return token
    return -1 - (hash(token.detach().float().cpu().numpy().tobytes()) % (1 << 40))
