"""Text in LaTeX: said by an oracle that reads commands back as letters."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from debias_eval.reporting.latex_text import latex_text

# What a compiler sets for each command, and for what else is no letter of its own.
SETS = {
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textasciigrave": "`", "textless": "<",
    "textgreater": ">", "textbar": "|", "textquotedbl": '"', "textasteriskcentered": "*", "textdegree": "°",
    "ldots": "…", "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł",
    "i": "ı",
}  # fmt: skip
MATHS = {"rightarrow": "→", "pm": "±", "times": "×", "leq": "≤", "geq": "≥"}
MARKS = {"`": 0x300, "'": 0x301, "^": 0x302, "~": 0x303, "=": 0x304, "u": 0x306, ".": 0x307, '"': 0x308, "r": 0x30A}
MARKS |= {"H": 0x30B, "v": 0x30C, "d": 0x323, "c": 0x327, "k": 0x328}
TOKEN = re.compile(
    r"\$(?:-|\\(?P<maths>[A-Za-z]+))\$|\\(?P<accent>[^A-Za-z&%$#_{}]|[uHrvdck](?={))(?={)|\\(?P<name>[A-Za-z]+)\{\}"
    r"|\\(?P<sign>[&%$#_{}])|\{(?P<bracket>[\[\]])\}|(?P<empty>\{\})|---|--|``|''|(?P<plain>[^\\{}$&%#_~^])"
)


def set_by(text: str) -> str:
    """What a compiler would set; an AssertionError at anything live."""
    out, at = "", 0
    while at < len(text):
        found = TOKEN.match(text, at)
        assert found is not None, (text, text[at:])
        at = found.end()
        if found["accent"]:
            end = at + re.match(r"\{(?:[^{}]|\\.|\{[^{}]*\})*\}", text[at:]).end()
            out += unicodedata.normalize("NFC", set_by(text[at + 1 : end - 1]) + chr(MARKS[found["accent"]]))
            at = end
        elif found["maths"]:
            greek = "GREEK SMALL" if found["maths"].islower() else "GREEK CAPITAL"
            name = found["maths"].upper().replace("LAMBDA", "LAMDA")
            out += MATHS.get(found["maths"]) or unicodedata.lookup(f"{greek} LETTER {name}")
        elif found["name"]:
            out += SETS[found["name"]]
        else:
            ligature = {"$-$": "−", "--": "–", "---": "—", "``": "“", "''": "”", "`": "‘"}
            out += found["sign"] or found["bracket"] or ("" if found["empty"] else ligature.get(found[0], found[0]))
    return out


@pytest.mark.parametrize(
    "text",
    [
        "label_map", "100 %", "R&D", "a#b$c", "{x}~^\\", "erm (lora_r 8)", "--limit", "a---b", "it''s", ",,low",
        "na\u00efve", "Stra\u00dfe", "\u0141\u00f3d\u017a", "\u1ebf",
        "\u03b1-\u03b2 \u039b", "5\u20136", "\u2212 1.0", "\u00b1 2 \u2264 3",
        "*[0]", "|<>|", '"so"', "`x`", "e\u0301",
    ],
)  # fmt: skip
def test_what_is_set_is_what_was_there(text: str) -> None:
    assert set_by(latex_text(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(("text", "number"), [("\u4e2d", "4E2D"), ("\U0001f600", "1F600"), ("\u0414", "0414")])
def test_a_letter_without_a_font_leaves_its_number(text: str, number: str) -> None:
    assert set_by(latex_text(f"a{text}b")) == f"a[U+{number}]b"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_no_text_is_a_command(text: str) -> None:
    said = latex_text(text)
    assert said.isascii()
    assert "\n" not in said
    set_by(said)
