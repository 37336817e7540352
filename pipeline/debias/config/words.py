"""What is a word in a text, for all that looks at words: one pattern for every script, and how words are compared."""

import re
import unicodedata
from collections.abc import Iterator

_BEYOND = ((0x300, 0x1F000), (0xE0100, 0xE01F0))  # where marks are: below is Latin, behind are pictures


def _ranges(places: Iterator[int]) -> str:
    """These characters, rising, as they stand between the brackets of a pattern."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)


# Marks belong to the letter before them (vowel signs of Hindi and Thai, points of Hebrew, accents that stand alone),
# and so do the joiners between letters (ZWNJ, ZWJ). For Python neither is of a word.
MARKS = _ranges(
    place for start, end in _BEYOND for place in range(start, end) if unicodedata.category(chr(place))[0] == "M"
)
JOINED = f"{MARKS}\u200c\u200d"
WORD = rf"\w+(?:[{JOINED}]+\w*)*"
TOKEN = re.compile(rf"{WORD}|[^\w\s]+")  # what a swap deals out: a word, or a run of signs
# Scripts that put no spaces between words: of Chinese and Japanese, and of Thai, Lao, Burmese and Khmer.
UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
UNSPACED_WITH_MARKS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
_UNSPACED_SIGN = re.compile(rf"[{UNSPACED}]|(?=\w)[{UNSPACED_WITH_MARKS}]")


def as_compared(text: str) -> str:
    """A text as its words are compared: in small letters, an accent in one character with its letter where there is one
    (NFC). Texts of ASCII are in small letters alone.
    """
    lower = text.lower()
    return lower if lower.isascii() else unicodedata.normalize("NFC", lower)


def is_sign(token: str) -> bool:
    """Whether a token has no letter, digit or mark of a letter: then a text stays whole where it is taken out.

    What chooses how a sign is drawn (U+FE0F of an emoji) is no mark of a letter; a lone joiner is no sign.
    """
    marks = [one for one in token if unicodedata.category(one)[0] == "M" and not "\ufe00" <= one <= "\ufe0f"]
    return not marks and not any(map(str.isalnum, token)) and any(unicodedata.category(one)[0] in "PS" for one in token)


def words_in(text: str) -> int:
    """How many words a text has, about: what stands between spaces, and each sign of a script that has none."""
    unspaced = len(_UNSPACED_SIGN.findall(text)) if not text.isascii() else 0
    return len(text.split()) + unspaced
