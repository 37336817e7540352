"""Intervals and tests, against scipy, published tables, plain loops, and on ugly inputs."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import permutation_test, t

from debias_eval.scores import intervals as stats
from debias_eval.scores import shares

SHARES = st.floats(0, 1)


def loop_bootstrap_sd(values_N, clusters, replicates, seed=5):
    """Standard deviation of the mean over resampled clusters, drawn one by one."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(clusters == one) for one in np.unique(clusters)]
    means = []
    for _ in range(replicates):
        drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        means.append(values_N[drawn].mean())
    return np.std(means, ddof=1)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [  # Newcombe, Stat. Med. 17 (1998) 2635, table II, method 10, as second - first
        ((36, 12, 2, 0), -0.3404, -0.0569),
        ((14, 5, 0, 22), -0.226, -0.011),  # Altman et al., Statistics with Confidence (2000), table 6.2
        ((0, 0, 0, 30), -0.1135, 0.1135),
        ((0, 30, 0, 0), -1.0, -0.8395),
    ],
)
def test_paired_newcombe_agrees_with_the_literature(table, low, high):
    assert stats.paired_newcombe(*table) == pytest.approx((low, high), abs=6e-4)


@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_paired_newcombe_holds_the_difference_and_mirrors(table):
    both, first, second, neither = table
    low, high = stats.paired_newcombe(*table)
    assert -1 <= low <= (second - first) / sum(table) + 1e-9
    assert (second - first) / sum(table) - 1e-9 <= high <= 1
    assert stats.paired_newcombe(both, second, first, neither) == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    ("first_only", "second_only", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (0, 10, 2 / 1024), (12, 2, 0.012939453), (10, 3, 0.092285156), (20, 4, 0.0015438795)],
)
def test_mcnemar_agrees_with_statsmodels(first_only, second_only, p):
    first = np.array([1] * first_only + [0] * second_only + [1, 0])
    second = np.array([0] * first_only + [1] * second_only + [1, 0])
    assert stats.mcnemar(first, second) == pytest.approx(p, rel=1e-6)
    assert stats.mcnemar(second, first) == stats.mcnemar(first, second)


def test_mcnemar_refuses_other_examples():
    with pytest.raises(ValueError, match="3 and 2 answers"):
        stats.mcnemar([1, 0, 1], [1, 0])


def test_holm_by_hand():
    # Sorted: 0.005 x 4, 0.011 x 3 = 0.033, 0.02 x 2 = 0.04, 0.04 x 1 -> 0.04.
    assert stats.holm([0.02, 0.005, 0.04, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert stats.holm([0.02, 0.005, 0.04, 0.011, 0.5, 0.3]) == pytest.approx(  # statsmodels 0.15
        [0.08, 0.03, 0.12, 0.055, 0.6, 0.6]
    )
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]
    assert stats.holm([]) == []


@pytest.mark.parametrize("p", [[1.2], [-0.1], [float("nan")]])
def test_holm_refuses_what_is_no_p(p):
    with pytest.raises(ValueError, match="from 0 to 1"):
        stats.holm(p)


@given(st.lists(SHARES, min_size=1, max_size=7))
def test_holm_is_the_closed_testing_of_bonferroni(p):
    """The smallest level at which every intersection that holds the hypothesis is rejected by Bonferroni."""
    for i, adjusted in enumerate(stats.holm(p)):
        others = [j for j in range(len(p)) if j != i]
        subsets = (s for size in range(len(p)) for s in itertools.combinations(others, size))
        closed = max((len(s) + 1) * min([p[i], *(p[j] for j in s)]) for s in subsets)
        assert adjusted == pytest.approx(min(1, closed), abs=1e-12)


def test_without_real_clusters_the_interval_is_wilsons():
    right = np.array([True] * 70 + [False] * 30)
    for clusters in (None, np.arange(100)[::-1]):
        assert shares.share_interval(right, clusters) == stats.wilson(70, 100)


def test_interval_of_a_share_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 150, size=600)
    right = rng.random(600) < rng.random(150)[clusters]
    low, high = shares.share_interval(right, clusters)
    width = 2 * 1.96 * loop_bootstrap_sd(right.astype(float), clusters, 3000)
    assert high - low == pytest.approx(width, rel=0.05)
    assert high - low > 1.3 * np.diff(stats.wilson(int(right.sum()), 600))[0]


@pytest.mark.parametrize("copies", [2, 7])
def test_copies_of_an_example_add_nothing(copies):
    right = np.random.default_rng(1).random(200) < 0.8
    once = stats.wilson(int(right.sum()), 200)
    clustered = shares.share_interval(np.repeat(right, copies), np.repeat(np.arange(200), copies))
    assert clustered == pytest.approx(once, abs=0.01)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("clusters", [[0], [0, 0, 0], [0] * 5 + [1] * 5, list(range(40)) * 2])
def test_all_alike_never_gives_a_point(value, clusters):
    low, high = shares.share_interval(np.full(len(clusters), value), np.array(clusters))
    size = len(set(clusters))
    assert (low, high) == pytest.approx(stats.wilson(size * value, size))
    assert high - low > 0.05


@st.composite
def clustered(draw):
    n = draw(st.integers(1, 60))
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    clusters = draw(st.lists(st.integers(0, 14), min_size=n, max_size=n))
    return np.array(draw(flags)), np.array(draw(flags)), np.array(clusters)


@settings(max_examples=30, deadline=None)
@given(clustered())
def test_any_share_lies_in_its_interval(data):
    right, _, clusters = data
    low, high = shares.share_interval(right, clusters)
    assert 0 <= low <= right.mean() + 1e-12
    assert right.mean() - 1e-12 <= high <= 1
    assert (low, high) == shares.share_interval(right, clusters * 3 + 7)  # names do not matter


@settings(max_examples=30, deadline=None)
@given(clustered())
def test_any_gap_lies_in_its_interval(data):
    right, first, clusters = data
    if first.all() or not first.any():
        return
    low, high = shares.gap_interval(right, first, ~first, clusters)
    gap = right[first].mean() - right[~first].mean()
    assert -1 <= low <= gap + 1e-12
    assert gap - 1e-12 <= high <= 1


def test_a_gap_within_clusters_knows_that_its_sides_go_together():
    """Pairs with one example on each side, both right or both wrong: the gap hardly varies, whatever the accuracy."""
    rng = np.random.default_rng(2)
    pair = rng.random(500) < 0.6
    flip = rng.random(500) < 0.02
    right = np.concatenate([pair, pair ^ flip])
    first = np.arange(1000) < 500
    together = shares.gap_interval(right, first, ~first, np.tile(np.arange(500), 2))
    apart = shares.gap_interval(right, first, ~first)
    assert np.ptp(together) < 0.3 * np.ptp(apart)
    difference = pair.astype(float) - (pair ^ flip)
    assert np.ptp(together) == pytest.approx(2 * 1.96 * difference.std() / np.sqrt(500), rel=0.1)


@pytest.mark.parametrize("rare", [0, 1])
def test_a_gap_to_a_side_of_few_clusters_is_held_as_often_as_it_should_be(rare):
    """Three clusters beside sixty: each counts as one example. Resampled, 80 % of these intervals hold the truth."""
    rng, size, clusters = np.random.default_rng(4), 8, 63
    index = np.repeat(np.arange(clusters), size)
    sides = [index < 3, index >= 3]
    first, second = sides[rare], sides[1 - rare]
    held = 0
    for _ in range(200):
        right = rng.random(clusters * size) < np.repeat(rng.beta(2, 2, clusters), size)
        low, high = shares.gap_interval(right, first, second, index)
        held += low <= 0 <= high
    assert held >= 0.94 * 200


@pytest.mark.parametrize(("first_share", "second_share"), [(0.95, 0.9), (0.97, 0.9)])
def test_a_gap_to_a_side_that_may_be_right_throughout_is_held_as_often_as_it_should_be(first_share, second_share):
    """Twelve clusters a side: resampled, one that is right throughout adds no variance; 87 to 89 % held the truth."""
    rng, clusters, size = np.random.default_rng(5), 12, 3
    index = np.repeat(np.arange(2 * clusters), size)
    first = index < clusters
    held = 0
    for _ in range(200):
        sides = [rng.random(clusters) < share for share in (first_share, second_share)]
        low, high = shares.gap_interval(np.repeat(np.concatenate(sides), size), first, ~first, index)
        held += low <= first_share - second_share <= high
    assert held >= 0.94 * 200


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_side_whose_clusters_are_all_alike_counts_each_of_them_once(share):
    alike, varied = np.tile(np.arange(4) < 4 * share, 12), np.repeat(np.arange(12) % 2 == 0, 4)
    right, index = np.concatenate([alike, varied]), np.repeat(np.arange(24), 4)
    first = index < 12
    wanted = stats.square_and_add(share, stats.wilson(share * 12, 12), 0.5, shares.share_interval(varied, index[:48]))
    assert shares.gap_interval(right, first, ~first, index) == pytest.approx(wanted)


def test_clusters_drawn_by_kind_are_those_drawn_one_by_one():
    rng = np.random.default_rng(3)
    sums = np.stack([rng.integers(0, 3, 400), np.full(400, 2)], axis=1)
    by_kind = stats.cluster_bootstrap(sums, 4000)
    unlike = np.concatenate([sums, rng.random((400, 1))], axis=1)  # a column that makes every cluster one of a kind
    one_by_one = stats.cluster_bootstrap(unlike, 4000)
    assert (by_kind[:, 1] == 800).all()
    assert by_kind[:, 0].mean() == pytest.approx(sums[:, 0].sum(), rel=0.003)
    assert by_kind[:, 0].std() == pytest.approx(sums[:, 0].std() * 20, rel=0.05)
    assert one_by_one[:, 0].std() == pytest.approx(sums[:, 0].std() * 20, rel=0.05)


def test_examples_without_a_cluster_are_their_own():
    assert stats.cluster_index(["a", None, "a", None, "b"]).tolist() == [0, 1, 0, 2, 3]


def test_over_seeds_by_hand():
    mean, low, high = stats.over_seeds([0.6, 0.7, 0.8], [(0.55, 0.64), (0.65, 0.74), (0.75, 0.84)])
    half = t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert (mean, low, high) == pytest.approx((0.7, 0.7 - np.hypot(half, 0.05), 0.7 + np.hypot(half, 0.04)))
    assert stats.over_seeds([0.6], [(0.5, 0.65)]) == pytest.approx((0.6, 0.5, 0.65))
    assert stats.over_seeds([0.01, 0.5], [(0, 0.1), (0.4, 0.6)], bounds=(0, 1))[1:] == (0, 1)
    with pytest.raises(ValueError, match="0 values"):
        stats.over_seeds([], [])


def test_the_same_examples_do_not_shrink_with_seeds():
    interval = (0.68, 0.72)
    assert stats.over_seeds([0.7] * 9, [interval] * 9) == pytest.approx((0.7, 0.68, 0.72))


def test_paired_p_agrees_with_a_permutation_test():
    rng = np.random.default_rng(4)
    first = rng.random(300) < 0.7
    second = np.where(rng.random(300) < 0.15, rng.random(300) < 0.85, first)
    ours = stats.paired_bootstrap(first, second)
    change = second.astype(float) - first
    theirs = permutation_test((change,), np.mean, permutation_type="samples", n_resamples=4000, rng=0)
    assert ours.difference == pytest.approx(change.mean())
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.02)
    assert ours.p == pytest.approx(stats.mcnemar(first, second), abs=0.04)


def test_paired_interval_over_clusters_agrees_with_a_loop():
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(120), 3)
    first = rng.random(360) < 0.6
    shift = rng.random(120)[clusters] < 0.2
    second = first | shift
    ours = stats.paired_bootstrap(first, second, clusters)
    sd = loop_bootstrap_sd(second.astype(float) - first, clusters, 2000)
    assert ours.high - ours.low == pytest.approx(2 * t.ppf(0.975, 119) * sd * np.sqrt(120 / 119), rel=0.08)


def test_many_examples_leave_welchs_interval_of_the_seeds():
    """With no noise of examples to speak of, what is left is the classical test on the seeds' accuracies."""
    rng = np.random.default_rng(6)
    levels = (rng.normal(0.6, 0.03, 5), rng.normal(0.68, 0.01, 4))
    places = np.arange(20000) / 20000
    first, second = (np.stack([places < level for level in side]) for side in levels)
    ours = stats.paired_bootstrap(first, second)
    parts = [(side.var(ddof=1) / len(side), len(side) - 1) for side in (first.mean(1), second.mean(1))]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    half = t.ppf(0.975, freedom) * np.sqrt(variance)
    assert ours.high - ours.low == pytest.approx(2 * half, rel=0.06)


@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("clusters", [None, 7])
def test_identical_runs_do_not_differ(seeds, clusters):
    right = np.random.default_rng(7).random((seeds, 70)) < 0.7
    ours = stats.paired_bootstrap(right, right, None if clusters is None else np.arange(70) % clusters)
    assert (ours.difference, ours.p) == (0, 1)
    assert ours.low < 0 < ours.high


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (5, 2 / 32), (100, 2 / 2**100)])
def test_all_wrong_against_all_right_is_as_sure_as_there_are_examples(n, p):
    ours = stats.paired_bootstrap(np.zeros((1, n)), np.ones((1, n)))
    assert (ours.difference, ours.high) == (1, 1)
    assert ours.p == pytest.approx(p)
    assert ours.low < 1


def test_one_cluster_says_nothing():
    ours = stats.paired_bootstrap(np.zeros((3, 50)), np.ones((3, 50)), np.zeros(50, dtype=int))
    assert (ours.difference, ours.low, ours.high, ours.p) == (1, -1, 1, 1)


def test_a_lone_seed_against_many_is_less_sure_than_many_against_many():
    rng = np.random.default_rng(8)
    right = [rng.random((5, 800)) < rng.normal(level, 0.04, (5, 1)) for level in (0.6, 0.7)]
    lone, both = stats.paired_bootstrap(right[0][:1], right[1]), stats.paired_bootstrap(*right)
    assert lone.high - lone.low > 1.3 * (both.high - both.low)
    assert "seeds" in lone.test


@settings(max_examples=30, deadline=None)
@given(clustered(), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_any_difference_lies_in_its_interval(data, firsts, seconds, seed):
    first, second, clusters = data
    rng = np.random.default_rng(seed)
    sides = [
        np.stack([one ^ (rng.random(len(one)) < 0.1) for _ in range(s)])
        for one, s in ((first, firsts), (second, seconds))
    ]
    ours = stats.paired_bootstrap(*sides, clusters, replicates=60)
    assert ours.difference == pytest.approx(sides[1].mean() - sides[0].mean())
    assert -1 <= ours.low <= ours.difference + 1e-12
    assert ours.difference - 1e-12 <= ours.high <= 1
    assert 0 <= ours.p <= 1
    mirrored = stats.paired_bootstrap(*sides[::-1], clusters, replicates=60)
    assert (mirrored.difference, mirrored.low, mirrored.high, mirrored.p) == pytest.approx(
        (-ours.difference, -ours.high, -ours.low, ours.p), abs=1e-9
    )


@pytest.mark.parametrize("shapes", [((1, 3), (1, 2)), ((1, 0), (1, 0))])
def test_answers_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="answers of shapes"):
        stats.paired_bootstrap(*map(np.ones, shapes))


def test_the_same_call_gives_the_same_numbers():
    rng = np.random.default_rng(9)
    first, second = rng.random((2, 3, 900)) < 0.6
    clusters = rng.integers(0, 200, 900)
    assert stats.paired_bootstrap(first, second, clusters) == stats.paired_bootstrap(first, second, clusters)
    assert shares.share_interval(first[0], clusters) == shares.share_interval(first[0], clusters)


def test_large_suites_are_quick():
    """Bars in processor time: 2 s for 76,000 examples in clusters of all sizes, 2 s for five seeds a side."""
    rng = np.random.default_rng(10)
    clusters = rng.integers(0, 20000, 76000)
    right = rng.random((10, 76000)) < 0.7
    side = rng.random(76000) < 0.5
    started = time.process_time()
    shares.share_interval(right[0], clusters)
    shares.gap_interval(right[0], side, ~side, clusters)
    so_far = time.process_time() - started
    stats.paired_bootstrap(right[:5], right[5:], clusters)
    assert so_far < 2
    assert time.process_time() - started - so_far < 2
