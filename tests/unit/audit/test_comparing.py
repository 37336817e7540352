"""Two data sets side by side: halves of one are not told apart, and what differs is."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from debias.audit import comparing
from debias.audit.audit import audit
from debias.audit.comparing import only_in_one
from debias.audit.reading import Dataset
from debias.data import Example

pytest.importorskip("sklearn")
CUES = [f"cue{i}" for i in range(12)]
FILLERS = [f"word{i}" for i in range(40)]


def rows(rng: np.random.Generator, n: int, leaning: float) -> list[Example]:
    """Texts of two labels; twelve words come with the second one as often as `leaning` says, length a little too."""
    made = []
    for i in range(n):
        label = int(rng.random() < 0.5)
        words = list(rng.choice(FILLERS, size=8 + label + int(rng.integers(0, 6))))
        words += [cue for cue in CUES if rng.random() < 0.12 * (leaning if label else 1 - leaning) * 2]
        made.append(Example(str(i), (" ".join(words),), label))
    return made


def beside(name: str, examples: list[Example]) -> Dataset:
    return Dataset(name, ("text",), "label", ("no", "yes"), examples)


def test_random_halves_of_one_data_set_are_not_told_apart() -> None:
    """Most pairs were: a word found in one half was held against its own share there, for which it was picked."""
    told = 0
    for seed in range(4):
        examples = rows(np.random.default_rng(seed), 800, 0.8)
        both = [audit(beside(str(half), examples[half::2])) for half in (0, 1)]
        assert both[0][0].words
        told += bool(only_in_one(both))
    assert told == 0


def test_words_that_lean_in_one_alone_are_told() -> None:
    rng = np.random.default_rng(9)
    both = [audit(beside(name, rows(rng, 800, leaning))) for name, leaning in (("leans", 0.95), ("even", 0.5))]
    told = [one.what for one in only_in_one(both) if one.found_in == "leans" and "cue" in one.what]
    assert len(told) >= 6
    assert not any(one.found_in == "even" for one in only_in_one(both))


@pytest.mark.parametrize("table", [(15, 15, 8, 9), (97, 148, 47, 137), (3, 9, 0, 5), (4, 9, 9, 9)])
def test_the_test_of_a_word_is_fishers(table: tuple[int, int, int, int]) -> None:
    here, of_here, there, of_there = table
    cells = [[here, of_here - here], [there, of_there - there]]
    wanted = fisher_exact(cells, alternative="greater").pvalue
    assert comparing._fisher(*table) == pytest.approx(wanted)
