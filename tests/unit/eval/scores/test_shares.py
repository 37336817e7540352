"""Score intervals of shares, their mean and their gap: how often they hold the truth, and where they are Wilson's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debias_eval.scores.counterfactual import counterfactual_gap
from debias_eval.scores.intervals import square_and_add, wilson
from debias_eval.scores.means import mean_of_parts
from debias_eval.scores.shares import correlation, gap_interval, mean_interval, share_interval, spread

TRIALS = 250  # known to 1.4 points


def held(interval, truth):
    return interval[0] <= truth <= interval[1]


@given(st.integers(1, 400), st.floats(0, 1))
def test_the_mean_of_one_part_has_wilsons_interval(n, share):
    right = round(share * n)
    found = mean_interval(np.array([right / n]), np.array([float(n)]))
    assert found == pytest.approx(wilson(right, n), abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 40), st.floats(0, 1))
def test_equal_parts_that_are_alike_are_one_share(parts, n, share):
    right = round(share * n)
    found = mean_interval(np.full(parts, right / n), np.full(parts, float(n)))
    assert found == pytest.approx(wilson(right * parts, n * parts), abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1)), min_size=1, max_size=8), st.floats(1.5, 13))
def test_a_mean_lies_in_its_interval_and_answers_turned_round_mirror_it(parts, quantile):
    size = np.array([float(n) for n, _ in parts])
    share = np.array([round(p * n) / n for n, p in parts])
    low, high = mean_interval(share, size, quantile)
    assert 0 <= low <= share.mean() <= high <= 1
    assert high - low > 1e-3
    turned = mean_interval(1 - share, size, quantile)
    assert (1 - turned[1], 1 - turned[0]) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize(
    ("sizes", "truths"),
    [
        ([10] * 30, [0.95] * 30),  # limits added up part by part held 84 % (truth above 15.7 %)
        ([30] * 30, [0.97] * 30),
        ([5] * 50, [0.9] * 50),
        ([1, 2, 3, 5, 8, 13, 21, 40] * 10, [0.85] * 80),
        ([1] * 60, [0.8] * 60),
        ([20, 20, 20, 800], [0.5, 0.99, 0.99, 0.99]),
        ([5, 500], [0.6, 0.95]),
    ],
)
def test_the_mean_of_many_or_unequal_parts_is_held_as_often_as_it_should_be(sizes, truths):
    rng, count = np.random.default_rng(0), 0
    for _ in range(TRIALS):
        share = rng.binomial(sizes, truths) / sizes
        count += held(mean_interval(share, np.array(sizes, float)), np.mean(truths))
    assert count >= 0.915 * TRIALS


def test_a_part_of_one_example_is_not_known_by_a_large_one():
    low, high = mean_interval(np.array([1.0, 1.0]), np.array([1.0, 1000.0]))
    assert (low, high) == (pytest.approx(0.6, abs=0.1), 1)
    low, high = mean_interval(np.array([0.0, 1.0]), np.array([1.0, 1000.0]))
    assert (low, high) == (pytest.approx(0.5, abs=0.02), pytest.approx(0.9, abs=0.1))


def beta_clusters(rng, sizes, share, rho):
    """Flags and clusters of these sizes; two answers of a cluster have the correlation rho."""
    scale = 1 / rho - 1
    own = rng.beta(share * scale, (1 - share) * scale, len(sizes))
    return rng.random(int(np.sum(sizes))) < np.repeat(own, sizes), np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize(
    ("sizes", "share", "rho", "least"),
    [
        ([2, 3, 4, 5] * 25, 0.99, 0.5, 0.93),  # percentiles of resampled clusters: 86 %
        ([2, 3, 4, 5] * 5, 0.9, 0.3, 0.93),
        ([2, 3, 4, 5] * 3, 0.8, 0.5, 0.915),
        ([100] * 3 + [5] * 27, 0.9, 0.3, 0.95),  # percentiles: 75 %
        ([4] * 100, 0.9, 1e-6, 0.93),
    ],
)
def test_a_share_over_clusters_is_held_as_often_as_it_should_be(sizes, share, rho, least):
    rng, count = np.random.default_rng(1), 0
    for _ in range(TRIALS):
        count += held(share_interval(*beta_clusters(rng, sizes, share, rho)), share)
    assert least * TRIALS <= count


def test_clusters_that_have_nothing_in_common_are_nearly_wilsons():
    right = np.random.default_rng(2).random(2000) < 0.8
    found, plain = share_interval(right, np.arange(2000) // 4), wilson(int(right.sum()), 2000)
    assert found == pytest.approx(plain, abs=0.004)


@pytest.mark.parametrize(("shares", "size"), [((0.99, 0.97), 2), ((0.9, 0.7), 4), ((0.95, 0.95), 3)])
def test_a_gap_over_clusters_of_both_sides_is_held_as_often_as_it_should_be(shares, size):
    """Each cluster has `size` examples on each side, which go together."""
    rng, count, clusters = np.random.default_rng(3), 0, 30
    first = np.arange(2 * size * clusters) // size % 2 == 0
    index = np.arange(2 * size * clusters) // (2 * size)
    for _ in range(TRIALS):
        luck = np.repeat(rng.random(clusters), size)  # the same on both sides
        both = [np.where(rng.random(len(luck)) < 0.5, luck, rng.random(len(luck))) < share for share in shares]
        right = np.empty(len(first), bool)
        right[first], right[~first] = both
        count += held(gap_interval(right, first, ~first, index), shares[0] - shares[1])
    assert count >= 0.93 * TRIALS


def test_the_gap_of_two_sides_without_a_shared_cluster_is_newcombes():
    rng = np.random.default_rng(4)
    right, index = beta_clusters(rng, [3] * 40, 0.8, 0.4)
    first = index < 20
    ends = [share_interval(right[side], index[side]) for side in (first, ~first)]
    wanted = square_and_add(right[first].mean(), ends[0], right[~first].mean(), ends[1])
    assert gap_interval(right, first, ~first, index) == pytest.approx(wanted)


@pytest.mark.parametrize("nested", [True, False])
def test_a_mean_over_clusters_is_held_as_often_as_it_should_be(nested):
    """Eight parts of high shares; whether a cluster lies in one of them or reaches into all."""
    rng, count, share = np.random.default_rng(5), 0, 0.95
    for _ in range(TRIALS):
        right, index = beta_clusters(rng, [8] * 120, share, 0.3)
        part = index % 8 if nested else np.arange(960) % 8
        count += held(mean_of_parts(right, part, index).ci95, share)
    assert count >= 0.93 * TRIALS


def test_the_spread_of_clusters_is_the_variance_that_there_is():
    """Sizes from 1 to 60: the mean of what is estimated, beside the variance over many draws."""
    rng, sizes = np.random.default_rng(6), np.array([1, 2, 4, 8, 15, 30, 60] * 6)
    seen, means = [], []
    for _ in range(300):
        right, index = beta_clusters(rng, sizes, 0.6, 0.4)
        part = (index % 2 == 0).astype(int)
        seen.append(spread(right, part, index).variance)
        means.append(mean_of_parts(right, part).value)
    assert np.mean(seen) == pytest.approx(np.var(means), rel=0.15)


def test_the_correlation_within_clusters_is_that_of_the_answers():
    rng = np.random.default_rng(7)
    for rho in (1e-6, 0.3, 0.9):
        right, index = beta_clusters(rng, [5] * 3000, 0.7, rho)
        assert correlation(right - right.mean(), index) == pytest.approx(rho, abs=0.03)


@pytest.mark.parametrize("clusters", [2, 5, 10, 20, 60])
def test_a_skewed_counterfactual_gap_is_held_as_often_as_it_should_be(clusters):
    """15 % of clusters move: Student's t alone holds the truth in 37 to 92 %, resampled clusters no oftener."""
    rng, count, truth = np.random.default_rng(8), 0, 0.15 * 0.45 + 0.85 * 0.01
    for _ in range(TRIALS):
        moved = np.where(rng.random(clusters) < 0.15, rng.random(clusters) * 0.9, rng.random(clusters) * 0.02)
        p = np.stack([np.zeros(clusters), moved], axis=1).ravel()
        scores = np.stack([p, 1 - p], axis=1)
        found = counterfactual_gap(scores, np.zeros(len(p), int), np.arange(len(p)) // 2)
        assert found is not None
        count += held(found.ci95, truth)
    assert count >= 0.96 * TRIALS
