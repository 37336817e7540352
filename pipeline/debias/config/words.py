"""What is a word in a text, for all that looks at words: one pattern for every script, and how words are compared."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

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
# A run of letters with their marks or of punctuation ("!!" is one word), n't apart from what it negates; scripts that
# put no spaces between words, sign by sign.
_ALONE = rf"[{UNSPACED}][{MARKS}]*|(?=\w)[{UNSPACED_WITH_MARKS}][{JOINED}]*"
_ONE, _NOT = rf"[^\W{UNSPACED}{UNSPACED_WITH_MARKS}]", r"n['’]t\b"
_LETTERS = rf"{_ONE}+(?:[{JOINED}]+{_ONE}*)*"
_RUN = r"[^\w\s\x00-\x1f\x7f-\x9f]+"
_COMPARED = re.compile(rf"{_ALONE}|{_ONE}+?(?={_NOT})|{_NOT}|{_LETTERS}|{_RUN}")
_COMPARED_ASCII = re.compile(rf"\w+?(?={_NOT})|{_NOT}|\w+|{_RUN}")  # the same of ASCII, in half the time
_LETTER = re.compile(r"\w")
_UNSPACED_SIGN = re.compile(rf"[{UNSPACED}]|(?=\w)[{UNSPACED_WITH_MARKS}]")


_MAY_BE_HELD = re.compile(r"\w[^\w\s]+\w|[^\w\s]\d")  # in most texts nothing is
_OF_MARKUP = frozenset("<>/\\|=+@#$%&*\"'`^~_")
_PAIRED = ("Ps", "Pe", "Pi", "Pf")  # brackets and quotation marks
_UNSPACED_END = re.compile(rf"[{UNSPACED}{UNSPACED_WITH_MARKS}]")


def held_and_loose(text: str) -> tuple[Sequence[re.Match[str]], Sequence[re.Match[str]]]:
    """The tokens of a text that stand inside a word, a number or a link, and those that do not, from left to right.

    A sign between two letters or digits is held (3.50, don't, t.co), and so is one before a number (-5, $20, .5), the
    last one of U.S., and the words that these hold together. Beside a sign of a script that puts no spaces between
    words none is.
    """
    tokens = list(TOKEN.finditer(text))
    if not _MAY_BE_HELD.search(text):
        return [], tokens
    held = [False] * len(tokens)
    for at, token in enumerate(tokens):
        if _LETTER.match(text, token.start()):
            continue
        before = tokens[at - 1] if at and tokens[at - 1].end() == token.start() else None
        after = tokens[at + 1] if at + 1 < len(tokens) and tokens[at + 1].start() == token.end() else None
        if before and after:
            inside = not any(_UNSPACED_END.match(text, place) for place in (token.start() - 1, token.end()))
        elif after:
            inside = text[token.end()].isdigit()
        else:
            inside = before is not None and held[at - 1] and len(before[0]) == 1 and tokens[at - 2][0] == token[0]
        if inside:
            held[at] = True
            held[at - 1] = held[at - 1] or before is not None
            if after:
                held[at + 1] = True
    both = [[token for token, inside in zip(tokens, held, strict=True) if inside is kind] for kind in (True, False)]
    return both[0], both[1]


def stands_apart(token: re.Match[str]) -> bool:
    """Whether a sign stands between spaces, or at a word as signs of sentences and pictures do: none of markup, links,
    names and amounts (<p>, #ad, @home, $), and no bracket or quotation mark, which has another one.
    """
    text, (start, end) = token.string, token.span()
    if not text[start - 1 : start].strip() and not text[end : end + 1].strip():
        return True
    return not any(sign in _OF_MARKUP or unicodedata.category(sign) in _PAIRED for sign in token[0])


def as_compared(text: str) -> str:
    """A text as its words are compared: in small letters, an accent in one character with its letter where there is one
    (NFC). Texts of ASCII are in small letters alone.
    """
    lower = text.lower()
    return lower if lower.isascii() else unicodedata.normalize("NFC", lower)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, punctuation too; letters with accents in one character (NFC), and marks
    with their letter. Texts are read as they are: only what is compared is changed.
    """
    compared = as_compared(text)
    return (_COMPARED_ASCII if compared.isascii() else _COMPARED).findall(compared)


def key_of_text(text: str) -> str:
    """The words of a text, by which copies are known: those that differ in spaces, in capitals or in the form of their
    characters (full width, a ligature, an ellipsis for three points; NFKC) are one text.
    """
    return " ".join(words_of(text if text.isascii() else unicodedata.normalize("NFKC", text)))


_UNSEEN = re.compile("[\u00ad\u180e\u200b\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff]")


def visible(text: str) -> str:
    """A text in which characters that take no place, or turn the direction, are named: U+200B."""
    return _UNSEEN.sub(lambda sign: f"U+{ord(sign[0]):04X}", text)


def escaped(quoted: str) -> str:
    """As `visible`, inside double quotes of JSON and YAML, which read it as it was."""
    return _UNSEEN.sub(lambda sign: f"\\u{ord(sign[0]):04x}", quoted)


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
