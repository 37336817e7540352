"""Which test examples are also in the training data, by their normalised text."""

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from debias.data import Example

Key = tuple[str, ...]


def overlapping(test: Sequence[Example], train: Iterable[Sequence[str]]) -> NDArray[np.bool_]:
    """`[N]`: whether all texts of an example together are those of one training row, after `normalised`.

    `train` yields the texts of each row in the order of the test's text fields and is read once, never held in memory.
    Near copies count as different. Labels are not compared: a row seen with another label is contaminated too.
    """
    keys = [key_of(example.texts) for example in test]
    wanted = set(keys)
    found = {key for key in map(key_of, train) if key in wanted}
    return np.array([key in found for key in keys], dtype=np.bool_)


def key_of(texts: Sequence[str]) -> Key:
    """The normalised texts of a row, for comparison."""
    return tuple(map(normalised, texts))


def normalised(text: str) -> str:
    """Unicode's compatibility form (NFKC) in lower case, without punctuation and white space.

    White space goes too, not only runs of it, so that a tokenised text (`do n't .`) equals the natural one. A text of
    nothing else keeps its punctuation, or all such texts would be the same.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return folded.translate(_dropped()) or "".join(folded.split())


@cache
def _dropped() -> dict[int, None]:
    """Punctuation, free-standing accents such as the backquote, white space and control characters."""
    kinds = ((code, unicodedata.category(chr(code))) for code in range(sys.maxunicode + 1))
    return {code: None for code, kind in kinds if kind[0] in "PZ" or kind in ("Sk", "Cc", "Cf")}
