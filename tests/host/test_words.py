"""Words stand on their own tokens, read back from the host's vocabulary, or are refused."""

from __future__ import annotations

import os
import pathlib
import random
import types
from typing import Any

import comfy.model_management
import comfy.sd1_clip
import pytest
import safetensors.torch
import torch
import transformers
from comfy.sd1_clip import SD1Tokenizer, SDTokenizer
from comfy.sdxl_clip import SDXLTokenizer

from pivot_edit.core.errors import PivotError
from pivot_edit.core.spelling import bare
from pivot_edit.core.words import Prompt, phrases
from pivot_edit.host.text.prompts import encode, read_pair, read_prompt
from pivot_edit.toy.loader import load

FOLDER = os.path.join(os.path.dirname(comfy.sd1_clip.__file__), "sd1_tokenizer")


class FastTokenizer(SDTokenizer):
    """The host's around the tokenizer in Rust, which does not part Chinese words."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tokenizer_class=transformers.CLIPTokenizerFast, **options)


def clip(tokenizer: Any) -> Any:
    return types.SimpleNamespace(tokenizer=tokenizer)


TOKENIZERS = {"slow": SD1Tokenizer(), "fast": SD1Tokenizer(tokenizer=FastTokenizer)}
SLOW = clip(TOKENIZERS["slow"])


@pytest.fixture(params=["slow", "fast"])
def sd1(request: pytest.FixtureRequest) -> Any:
    return clip(TOKENIZERS[request.param])


@pytest.fixture(scope="module")
def toy() -> Any:
    with torch.inference_mode():
        return load()


def spelled(read: Any, prompt: Prompt, columns: tuple[int, ...]) -> str:
    """What the tokenizer itself says that columns hold, without spaces."""
    tokens = [prompt.tokens[column] for column in columns]
    text: str = read.tokenizer.clip_l.tokenizer.convert_tokens_to_string(
        read.tokenizer.clip_l.tokenizer.convert_ids_to_tokens(tokens)
    )
    return "".join(text.replace("</w>", " ").split())


# every word on its own tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (">_<, a striped red star", "striped red star"),
        ("^_^;; T_o, a (╯°□°)╯ red star :D", "red star d t o"),
        ("a 'striped' red star", "striped red star"),
        ("the 'restaurant' and 'tower', 'dog'", "restaurant tower dog and"),
        ("'twas 'very' 'lluminated 'merry", "twas very lluminated merry"),
        ("striped,red,moon;at/the|left_of star.On", "striped red star moon at the left of on"),
        ("a dog's ball, it's Tom’s", "dog ball it tom dog's it's tom's"),
        ("striped，red、star。（blue）", "striped red star blue"),
        ("(striped:1.2), ((red)), star \\(blue\\)", "striped red star blue"),
        ("A STRIPED “Red” ‘star’ t-shirt", "a striped red star t-shirt"),
        ("cafe\u0301 naïve ﬁne 2024 1girl", "café naïve 2024 1girl"),
        ("a\tred\nstar\u00a0now", "a red star now"),
        ("rock &amp; roll &lt;b&gt;", "rock amp roll lt b gt"),
        ("a red BREAK blue star AND moon", "red break blue star and moon"),
        ("a 😂 red star👍🏽 moon", "red star moon 😂 👍🏽"),
    ],
)
def test_words_are_where_the_tokenizer_says(sd1: Any, text: str, words: str) -> None:
    prompt = read_prompt(sd1, text)
    for word in words.split():
        assert bare(spelled(sd1, prompt, prompt.find(word))) == word


def test_an_emoticon_moves_no_word() -> None:
    """`>_<,` is three tokens, where its parts would be four."""
    prompt = read_prompt(SLOW, ">_<, a striped red star")
    assert [len(word.columns) for word in prompt.words] == [3, 1, 1, 1, 1]
    assert prompt.find("red") == (6,) and prompt.find("star") == (7,)
    pair = read_pair(SLOW, ">_<, a striped red star", ">_<, a striped blue star")
    assert pair.align().note == "red -> blue replaced; 4 words kept"


def test_a_repeated_word_is_at_all_its_places_in_several_chunks(sd1: Any) -> None:
    prompt = read_prompt(sd1, "'red' star,red " * 30 + ">_< moon")
    assert len(prompt.tokens) == 231
    columns = prompt.find("red")
    assert {spelled(sd1, prompt, (column,)) for column in columns} == {"red", "'re", "d"}
    assert len(columns) == 90 and spelled(sd1, prompt, prompt.find("moon")) == "moon"


SIGNS = list("absterdlvmABT''’‘“”\"\"    \t\n,;/|_.-–()[]{}:!?*\\<>&#@+=~^`0123") + [
    *("'s", "'re", "'t", " red ", " star ", "&amp;", "é", "e\u0301", "ﬁ", "ß", "İ", "Σ", "ς", "½"),
    *(
        "一",
        "红",
        "の",
        "カ",
        "ｶﾞ",
        "ไ",
        "ย",
        "मा",
        "한",
        "ᄒ",
        "ᅡ",
        "ǅ",
        "😂",
        "👍🏽",
        "👨\u200d👩",
        "🇩🇪",
    ),
    *("\u200b", "\ufeff", "，", "、", "。", "（", "）", "：", ">_<", "^_^", "BREAK", "(red:1.2)"),
    *(
        "((x))",
        "\\(",
        "\\)",
        "</w>",
        "<|endoftext|>",
        "\u00a0",
        "\u2028",
        "\x0b",
        "\u0301",
        "\ufffd",
    ),
]


@pytest.mark.parametrize("seed", range(4))
def test_random_texts_are_read_character_by_character(sd1: Any, seed: int) -> None:
    """All columns with a text belong to one word each, in order, and hold its letters."""
    chance = random.Random(seed)
    for _ in range(60):
        text = "".join(chance.choices(SIGNS, k=chance.choice([2, 6, 20, 120])))
        prompt = read_prompt(sd1, text)
        columns = sorted(column for word in prompt.words for column in word.columns)
        entries = sd1.tokenizer.tokenize_with_weights(text, return_word_ids=True)["l"]
        numbers = [entry[2] for chunk in entries for entry in chunk]
        assert columns == [column for column, number in enumerate(numbers) if number]
        for word in prompt.words:
            assert set(word.stem) <= set(word.core) <= set(word.columns)
            outside = set(word.columns) - set(word.core)
            assert not any(
                char.isalnum() for column in outside for char in letters(sd1, prompt, column)
            )
            unspaced = "".join(word.text.split())
            assert plain(spelled(sd1, prompt, word.core)) == plain(unspaced)


def plain(text: str) -> str:
    """A word as it is compared, one sigma, and without what stands for no sign."""
    return bare(text.replace("\ufffd", "")).replace("ς", "σ")


def letters(read: Any, prompt: Prompt, column: int) -> str:
    """What one column holds, nothing where it is a part of a sign."""
    return spelled(read, prompt, (column,)).replace("\ufffd", "")


# texts without spaces


def test_chinese_is_read_sign_by_sign_and_refined(sd1: Any) -> None:
    pair = read_pair(sd1, "一只红色的星星", "一只蓝色的星星")
    for prompt, word in ((pair.source, "红色"), (pair.target, "蓝色"), (pair.target, "星星")):
        assert spelled(sd1, prompt, prompt.find(word)) == word
    alignment = pair.align()
    assert alignment.mode == "refine" and "'蓝' new" in alignment.note
    same = set(pair.target.find("色的星星"))
    assert not alignment.target_share[list(same)].any()


def test_word_lists_take_full_width_commas() -> None:
    prompt = read_prompt(SLOW, "a striped red star")
    assert [prompt.find(word) for word in phrases("red，star、striped")] == [(3,), (4,), (2,)]


# words that have moved


def test_auto_refines_words_that_have_moved() -> None:
    pair = read_pair(
        SLOW,
        "a dotted yellow square at the right of a lake",
        "a yellow square at the far right of a lake",
    )
    alignment = pair.align()
    assert alignment.mode == "refine"
    assert alignment.note == "'far' new; 'dotted' gone; 9 words kept"


# embeddings


@pytest.fixture
def embedded(tmp_path: pathlib.Path) -> Any:
    tensors = {"emb_params": torch.randn(2, 768)}
    safetensors.torch.save_file(tensors, tmp_path / "bar.safetensors")
    return clip(SD1Tokenizer(embedding_directory=[str(tmp_path)]))


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("embedding:bar a star", {"embedding:bar": 2, "a": 1, "star": 1}),
        ("embedding: bar, a red star", {"embedding:bar,": 3, "a": 1, "red": 1, "star": 1}),
        ("(embedding: bar), a star", {"embedding:bar,": 3, "a": 1, "star": 1}),
        ("a star, embedding: bar", {"a": 1, "star,": 2, "embedding:bar": 2}),
        ("a (embedding:bar:1.2) star", {"a": 1, "embedding:bar": 2, "star": 1}),
        ("embedding:absent a star", {"a": 1, "star": 1}),
    ],
)
def test_embeddings_are_words_as_the_host_reads_them(
    embedded: Any, text: str, lengths: dict[str, int]
) -> None:
    prompt = read_prompt(embedded, text)
    assert {word.text: len(word.columns) for word in prompt.words} == lengths
    if "embedding:bar" in text.replace(" ", ""):
        columns = prompt.find("embedding:bar")
        assert len(columns) == 2 and columns == prompt.find("embedding: bar")
        assert all(prompt.tokens[column] < 0 for column in columns)


@pytest.mark.parametrize("text", ["embedding:", "a star embedding: ", "(embedding:) star"])
def test_an_embedding_without_a_name_is_refused(embedded: Any, text: str) -> None:
    embedded.tokenize = embedded.tokenizer.tokenize_with_weights
    for read in (read_prompt, encode):
        with pytest.raises(PivotError, match="a name behind `embedding:`, but got"):
            read(embedded, text)


def test_encoders_with_other_columns_are_refused(tmp_path: pathlib.Path) -> None:
    tensors = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(1, 1280)}
    safetensors.torch.save_file(tensors, tmp_path / "bar.safetensors")
    both = clip(SDXLTokenizer(embedding_directory=[str(tmp_path)]))
    assert read_prompt(both, "a star").find("star") == (2,)
    with pytest.raises(PivotError, match="read the same columns, but got 3 and 2 tokens"):
        read_prompt(both, "embedding:bar star")


# tokenizers that read otherwise


def other(monkeypatch: pytest.MonkeyPatch, name: str, change: Any) -> Any:
    tokenizer = SD1Tokenizer()
    monkeypatch.setattr(tokenizer.clip_l.tokenizer, name, change, raising=False)
    return clip(tokenizer)


def test_a_tokenizer_that_mends_texts_first_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers does so where ftfy is installed: straight quotes, entities, ligatures."""
    pairs = {"’": "'", "‘": "'", "&amp;": "&", "ﬁ": "fi", "，": ","}

    def fix_text(text: str) -> str:
        for old, new in pairs.items():
            text = text.replace(old, new)
        return text

    mended = other(monkeypatch, "fix_text", fix_text)
    prompt = read_prompt(mended, "‘restaurant’ &amp; dog’s ﬁne，red star")
    for word in ("restaurant", "dog", "fine", "red", "star"):
        assert bare(spelled(mended, prompt, prompt.find(word))) == word
    assert [word.text for word in prompt.words][1:3] == ["&", "dog's"]


@pytest.mark.parametrize("color", ["blue", "rod"])
def test_a_tokenizer_that_reads_other_letters_is_refused(
    monkeypatch: pytest.MonkeyPatch, color: str
) -> None:
    tokenizer = SD1Tokenizer()
    plain = tokenizer.clip_l.tokenizer
    monkeypatch.setattr(
        tokenizer.clip_l, "tokenizer", lambda text, **options: plain(text.replace("red", color))
    )
    with pytest.raises(PivotError, match=f"own characters, but got tokens that hold 'a{color}star"):
        read_prompt(clip(tokenizer), "a red star")


@pytest.mark.parametrize(
    ("group", "got"), [(1, "tokens that hold 'aredstara'"), (2, "2 groups of tokens from 1 texts")]
)
def test_a_tokenizer_that_adds_tokens_is_refused(group: int, got: str) -> None:
    """A surplus is seen, though every word before it has its tokens."""

    class Adding(SDTokenizer):
        def tokenize_with_weights(self, *args: Any, **options: Any) -> Any:
            chunks = super().tokenize_with_weights(*args, **options)
            chunks[0][5] = (chunks[0][1][0], 1.0, group)
            return chunks

    with pytest.raises(PivotError, match=f"own characters, but got {got}"):
        read_prompt(clip(SD1Tokenizer(tokenizer=Adding)), "a red star")


# long texts


def test_ten_thousand_characters_are_read_and_aligned() -> None:
    text = ("red star, " * 1000)[:10_000]
    pair = read_pair(SLOW, text, f"blue {text}")
    alignment = pair.align()
    assert alignment.mode == "refine" and alignment.note == "'blue' new; 2000 words kept"


@pytest.mark.parametrize(
    ("text", "got"), [("red star, " * 10_000, "39424 characters"), ("1" * 9_000, "4928 token col")]
)
def test_longer_prompts_are_refused_at_once(text: str, got: str) -> None:
    with pytest.raises(PivotError, match=f"a prompt of at most {got}.*Shorten the prompt"):
        read_pair(SLOW, "a star", text)


def test_reading_can_be_interrupted() -> None:
    comfy.model_management.interrupt_current_processing()
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            read_prompt(SLOW, "a red star")
    finally:
        comfy.model_management.interrupt_current_processing(False)
