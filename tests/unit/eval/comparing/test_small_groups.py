"""Differences where one group is small: its variance is known no better than it is large."""

import numpy as np
import pytest
from scipy.stats import t as student

from debias_eval.comparing import answers as answers_module
from debias_eval.comparing.answers import Answers
from debias_eval.comparing.differences import differences_of

TRIALS = 60  # of a share of 95 %: known to 3 points


def of_two_groups(first_SN, second_SN, small, clusters=None):
    n = first_SN.shape[1]
    groups = ("small",) * small + ("big",) * (n - small)
    return Answers(
        np.concatenate([first_SN, second_SN]),
        len(first_SN),
        groups,
        clusters,
        labels=("x",) * n,
        aligned=("big",),
        conflicting=("small",),
    )


def found(answers):
    return {one.measure: one for one in differences_of(answers, False)}


@pytest.mark.parametrize("measure", ["gap", "worst_group", "adjusted"])
def test_a_small_group_that_is_right_throughout_is_not_known_to_be(measure):
    """Six examples, all right with both: the shares of the small group may differ by tens of points."""
    rng = np.random.default_rng(0)
    sides = [rng.random((1, 306)) < 0.9 for _ in range(2)]
    for side in sides:
        side[:, :6] = True
    one = found(of_two_groups(*sides, small=6))[measure]
    widths = {"gap": 0.7, "adjusted": 0.35, "worst_group": 0.1}
    assert one.high - one.low > widths[measure]
    assert one.low < one.difference < one.high


def test_a_group_of_enough_examples_has_its_own_degrees_of_freedom():
    """Satterthwaite by part, in plain loops: 10 examples beside 400, which vary little."""
    rng = np.random.default_rng(1)
    sides = [rng.random((1, 410)) < np.r_[np.full(10, 0.5), np.full(400, 0.98)] for _ in range(2)]
    one = found(of_two_groups(*sides, small=10))["gap"]
    parts = []
    for lo, hi in ((0, 10), (10, 410)):
        d = [float(b) - float(a) for a, b in zip(sides[0][0, lo:hi], sides[1][0, lo:hi], strict=True)]
        mean = sum(d) / len(d)
        parts.append((sum((x - mean) ** 2 for x in d) / (len(d) - 1) / len(d), len(d) - 1))
    variance = sum(v for v, _ in parts)
    freedom = variance**2 / sum(v**2 / df for v, df in parts)
    assert freedom < 11
    half = student.ppf(0.975, freedom) * variance**0.5
    # Samples of all 410 hold now fewer, now more of the ten: 1 / n is 1.1 / 10 in the mean, its root 5 % over.
    assert 1 <= (one.high - one.low) / 2 / half <= 1.15


def test_p_is_no_less_than_five_examples_can_tell():
    """Five examples that all change sides: of 32 ways to call them two are as extreme."""
    sides = [np.ones((1, 205), dtype=bool) for _ in range(2)]
    sides[0][:, :5] = False
    one = found(of_two_groups(*sides, small=5))["gap"]
    assert one.p >= 2 * 0.5**5


def held(measures, small, rates, clusters=1, seeds=1, trials=TRIALS):
    """The share of trials whose interval holds the true difference; answers of a cluster go together."""
    rng, hits = np.random.default_rng(2), dict.fromkeys(measures, 0)
    big = 120
    index = np.repeat(np.arange((small + big) // clusters), clusters) if clusters > 1 else None
    for _ in range(trials):
        sides = []
        for rate in rates:
            level = np.r_[np.full(small, rate), np.full(big, 0.9)]
            draws = np.repeat(rng.random((1, (small + big) // clusters)), clusters, axis=1)
            side = np.repeat(draws < level, seeds, axis=0)
            sides.append(side)
        ours = found(of_two_groups(*sides, small=small, clusters=index))
        moved = rates[1] - rates[0]
        truth = {"gap": -moved, "adjusted": moved / 2, "conflicting": moved}
        for name in measures:
            hits[name] += ours[name].low <= truth[name] <= ours[name].high
    return {name: hit / trials for name, hit in hits.items()}


@pytest.mark.parametrize(
    ("small", "clusters", "seeds"),
    [(6, 1, 1), (6, 1, 2), pytest.param(16, 2, 1, id="clusters")],
)
def test_intervals_with_a_small_group_hold_the_truth(small, clusters, seeds):
    """With the degrees of freedom of all groups 80 % held it: six examples, 95 % against 75 %."""
    shares = held(("gap", "adjusted"), small, (0.95, 0.75), clusters, seeds)
    assert min(shares.values()) >= 0.9, shares


def of_large_clusters(rng, clusters, seeds, size=40):
    """Clusters of 40 rows, each a share with a spread of a few points: 70 % right against 82 %."""
    level_K = rng.normal(0.0, 0.05, clusters)
    levels = (0.70 + level_K, 0.82 + level_K + rng.normal(0.0, 0.03, clusters))
    index = np.repeat(np.arange(clusters), size)
    return [rng.random((seeds, clusters * size)) < level[index] for level in levels], index


@pytest.mark.parametrize("clusters", [5, 9])
def test_few_clusters_of_many_rows_are_known_as_well_as_their_shares(clusters):
    """Student's t over the clusters' differences, in plain loops: no cluster that is wholly right is added."""
    sides, index = of_large_clusters(np.random.default_rng(5), clusters, 1)
    n = len(index)
    one = found(Answers(np.concatenate(sides), 1, ("x",) * n, index, labels=("x",) * n))["accuracy"]
    d = []
    for k in range(clusters):
        rows = [i for i in range(n) if index[i] == k]
        d.append(sum(float(sides[1][0, i]) - float(sides[0][0, i]) for i in rows) / len(rows))
    mean = sum(d) / clusters
    half = student.ppf(0.975, clusters - 1) * (sum((x - mean) ** 2 for x in d) / (clusters - 1) / clusters) ** 0.5
    assert (one.high - one.low) / 2 == pytest.approx(half, rel=0.1)
    assert one.difference == pytest.approx(mean)


@pytest.mark.parametrize("clusters", [5, 9])
def test_few_clusters_of_many_rows_show_a_large_difference(clusters):
    """Five seeds each, 12 points: with two clusters more that are wholly right none of 60 was seen."""
    rng, trials, seen, hits = np.random.default_rng(6), 20, 0, 0
    for _ in range(trials):
        sides, index = of_large_clusters(rng, clusters, 5)
        n = len(index)
        one = found(Answers(np.concatenate(sides), 5, ("x",) * n, index, labels=("x",) * n))["accuracy"]
        seen += one.p < 0.05
        hits += one.low <= 0.12 <= one.high
        assert one.high - one.low < 0.35
    assert seen >= 0.8 * trials
    assert hits >= 0.85 * trials


def test_a_group_of_few_clusters_of_many_rows_is_not_drowned():
    rng = np.random.default_rng(7)
    (few, index), (more, others) = of_large_clusters(rng, 6, 5), of_large_clusters(rng, 30, 5)
    sides = [np.concatenate(both, axis=1) for both in zip(few, more, strict=True)]
    ours = found(of_two_groups(*sides, small=len(index), clusters=np.r_[index, 6 + others]))
    for measure in ("conflicting", "gap", "worst_group"):
        assert 0.01 < ours[measure].high - ours[measure].low < 0.3, measure


@pytest.mark.parametrize("clusters", [None, np.arange(40) // 4])
@pytest.mark.parametrize("seeds", [1, 2])
def test_of_a_group_without_examples_nothing_is_known(seeds, clusters):
    right_RN = np.random.default_rng(8).random((2 * seeds, 40)) < 0.8
    sides = {"aligned": ("x",), "conflicting": ("absent",)}
    ours = found(Answers(right_RN, seeds, ("x",) * 40, clusters, labels=("x",) * 40, **sides))
    for measure in ("conflicting", "gap"):
        assert np.isnan(ours[measure].difference)
        assert (ours[measure].low, ours[measure].p) == (-2.0 if measure == "gap" else -1.0, 1.0)
        assert ours[measure].test.endswith("a single cluster says nothing")
    assert ours["accuracy"].low < ours["accuracy"].high


@pytest.mark.parametrize("same_seeds", [False, True])
def test_few_clusters_that_are_right_throughout_are_guarded_as_examples_are(same_seeds):
    """Pairs that are right or wrong as one: consistency is accuracy once more, and six of them prove no more."""
    index = np.repeat(np.arange(6), 2)
    all_right, one_right = np.ones((5, 12), dtype=bool), np.tile(index == 0, (5, 1))
    both = np.concatenate([all_right, one_right])
    answers = Answers(both, 5, (None,) * 12, index, labels=("x", "y") * 6, same_seeds=same_seeds)
    ours = {one.measure: one for one in differences_of(answers, True)}
    accuracy, held = ours["accuracy"], ours["consistency"]
    assert (held.n, held.clusters, held.test) == (6, 6, accuracy.test)
    assert (held.low, held.high, held.p) == pytest.approx((accuracy.low, accuracy.high, accuracy.p))
    assert held.p >= 2 * 0.5**5
    assert held.low < held.difference == pytest.approx(-5 / 6)
    one_seed = Answers(both[[0, 5]], 1, (None,) * 12, index, labels=("x", "y") * 6)
    (alone,) = (one for one in differences_of(one_seed, True) if one.measure == "consistency")
    assert (alone.test, alone.p) == ("exact McNemar over clusters", pytest.approx(2 * 0.5**5))


def test_measures_that_guard_the_same_group_draw_once(monkeypatch):
    drawn = []
    bootstrap = answers_module.cluster_bootstrap
    monkeypatch.setattr(answers_module, "cluster_bootstrap", lambda *given: drawn.append(1) or bootstrap(*given))
    rng = np.random.default_rng(9)
    ours = found(of_two_groups(*(rng.random((2, 206)) < 0.8 for _ in range(2)), small=6))
    assert {"gap", "worst_group", "adjusted", "conflicting"} <= set(ours)
    assert len(drawn) == 2  # plain, and with the small group guarded
