"""Prompts through the host's CLIP: conditioning, and words on the token columns of the real
tokenizer."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ...core.errors import PivotError
from ...core.spelling import bare
from ...core.words import LONGEST, Prompt, PromptPair, Word
from .walk import Entry, Piece, nameless, walk, words_of

Conditioning = list[tuple[torch.Tensor, dict[str, Any]]]
PROMPT = "pivot_prompt"
"""In a conditioning's options: the text it was encoded from."""


def encode(clip: Any, text: str) -> Conditioning:
    """The CONDITIONING of a prompt, as the stock CLIP Text Encode node gives it, with the prompt
    noted in it."""
    check_clip(clip)
    try:
        tokens = clip.tokenize(text)
    except IndexError as error:  # the host takes the first word behind `embedding:` unseen
        if "embedding:" in text:
            raise nameless(text) from error
        raise
    return clip.encode_from_tokens_scheduled(tokens, add_dict={PROMPT: text})


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
            "Describe the picture in a few words, e.g. 'a cat on a sofa'. Where it shall have no "
            "words, connect the stock CLIP Text Encode with an empty text.",
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
    """The words of a prompt and the token columns of each, by the host's own walk over it.

    Weights such as `(word:1.2)` and embeddings are read as ComfyUI reads them. Raises PivotError
    where the tokens hold other characters than the prompt, and for a prompt that is too long.
    """
    tokenizer, *further = _tokenizers(clip)
    check_length(len(text), 8 * LONGEST, "characters")
    entries, pieces = walk(tokenizer, text)
    check_length(len(entries), LONGEST, "token columns")
    _check_interrupted()
    for other in further:
        _check_equal(text, entries, walk(other, text)[0])
    words: list[Word] = []
    before = " "
    for piece in pieces:
        added = _words_of(tokenizer, piece, [entries[column][0] for column in piece.columns])
        if words and added and _is_glued(before, piece.text, added[0]):
            words[-1] = _glued(words[-1], added.pop(0))
        words += added
        before = piece.text
    tokens = tuple(_token_id(entry[0]) for entry in entries)
    return Prompt(text, tuple(words), tokens, tokenizer.max_length)


def _words_of(tokenizer: Any, piece: Piece, tokens: list[Any]) -> list[Word]:
    """The words of a piece of a prompt. An embedding is one."""
    if piece.is_embedding:
        return [Word(piece.text, piece.columns, piece.columns)] if piece.columns else []
    return words_of(tokenizer, piece, tokens)


def _is_glued(before: str, text: str, word: Word) -> bool:
    """Whether a piece begins with punctuation of the word before, as in `(red:1.2), star`."""
    return not (bare(word.text) or before[-1:].isspace() or text[:1].isspace())


def _glued(word: Word, punctuation: Word) -> Word:
    return dataclasses.replace(
        word,
        text=word.text + punctuation.text,
        columns=(*word.columns, *punctuation.columns),
    )


def check_length(length: int, most: int, what: str) -> None:
    """Raise PivotError for a prompt whose alignment would be larger than memory."""
    if length > most:
        raise PivotError(
            f"a prompt of at most {most} {what}",
            f"{length}",
            "Shorten the prompt; an alignment grows with the square of its length.",
        )


def _check_interrupted() -> None:
    """Let the host stop here, where somebody has asked it to."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def _check_equal(text: str, one: list[Entry], other: list[Entry]) -> None:
    """Raise PivotError where two encoders do not read the same columns."""
    counts = [sum(entry[2] != 0 for entry in entries) for entries in (one, other)]
    if [entry[2] for entry in one] != [entry[2] for entry in other]:
        raise PivotError(
            "text encoders that read the same columns",
            f"{counts[0]} and {counts[1]} tokens from {text!r}",
            "Use an embedding that was trained for both encoders.",
        )


def _tokenizers(clip: Any) -> list[Any]:
    """The SDTokenizers of a CLIP that walk CLIP's BPE: one for SD1.x and SD2.x, two for SDXL."""
    tokenizer = getattr(clip, "tokenizer", None)
    inner = [getattr(tokenizer, name, None) for name in ("clip_l", "clip_g", "clip_h")]
    return [one for one in inner if one is not None and hasattr(one, "tokenize_with_weights")]


def _token_id(token: Any) -> int:
    """A token's id.

    An embedding gets a negative number made of its content, so that it matches only itself.
    """
    if isinstance(token, int):
        return token
    return -1 - (hash(token.detach().float().cpu().numpy().tobytes()) % (1 << 40))
