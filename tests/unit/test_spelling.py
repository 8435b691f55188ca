"""Where words end in a text, by its characters alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import few

from pivot_edit.core.spelling import bare, is_spaceless, names, spans, stem

SIGNS = list("abstAB'\"’‘“” \t\n,;/|_.-–—()[]{}:!?*\\<>&#@+=~^0123") + [
    *(
        "é",
        "e\u0301",
        "ﬁ",
        "一",
        "星",
        "の",
        "カ",
        "ไ",
        "ท",
        "मा",
        "한",
        "😂",
        "👍🏽",
        "👨\u200d👩",
    ),
    *("\u200b", "，", "、", "。", "（", "）", "\u00a0", ">_<", "'s", "'re"),
]
texts = st.lists(st.sampled_from(SIGNS), max_size=40).map("".join)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  Red\tstar\nnow", "a|Red|star|now"),
        ("striped,red,star", "striped,|red,|star"),
        ("red;blue/green|black_star", "red;|blue/|green|||black_|star".replace("|||", "\0|")),
        ("red，blue、star。On", "red，|blue、|star。|On"),
        ("star.On v1.5 score_9,8k", "star.|On|v1.5|score_|9,|8k"),
        ("'restaurant', 'twas >_<, it", "'restaurant',|'twas|>_<,|it"),
        ('("cat","dog")', '("cat",|"dog")'),
        ("(cat)(dog) “cat”“dog”", "(cat)|(dog)|“cat”|“dog”"),
        ("well-known t‑shirt -cat- a--b", "well-known|t‑shirt|-cat-|a--|b"),
        ("dog's dogs' rock'n'roll", "dog's|dogs'|rock'n'roll"),
        ("red–blue red—blue wait…what", "red–|blue|red—|blue|wait…|what"),
        ("a+b=c R&B 50%off", "a+|b=|c|R&|B|50%|off"),
        ("红色的星", "红|色|的|星"),
        ("红色的star", "红|色|的|star"),
        ("星。赤い、カラー", "星。|赤|い、|カ|ラ|ー"),
        ("ไทย", "ไ|ท|ย"),
        ("한국 사람", "한국|사람"),
        ("मानव café cafe\u0301", "मानव|café|cafe\u0301"),
        ("😂👍🏽star👨\u200d👩", "😂|👍🏽|star|👨\u200d👩"),
        ("red\u200bstar", "red\u200bstar"),
        ("star.5 5.star", "star.|5|5.|star"),
        ("cat.\u0301dog cat,\x07dog", "cat.\u0301|dog|cat,\x07|dog"),
        ("a^b `star`", "a^|b|`star`"),
        ("", ""),
    ],
)
def test_words_end_at_spaces_and_punctuation(text: str, words: str) -> None:
    expected = [word.replace("\0", "|") for word in words.split("|")] if words else []
    assert [text[span.start : span.end] for span in spans(text)] == expected


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("dogs' 'n' -cat- well-known-", "dogs|n|cat|well-known"),
        ("star-红 dogs'\u200b 5. (a)", "star|红|dogs|5|a"),
        (">_<", ">_<"),
    ],
)
def test_what_joins_letters_surrounds_a_word_where_no_letter_follows(text: str, cores: str) -> None:
    assert "|".join(text[span.first : span.last] for span in spans(text)) == cores


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("dog's It'S Tom’s", "dog|It|Tom"),
        ("we're I've I'm she'll he'd", "we|I|I|she|he"),
        ("don't dogs' 's", "don't|dogs|s"),
    ],
)
def test_a_word_stands_without_its_ending(text: str, stems: str) -> None:
    assert "|".join(text[span.first : span.stem] for span in spans(text)) == stems


@few
@given(texts)
def test_words_cover_all_but_white_space_in_order(text: str) -> None:
    found = spans(text)
    assert "".join(text[span.start : span.end] for span in found) == "".join(text.split())
    for span in found:
        assert span.start <= span.first < span.stem <= span.last <= span.end
    assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))


@few
@given(texts)
def test_what_surrounds_a_word_is_punctuation_and_never_letters(text: str) -> None:
    for span in spans(text):
        outside = text[span.start : span.first] + text[span.last : span.end]
        assert not any(char.isalnum() for char in outside)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("'Star',", "star"),
        ("…“STAR”?!", "star"),
        ("dog’s", "dog's"),
        ("cafe\u0301", "café"),
        ("red\u200bstar", "redstar"),
        ("STRAẞE", "strasse"),
        ("\u03aa\u0301", "\u0390"),
        ("'\u0301cat.\u0301", "cat"),
        ("_tag_", "tag"),
        ("（星）", "星"),
        ("__", ""),
        (">_<,", ""),
        ("👍🏽", "👍🏽"),
    ],
)
def test_words_are_compared_without_case_and_what_surrounds_them(word: str, name: str) -> None:
    assert bare(word) == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Blue   Hair", ["blue", "hair"]),
        ("long_hair", ["long", "hair"]),
        (">_<", [">_<"]),
        (",", []),
        ("  ", []),
        ("embedding:Bar/x.pt, a star", ["embedding:bar/x.pt", "a", "star"]),
        ("embedding: bar", ["embedding:bar"]),
        ("红色", ["红", "色"]),
    ],
)
def test_a_phrase_falls_into_the_words_that_a_prompt_would(text: str, expected: list[str]) -> None:
    assert names(text) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(("dog's", "dog"), ("she'll", "she"), ("we're", "we"), ("i've", "i"), ("i'm", "i")),
        *(("he'd", "he"), ("don't", "don't"), ("'s", "'s"), ("dogs", "dogs")),
    ],
)
def test_short_forms_have_a_stem(name: str, expected: str) -> None:
    assert stem(name) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("红色", True), ("a 红 star", False), ("ไทย", True), ("한국", False), ("a star 😂😂", False)],
)
def test_scripts_without_spaces_are_known(text: str, expected: bool) -> None:
    assert is_spaceless(text) is expected
