"""Pseudo groups against plain loops, and by hand where cells are small."""

import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from debias.runs.pseudo_groups import SMALLEST, pseudo_groups
from debias.runs.selection import ValidationFigures, validation_figures

LABELS = ("yes", "no", "maybe")


def test_the_mean_and_the_worst_of_all_cells_in_plain_loops():
    draw = np.random.default_rng(0)
    label_M, guess_M = draw.integers(3, size=600), draw.integers(3, size=600)
    right_M = draw.random(600) < 0.2 + 0.2 * label_M + 0.1 * guess_M
    cells = defaultdict(list)
    for label, guess, right in zip(label_M, guess_M, right_M, strict=True):
        cells[int(label), int(guess)].append(bool(right))
    reached = [sum(one) / len(one) for one in cells.values()]
    groups = pseudo_groups(label_M, guess_M, LABELS)
    found = groups.figures(right_M)
    assert found["pseudo_group_accuracy"] == pytest.approx(math.fsum(reached) / len(reached), abs=1e-12)
    assert found["worst_pseudo_group_accuracy"] == pytest.approx(min(reached), abs=1e-12)
    for row in groups.table(right_M):
        mine = cells[LABELS.index(row["label"]), LABELS.index(*row["guesses"])]
        assert (row["n"], row["accuracy"]) == (len(mine), pytest.approx(sum(mine) / len(mine)))


def cells_of(*counts):
    """Groups where `counts` has, for each label, how many examples the bias model guesses as each label."""
    label_M = np.array([label for label, row in enumerate(counts) for n in row for _ in range(n)], dtype=np.int64)
    guess_M = np.array([guess for row in counts for guess, n in enumerate(row) for _ in range(n)], dtype=np.int64)
    return pseudo_groups(label_M, guess_M, LABELS), label_M, guess_M


def told(groups):
    return [(cell.label, cell.guesses, len(cell.where), cell.counts) for cell in groups.cells]


def test_small_cells_of_wrong_guesses_are_one():
    groups, label_M, guess_M = cells_of((50, 6, 7), (20, 80, 9), (3, 0, 30))
    assert told(groups) == [
        ("yes", ("yes",), 50, True),
        ("yes", ("no", "maybe"), 13, True),
        ("no", ("yes",), 20, True),
        ("no", ("no",), 80, True),
        ("no", ("maybe",), 9, False),
        ("maybe", ("yes",), 3, False),
        ("maybe", ("maybe",), 30, True),
    ]
    assert groups.left_out() == ["no guessed as maybe (9)", "maybe guessed as yes (3)"]
    merged = groups.cells[1]
    assert set(label_M[merged.where]) == {0}
    assert set(guess_M[merged.where]) == {1, 2}
    # Each example lies in one cell, and those that do not count change nothing.
    assert sorted(np.concatenate([cell.where for cell in groups.cells])) == list(range(len(label_M)))
    right_M = np.ones(len(label_M), dtype=bool)
    right_M[groups.cells[4].where] = False
    assert groups.figures(right_M) == {"pseudo_group_accuracy": 1.0, "worst_pseudo_group_accuracy": 1.0}
    right_M[merged.where] = False
    assert groups.figures(right_M)["pseudo_group_accuracy"] == pytest.approx(4 / 5)
    assert groups.figures(right_M)["worst_pseudo_group_accuracy"] == 0.0


def test_a_right_guess_is_never_put_with_wrong_ones():
    groups, *_ = cells_of((5, 6, 7), (20, 20, 20), (20, 20, 20))
    assert told(groups)[:2] == [("yes", ("yes",), 5, False), ("yes", ("no", "maybe"), 13, True)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ((9, 4, 0), "13 examples of label 'yes', in no pseudo group more than 9; a group needs 10"),
        ((0, 0, 0), "0 examples of label 'yes', in no pseudo group more than 0"),
    ],
)
def test_a_label_without_a_cell(row, says):
    with pytest.raises(ValueError, match=says):
        cells_of(row, (20, 20, 20), (20, 20, 20))
    assert SMALLEST == 10


def prediction(scores, labels):
    return SimpleNamespace(predictions=scores, label_ids=labels)


def test_figures_of_a_validation_with_and_without_groups():
    draw = np.random.default_rng(1)
    groups, label_M, _ = cells_of((20, 15, 30), (20, 20, 20), (12, 20, 20))
    scores = draw.normal(size=(len(label_M), 3))
    figures = ValidationFigures()
    plain = validation_figures(prediction(scores, label_M))
    assert figures(prediction(scores, label_M)) == plain
    assert figures.cells({"eval_accuracy": 0.5}) == {}
    figures.groups = groups
    found = figures(prediction(scores, label_M))
    right_M = scores.argmax(axis=1) == label_M
    assert found == {**plain, **groups.figures(right_M)}
    logs = {f"eval_{name}": value for name, value in found.items()}
    assert figures.cells(logs) == {"pseudo_groups": groups.table(right_M)}
    assert figures.cells({"loss": 1.0}) == {}
    with pytest.raises(RuntimeError, match="in another order than the examples"):
        figures(prediction(scores[::-1], label_M[::-1]))
