"""The counterfactual gap, against plain loops over pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debias_eval.scores.counterfactual import counterfactual_gap, gaps


def by_hand(probabilities, gold, clusters):
    """Of each cluster with a pair of one label, in the order of their numbers."""
    found = []
    for cluster in sorted(set(clusters)):
        distances = []
        for one, other in itertools.combinations([i for i, name in enumerate(clusters) if name == cluster], 2):
            if gold[one] == gold[other]:
                pairs = zip(probabilities[one], probabilities[other], strict=True)
                distances.append(sum(abs(p - q) for p, q in pairs) / 2)
        if distances:
            found.append(sum(distances) / len(distances))
    return found


ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6), st.lists(st.floats(0.01, 1), min_size=3, max_size=3)),
    min_size=1,
    max_size=30,
)


@given(ROWS)
def test_it_is_the_mean_of_loops_over_pairs(rows):
    gold, clusters, weights = (list(column) for column in zip(*rows, strict=True))
    probabilities = [[w / sum(row) for w in row] for row in weights]
    wanted = by_hand(probabilities, gold, clusters)
    arrays = np.array(probabilities), np.array(gold), np.array(clusters)
    np.testing.assert_allclose(gaps(*arrays), wanted, atol=1e-12)
    found = counterfactual_gap(*arrays)
    assert (found is None) == (not wanted)
    if found is not None:
        assert (found.n, found.value) == (len(wanted), pytest.approx(np.mean(wanted)))
        assert 0 <= found.ci95[0] <= found.value <= found.ci95[1] <= 1


def test_scores_that_do_not_move_have_no_gap_and_an_edit_of_the_label_is_no_pair():
    same = np.tile([[0.2, 0.8]], (6, 1))
    found = counterfactual_gap(same, np.zeros(6, int), np.arange(6) // 2)
    assert found is not None
    assert (found.value, found.ci95) == (0, (0, 1))  # of three clusters nobody knows what a fourth one does
    many = counterfactual_gap(np.tile([[0.2, 0.8]], (600, 1)), np.zeros(600, int), np.arange(600) // 2)
    assert many is not None
    assert many.ci95 == (0, pytest.approx(0.01, abs=0.001))
    assert counterfactual_gap(same, np.arange(6) % 2, np.arange(6) // 2) is None


@pytest.mark.parametrize(("clusters", "least"), [(4, 0.94), (40, 0.94)])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(clusters, least):
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        first, second = rng.random((2, clusters))
        p = np.stack([first, second], axis=1).reshape(-1)
        found = counterfactual_gap(
            np.stack([p, 1 - p], axis=1), np.zeros(2 * clusters, int), np.arange(2 * clusters) // 2
        )
        held += found.ci95[0] <= 1 / 3 <= found.ci95[1]  # the mean distance of two uniform numbers
    assert least < held / 400
