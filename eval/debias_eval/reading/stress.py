"""Stress tests by their definition: words that change nothing, appended to pairs (Naik et al., COLING 2018)."""

from dataclasses import replace

from debias.data import Example
from debias_eval.reading.suite import Stress

# Which of the two texts takes which words: 0 the premise, 1 the hypothesis.
DISTRACTIONS: dict[Stress, tuple[int, str]] = {
    "word_overlap": (1, " and true is true"),
    "negation": (1, " and false is not true"),
    "length_mismatch": (0, " and true is true" * 5),
}


def stressed(example: Example, test: Stress) -> Example:
    """The pair with a tautology at the end of premise or hypothesis; label and id as they were.

    The words come after the text as it is, a full stop included.
    """
    position, words = DISTRACTIONS[test]
    return replace(example, texts=_longer(example.texts, position, words))


def _longer(texts: tuple[str, ...], position: int, words: str) -> tuple[str, ...]:
    changed = list(texts)
    changed[position] = changed[position].rstrip() + words
    return tuple(changed)
