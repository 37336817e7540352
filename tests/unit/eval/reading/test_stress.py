"""The stress tests against the words of Naik et al. (COLING 2018, section 3), written out by hand."""

import pytest

from debias.data import Example
from debias_eval.reading.stress import DISTRACTIONS, stressed

PAIR = Example("7", ("Possibly no other country has had such a turbulent history.", "It was calm."), 2, "g", None, "c")
TRUTH = "and true is true"


@pytest.mark.parametrize(
    ("test", "premise", "hypothesis"),
    [
        ("word_overlap", PAIR.texts[0], "It was calm. and true is true"),
        ("negation", PAIR.texts[0], "It was calm. and false is not true"),
        ("length_mismatch", f"{PAIR.texts[0]} {TRUTH} {TRUTH} {TRUTH} {TRUTH} {TRUTH}", PAIR.texts[1]),
    ],
)
def test_words_are_appended_and_nothing_else_changes(test, premise, hypothesis):
    changed = stressed(PAIR, test)
    assert changed == Example("7", (premise, hypothesis), 2, "g", None, "c")


def test_white_space_at_the_end_does_not_double():
    changed = stressed(Example("1", ("p", "h \n"), 0), "negation")
    assert changed.texts == ("p", "h and false is not true")


def test_all_three_are_here():
    assert set(DISTRACTIONS) == {"word_overlap", "negation", "length_mismatch"}
