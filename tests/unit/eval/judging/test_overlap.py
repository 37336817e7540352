"""Overlap by normalised text, against counts made with another normalisation, and on ugly text."""

import gzip
import json

import numpy as np
import pytest

from debias.data import Example
from debias_eval.judging.overlap import normalised, overlapping


def example(*texts: str, label: int = 0) -> Example:
    return Example("x", texts, label)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A dog runs.", "a  DOG runs"),
        ("``I Want You Back``", "\u201cI want you back\u201d"),
        ("He does n't .", "he doesn't."),
        ("ﬁne", "fine"),  # ligature
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("Straße", "STRASSE"),
        ("café", "cafe\u0301"),  # composed and decomposed
        ("a\u00a0b\tc\r\n", "a b c"),
        ("non\u00adbreaking\u200b", "nonbreaking"),  # soft hyphen, zero-width space
        ("it's", "it\u2019s"),
    ],
)
def test_the_same_text_written_otherwise(first, second):
    assert normalised(first) == normalised(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A dog runs.", "A dog ran."),
        ("café", "cafe"),
        ("$5", "5"),
        ("3 + 4", "34"),
        ("!", "?"),
        ("...", ""),
        ("कि", "की"),  # vowel signs are marks, not punctuation
        ("not", "no t h"),
    ],
)
def test_another_text(first, second):
    assert normalised(first) != normalised(second)


def test_all_texts_together_in_their_order():
    train = [("A man sleeps.", "A man rests."), ("One.", "Two.")]
    test = [
        example("a man sleeps", "A man  rests", label=2),
        example("A man rests.", "A man sleeps."),
        example("A man sleeps.", "Two."),
        example("One."),
        example("One", "two"),
    ]
    found = overlapping(test, train)
    assert found.dtype == np.bool_
    assert found.tolist() == [True, False, False, False, True]


def test_two_texts_are_not_one():
    assert overlapping([example("ab", "c")], [("a", "bc"), ("abc",)]).tolist() == [False]


def test_training_data_is_read_once_and_may_be_a_generator():
    rows = (row for row in [["a"], ["b"]])
    assert overlapping([example("B!"), example("c")], rows).tolist() == [True, False]


@pytest.mark.parametrize(("test", "train"), [([], [("a",)]), ([example("a")], [])])
def test_nothing_to_compare(test, train):
    assert overlapping(test, train).tolist() == [False] * len(test)


@pytest.mark.parametrize(
    ("train", "test", "rows"),
    [  # counted for the data's own README, by others
        ("snli/test", "cad_nli/test", 422),
        ("fever_symmetric/v0.1_full", "fever_symmetric/v0.2_test", 485),
        ("fever_symmetric/v0.2_dev", "fever_symmetric/v0.2_test", 3),
        ("cad_imdb/test", "contrast_imdb/test", 488),
        ("sst2/train", "sst2/test", 2),
    ],
)
def test_published_counts(data_folder, train, test, rows):
    def texts(name: str) -> list[tuple[str, ...]]:
        with gzip.open(data_folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            read = [json.loads(line) for line in file]
        return [(row["premise"], row["hypothesis"]) if "premise" in row else (row["text"],) for row in read]

    assert overlapping([example(*one) for one in texts(test)], texts(train)).sum() == rows
