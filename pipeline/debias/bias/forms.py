"""How a text is written, whatever it says: capitals, spaces, its last sign, digits, markup.

Shapes: N texts, F fields, R measures.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from debias.bias.base import Floats

FORM = "form"  # beside the kinds of relations: settings name it as one of them

_TYPESET = "\u2018\u2019\u201c\u201d\u201e\u2026\u2013\u2014"  # what people seldom type: “ ” ‘ ’ „ … and long dashes
_NOT_COUNTED: dict[int, None] = dict.fromkeys(map(ord, _TYPESET))
_ODD_SPACE = re.compile(r"[^\S\n ]|  ")
_MARKUP = re.compile(
    r"https?://|www\.|</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]*)?/?>|&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[0-9a-fA-F]+);|\]\(/"
)
_CAPITALS = re.compile(r"\b[^\W\d_]{2,}\b")


def _share_of_capitals(text: str) -> float:
    """Of the letters after the first, which is a capital in any sentence: a short text would have the larger share."""
    rest = text[1 + next((at for at, sign in enumerate(text) if sign.isalnum()), len(text)) :]
    large, small = sum(map(str.isupper, rest)), sum(map(str.islower, rest))
    return large / (large + small) if large + small else 0.0


def _begins_large(text: str) -> bool:
    first = next((sign for sign in text if sign.isalnum()), "")
    return first.isupper()


def _ends_in_sign(text: str) -> bool:
    kept = text.rstrip()
    return bool(kept) and not kept[-1].isalnum()


MEASURES: dict[str, Callable[[str], Any]] = {
    "share of capitals in {}": _share_of_capitals,
    "{} begins with a capital": _begins_large,
    "a word in capitals in {}": lambda text: any(word.isupper() for word in _CAPITALS.findall(text)),
    "{} ends with a sign": _ends_in_sign,
    "space before or after {}": lambda text: text != text.strip(),
    "line breaks in {}": lambda text: "\n" in text.strip(),
    "spaces in a row, or of another kind, in {}": lambda text: _ODD_SPACE.search(text.strip()) is not None,
    "digits in {}": lambda text: any(map(str.isdigit, text)),
    "typeset quotes, dashes or dots in {}": lambda text: any(sign in text for sign in _TYPESET),
    "other characters than ASCII in {}": lambda text: not text.translate(_NOT_COUNTED).isascii(),
    "links or markup in {}": lambda text: _MARKUP.search(text) is not None,
}


def forms(texts_FN: Sequence[Sequence[str]], names: Sequence[str]) -> tuple[Floats, list[str]]:
    """Of every field how it is written, [N, R], and what each column is called, but what all texts have alike."""
    columns: dict[str, Floats] = {}
    for name, texts_N in zip(names, texts_FN, strict=True):
        for told, measure in MEASURES.items():
            value_N = np.array([measure(text) for text in texts_N], dtype=np.float64)
            if len(value_N) and (value_N != value_N[0]).any():
                columns[told.format(name)] = value_N
    if not columns:
        return np.zeros((len(texts_FN[0]) if len(texts_FN) else 0, 0)), []
    return np.array(list(columns.values())).T, list(columns)


def names_of(fields: Sequence[str]) -> list[str]:
    """What the columns of these fields are called, those too that all texts have alike."""
    return [told.format(name) for name in fields for told in MEASURES]
