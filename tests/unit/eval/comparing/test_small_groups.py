"""Differences where one group is small: its variance is known no better than it is large."""

import numpy as np
import pytest
from scipy.stats import t as student

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
