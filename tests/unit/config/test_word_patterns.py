"""One pattern of words for every script: a mark is of its letter, and English is read as it always was."""

import re
import unicodedata

import pytest

from debias.bias.artifacts import Artifact, mere_signs
from debias.bias.partial_input import word_classifier
from debias.config.words import TOKEN, as_compared, held_and_loose, is_sign, key_of_text, words_in, words_of
from debias.data import Example, generate
from debias_eval.reading.clusters import _any_of, _skeleton

BEFORE = re.compile(r"\w+|[^\w\s]+")
UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
LETTER, NOT = rf"[^\W{UNSPACED}]", r"n['’]t\b"
WORDS_BEFORE = re.compile(rf"[{UNSPACED}]|{LETTER}+?(?={NOT})|{NOT}|{LETTER}+|[^\w\s\x00-\x1f\x7f-\x9f]+")
ENGLISH = [
    "She doesn't — can't! — say “no” to Zoë's café: 3.5 % of €20, e.g. #1 @home_again...",
    "naïve\tIT’S http://a.b/c?d=e&f 🙂 ❤️ 👍🏽 👨\u200d👩\u200d👧 x_1 n't n'tx",
]


def test_texts_without_marks_are_read_as_before() -> None:
    rows = [*ENGLISH, *(row[field] for row in generate("train", 300, 1) for field in ("premise", "hypothesis"))]
    for text in rows:
        assert TOKEN.findall(text) == BEFORE.findall(text)
        assert words_of(text) == WORDS_BEFORE.findall(text.lower())
        assert words_of(f"{text} ß") == [*WORDS_BEFORE.findall(text.lower()), "ß"]  # and where it is not of ASCII


@pytest.mark.parametrize("text", ["हिन्दी", "বাংলা", "தமிழ்", "ไม่ดี", "שָׁלוֹם", "مَرْحَبًا", "Tiếng", "ന്\u200d", "می\u200cشود"])
def test_a_word_is_one_token_composed_or_not(text: str) -> None:
    for form in ("NFC", "NFD"):
        written = unicodedata.normalize(form, text)
        assert TOKEN.findall(f"{written}, !! {written}") == [written, ",", "!!", written]
        assert as_compared(written) == as_compared(text)


def test_every_mark_is_of_the_letter_before_it() -> None:
    marks = [chr(at) for at in range(0x110000) if unicodedata.category(chr(at))[0] == "M"]
    assert len(marks) > 2000
    assert [mark for mark in marks if not TOKEN.fullmatch(f"a{mark}b")] == []
    assert [mark for mark in marks if words_of(f"z{mark}b !!") != [as_compared(f"z{mark}b"), "!!"]] == []


def test_what_holds_a_mark_is_no_sign() -> None:
    told = {"!!": True, "।": True, "❤️": True, "$": True, "ी।": False, "़ी।": False, "\u0301": False, "\u200d": False}
    assert {token: is_sign(token) for token in told} == told
    words = [Artifact("", 0.5, None, word=word) for word in (*told, "a", "! ?", "3")]
    assert mere_signs(words, [Example("0", (" ".join(told), "a 3"), 0)]) == ["!!", "।", "❤️", "$"]


@pytest.mark.parametrize(
    ("sign", "texts", "advised"),
    [
        (".", ["it is .", "so it is. 2.5 %"], True),
        (".", ["it is .", "3.50 or 2.5"], False),  # mostly inside words
        ("://", ["http://t.co/x see"], False),
        ("<", ["<p>well</p>"], False),
        ("#", ["one #ad", "two #ad # three"], False),
        ("##", ["one ##", "## two"], True),
        ("(", ["it (is)"], False),
        ("¿", ["¿Qué?"], True),
        ("。", ["好。我", "好。"], True),
        ("🔥", ["so🔥", "🔥it"], True),
        ("!!", ["nowhere"], False),
    ],
)
def test_signs_are_to_be_swapped_where_texts_stay_whole_without_them(
    sign: str, texts: list[str], advised: bool
) -> None:
    examples = [Example(str(at), (text,), 0) for at, text in enumerate(texts)]
    assert mere_signs([Artifact("", 0.5, None, word=sign)], examples) == [sign] * advised


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("it costs 3.50 dollars . 2.5 %", ["3", ".", "50", "2", ".", "5"]),
        ("The U.S. economy, e.g. here.", ["U", ".", "S", ".", "e", ".", "g", "."]),
        ("don't, well-known!", ["don", "'", "t", "well", "-", "known"]),
        ("see http://t.co/x.", ["http", "://", "t", ".", "co", "/", "x"]),
        ("mail a.b@c.com .", ["a", ".", "b", "@", "c", ".", "com"]),
        ("-5 or .5 or $20", ["-", "5", ".", "5", "$", "20"]),
        ("it is. So !! it (really) is !!", []),
        ("很好。我 ไม่ดี!ดี", []),
        ("बोली। वह", []),
        ("", []),
    ],
)
def test_what_stands_inside_a_word_is_held(text: str, held: list[str]) -> None:
    inside, loose = held_and_loose(text)
    assert [match.group() for match in inside] == held
    both = sorted([*inside, *loose], key=lambda match: match.start())
    assert [match.span() for match in both] == [match.span() for match in TOKEN.finditer(text)]


@pytest.mark.parametrize(
    "near",
    [
        "a Good film, it costs 3 ... really!",
        " A good  film , it costs 3…really! ",
        "A GOOD FILM, it costs\u00a0\uff13... really\uff01\n",
    ],
)
def test_texts_that_differ_in_spaces_capitals_and_forms_are_one(near: str) -> None:
    assert key_of_text(near) == key_of_text("a good film, it costs 3... really!")
    assert key_of_text(near) != key_of_text("a good film, it costs 3... really?")


def test_words_of_a_part_and_of_clusters_are_whole() -> None:
    analyze = word_classifier()[0].build_analyzer()
    assert analyze("बोली cafe\u0301!!") == ["बोली", "caf\u00e9", "!", "!", "बोली caf\u00e9", "caf\u00e9 !", "! !"]
    assert _skeleton("वह बोली", ("बोली",)) == "_ बोली"
    assert _any_of(("बोल",)).sub("_", "बोल बोली") == "_ बोली"


def test_scripts_without_spaces_are_counted_sign_by_sign() -> None:
    assert [words_in(text) for text in ("two words", "", "好好学习", "ไม่ดี", "很好 ok")] == [2, 0, 5, 4, 4]
