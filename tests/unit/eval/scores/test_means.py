"""Accuracies in which labels or groups count alike, against loops, scikit-learn, and all outcomes counted out."""

from itertools import product
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from debias_eval.scores.means import PartMean, adjusted_accuracy, balanced_accuracy, mean_of_parts


def by_hand(right, parts):
    """Plain loops in Python's floats."""
    shares = []
    for name in sorted(set(parts)):
        of_part = [flag for flag, part in zip(right, parts, strict=True) if part == name]
        shares.append(sum(of_part) / len(of_part))
    return sum(shares) / len(shares)


ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=40)


@given(ROWS)
def test_the_mean_of_parts_is_that_of_loops_and_lies_in_its_interval(rows):
    right, parts, clusters = (list(column) for column in zip(*rows, strict=True))
    index = np.unique(parts, return_inverse=True)[1]
    for cluster_N in (None, np.array(clusters)):
        found = mean_of_parts(np.array(right), index, cluster_N)
        assert found.value == pytest.approx(by_hand(right, parts))
        assert 0 <= found.ci95[0] <= found.value <= found.ci95[1] <= 1
        assert found.n == len(rows)


@given(ROWS)
def test_balanced_accuracy_is_scikit_learns(rows):
    from sklearn.metrics import balanced_accuracy_score

    right, gold = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    prediction = np.where(right, gold, gold + 1)
    with np.testing.suppress_warnings() as quiet:
        quiet.filter(UserWarning)  # an answer that is never right
        theirs = balanced_accuracy_score(gold, prediction)
    assert balanced_accuracy(prediction, gold).value == pytest.approx(theirs)


def test_adjusted_accuracy_counts_groups_alike_and_leaves_others_out():
    gold, prediction = np.zeros(7, int), np.array([0, 0, 0, 1, 0, 1, 1])
    found = adjusted_accuracy(prediction, gold, ["big", "big", "big", "big", "small", None, None])
    assert isinstance(found, PartMean)
    assert (found.n, found.value) == (5, pytest.approx((3 / 4 + 1) / 2))
    assert adjusted_accuracy(prediction, gold, [None] * 7) is None


def test_equal_parts_have_accuracy_itself_and_its_interval_nearly():
    from debias_eval.scores.intervals import wilson

    right = np.arange(400) % 10 < 7
    found = mean_of_parts(right, np.arange(400) // 100)
    assert found.value == pytest.approx(0.7)
    assert found.ci95 == pytest.approx(wilson(280, 400), abs=4e-3)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Two groups of unequal size, every outcome there is, each with its probability."""
    sizes, truths = (12, 40), ((0.9, 0.3), (0.5, 0.5), (0.97, 0.8))
    held = dict.fromkeys(truths, 0.0)
    for right in product(range(sizes[0] + 1), range(sizes[1] + 1)):
        flags = np.concatenate([np.arange(n) < k for n, k in zip(sizes, right, strict=True)])
        low, high = mean_of_parts(flags, np.repeat([0, 1], sizes)).ci95
        for p in truths:
            inside = low <= sum(p) / 2 <= high
            held[p] += inside * np.prod([binom.pmf(k, n, q) for k, n, q in zip(right, sizes, p, strict=True)])
    assert all(0.93 < share < 0.985 for share in held.values()), held


def test_clusters_widen_the_interval_as_far_as_they_repeat_themselves():
    rng = np.random.default_rng(0)
    flags = np.repeat(rng.random(300) < 0.7, 5)
    parts, clusters = np.repeat(np.arange(300) % 3, 5), np.repeat(np.arange(300), 5)
    blind, aware = mean_of_parts(flags, parts), mean_of_parts(flags, parts, clusters)
    assert aware.value == blind.value
    assert np.ptp(aware.ci95) == pytest.approx(sqrt(5) * np.ptp(blind.ci95), rel=0.1)
    few = mean_of_parts(flags[:30], parts[:30], clusters[:30])  # six clusters, two of each part
    assert np.ptp(few.ci95) > 0.4


@pytest.mark.parametrize("few", [4, 6])
def test_a_part_in_few_clusters_is_held_as_often_as_it_should_be(few):
    """Many clusters of another part do not make up for them: resampled, 90 % of these intervals hold the truth."""
    rng, size, clusters = np.random.default_rng(few), 8, few + 60
    index = np.repeat(np.arange(clusters), size)
    held = 0
    for _ in range(200):
        right = rng.random(clusters * size) < np.repeat(rng.beta(2, 2, clusters), size)
        low, high = mean_of_parts(right, (index < few).astype(int), index).ci95
        held += low <= 0.5 <= high
    assert held >= 0.94 * 200


def test_one_answer_for_everything_is_not_known_to_the_last_digit():
    """Every resample has 50 %: each cluster then counts as one example."""
    gold, clusters = np.repeat([0, 0, 0, 0, 1], 8), np.arange(40) // 2
    found = balanced_accuracy(np.zeros(40, int), gold, clusters)
    assert found.value == 0.5
    assert 0.1 < np.ptp(found.ci95) < 0.6


def test_a_part_whose_clusters_are_all_alike_counts_each_of_them_once():
    """Half of every cluster of one part is right: no resample moves that part, whatever the other does."""
    right = np.concatenate([np.tile([True, False], 24), np.repeat(np.arange(12) % 3 == 0, 4)])
    part, clusters = np.repeat([0, 1], 48), np.repeat(np.arange(24), 4)
    found = mean_of_parts(right, part, clusters)
    each = mean_of_parts(np.concatenate([np.arange(12) % 2 == 0, np.arange(12) % 3 == 0]), np.repeat([0, 1], 12))
    assert (found.value, found.ci95) == (pytest.approx(each.value), pytest.approx(each.ci95))


def test_parts_of_which_one_is_empty_are_refused():
    with pytest.raises(ValueError, match=r"2 examples in parts of \[1, 0, 1\]"):
        mean_of_parts(np.array([True, False]), np.array([0, 2]))
