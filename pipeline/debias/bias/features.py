"""What can be seen of texts without understanding them: words, and how the fields of an input relate.

Shapes: N examples, F fields, V words and sequences of words, R relations.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import permutations
from typing import Any

import numpy as np

from debias.bias.base import Floats

Words = Sequence[Sequence[str]]  # the words [N] of each text

NEGATIONS = frozenset(  # of English alone
    {"no", "not", "never", "nobody", "none", "nothing", "nowhere", "neither", "nor", "cannot", "without"}
    | {"n't", "n’t", "dont", "doesnt", "didnt", "isnt", "arent", "wasnt", "wont", "cant"}
)
KINDS = ("overlap", "length", "negation")  # of relations
_LENGTHS_APART = 3.0  # logarithms of ratios beyond e^3 are one and the same


def sequences(words: Sequence[str], longest: int) -> Iterator[str]:
    """Sequences of up to `longest` words, joined by spaces."""
    for length in range(1, longest + 1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])


def counted(words_N: Words, longest: int, rarest: int = 2, learned_from: int | None = None) -> tuple[Any, list[str]]:
    """How often each sequence occurs in each text, [N, V] sparse, and what they are, those of `rarest` texts or more
    among the first `learned_from`, or among all.

    ValueError without scikit-learn, or where no sequence is in so many texts.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
    except ImportError:
        raise ValueError("a classifier of words needs scikit-learn: pip install scikit-learn") from None
    counter = CountVectorizer(analyzer=lambda words: sequences(words, longest), min_df=rarest)
    known_N = words_N[:learned_from]
    try:
        counts_NV = counter.fit_transform(known_N)
    except ValueError:  # scikit-learn has two messages for it
        raise ValueError(f"no word occurs in {rarest} of {len(known_N)} texts") from None
    if len(known_N) < len(words_N):
        from scipy import sparse

        counts_NV = sparse.vstack([counts_NV, counter.transform(words_N[len(known_N) :])], format="csr")
    return counts_NV, list(counter.get_feature_names_out())


def weighted(counts_NV: Any, learned_from: int | None = None) -> Any:
    """TF-IDF of counts, rows of unit length, sparse. What is counted over all rows, or over the first `learned_from`,
    knows no label.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    return TfidfTransformer(sublinear_tf=True).fit(counts_NV[:learned_from]).transform(counts_NV)


def relations(
    words_FN: Sequence[Words], names: Sequence[str], kinds: Collection[str] = KINDS
) -> tuple[Floats, list[str]]:
    """How the fields of each example relate, [N, R], and what each column is called; of these `kinds` alone.

    Of every field its length in words and whether it has a negation; of every two fields the overlap, that is the share
    of the words of one that are in the other, whether all are, whether they are there side by side, and which is
    longer.
    """
    columns: dict[str, Any] = {}
    lengths = [np.array([len(words) for words in words_N]) for words_N in words_FN]
    for name, words_N, length_N in zip(names, words_FN, lengths, strict=True):
        if "length" in kinds:
            columns[f"length of {name}"] = np.log1p(length_N)
        if "negation" in kinds:
            columns[f"negation in {name}"] = [bool(NEGATIONS.intersection(words)) for words in words_N]
    for one, other in permutations(range(len(names)), 2):
        if "overlap" in kinds:
            columns |= _of_two(words_FN[one], words_FN[other], names[one], names[other])
        if "length" in kinds and one < other:
            apart_N = np.log1p(lengths[one]) - np.log1p(lengths[other])
            columns[f"{names[one]} longer than {names[other]}"] = apart_N.clip(-_LENGTHS_APART, _LENGTHS_APART)
    if not columns:
        return np.zeros((len(words_FN[0]), 0)), []
    return np.array(list(columns.values()), dtype=np.float64).T, list(columns)


def _of_two(
    inner_N: Sequence[Sequence[str]], outer_N: Sequence[Sequence[str]], inner: str, outer: str
) -> dict[str, Any]:
    share_N = np.array([_share(a, b) for a, b in zip(inner_N, outer_N, strict=True)])
    return {
        f"share of {inner} that is in {outer}": share_N,
        f"all words of {inner} are in {outer}": share_N == 1.0,
        f"{inner} stands in {outer} as it is": [_stands_in(a, b) for a, b in zip(inner_N, outer_N, strict=True)],
    }


def _spoken(words: Sequence[str]) -> list[str]:
    return [word for word in words if word[0].isalnum()]


def _share(inner: Sequence[str], outer: Sequence[str]) -> float:
    own = set(_spoken(inner))
    return len(own.intersection(outer)) / len(own) if own else 0.0


def _stands_in(inner: Sequence[str], outer: Sequence[str]) -> bool:
    """Whether the words are there side by side, punctuation left out."""
    own = _spoken(inner)
    return bool(own) and f" {' '.join(own)} " in f" {' '.join(_spoken(outer))} "
