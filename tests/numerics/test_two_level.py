"""The comparison over seeds and clusters against plain loops that share no code with it."""

from math import sqrt
from statistics import mean, variance

import numpy as np
import pytest
from scipy.stats import t as student

from debias_eval.scores.intervals import two_level

CLUSTERS = 40


def of_a_run(values, replicates):
    """Variance over seeds as measured, and without the noise that resampled clusters show."""
    seeds = len(values)
    noise = 0.0
    for s in range(seeds):
        noise += variance([row[s] - mean(row) for row in replicates]) / seeds
    measured = variance(values)
    return measured, max(0.0, measured - noise * seeds / (seeds - 1))


def by_hand(first, second, first_rows, second_rows):
    """Difference, interval and p: parts are (as measured, without noise, degrees of freedom)."""
    examples = variance([mean(b) - mean(a) for a, b in zip(first_rows, second_rows, strict=True)])
    examples *= CLUSTERS / (CLUSTERS - 1)
    parts = [(examples, examples, CLUSTERS - 1)]
    sides = [(v, rows) for v, rows in ((first, first_rows), (second, second_rows)) if len(v) > 1]
    for values, rows in sides:
        # A lone seed on the other side varies as these runs do: once as itself, once in their mean.
        factor = 1 / len(values) + (1 if len(sides) == 1 else 0)
        measured, without = of_a_run(values, rows)
        parts.append((measured * factor, without * factor, len(values) - 1))
    total = sum(without for _, without, _ in parts)
    freedom = total**2 / sum(measured**2 / df for measured, _, df in parts)
    freedom = max(freedom, min(df for _, _, df in parts))
    difference = mean(second) - mean(first)
    half = student.ppf(0.975, freedom) * sqrt(total)
    return difference, difference - half, difference + half, 2 * student.sf(abs(difference) / sqrt(total), freedom)


def by_hand_in_pairs(first, second, first_rows, second_rows):
    """The same where run s of both methods has the same seed: a pair is one observation."""
    seeds = len(first)
    apart = [two - one for one, two in zip(first, second, strict=True)]
    rows = [[y - x for x, y in zip(a, b, strict=True)] for a, b in zip(first_rows, second_rows, strict=True)]
    examples = variance([mean(row) for row in rows]) * CLUSTERS / (CLUSTERS - 1)
    measured, without = of_a_run(apart, rows)
    total = examples + without / seeds
    freedom = total**2 / (examples**2 / (CLUSTERS - 1) + (measured / seeds) ** 2 / (seeds - 1))
    freedom = max(freedom, min(CLUSTERS - 1, seeds - 1))
    half = student.ppf(0.975, freedom) * sqrt(total)
    p = 2 * student.sf(abs(mean(apart)) / sqrt(total), freedom)
    return mean(apart), mean(apart) - half, mean(apart) + half, p


def numbers(seeds, apart):
    """Values over seeds, and replicates that share a part, of two methods."""
    rng = np.random.default_rng(sum(seeds))
    values = [rng.normal(level, apart, count) for level, count in zip((0.5, 0.53), seeds, strict=True)]
    shared = rng.normal(0, 0.01, (200, 1))
    return values, [one + shared + rng.normal(0, 0.004, (200, len(one))) for one in values]


@pytest.mark.parametrize("seeds", [(5, 5), (3, 5), (2, 2), (1, 5), (5, 1), (1, 1)])
@pytest.mark.parametrize("apart", [0.002, 0.05])
def test_interval_and_p_are_those_of_plain_loops(seeds, apart):
    values, rows = numbers(seeds, apart)
    ours = two_level(values[0], values[1], rows[0], rows[1], CLUSTERS)
    plain = by_hand(*(one.tolist() for one in (*values, *rows)))
    assert (ours.difference, ours.low, ours.high, ours.p) == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
@pytest.mark.parametrize("apart", [0.002, 0.05])
def test_pairs_of_seeds_are_those_of_plain_loops(seeds, apart):
    values, rows = numbers((seeds, seeds), apart)
    luck = np.random.default_rng(1).normal(0, 0.1, seeds)  # of a seed, the same for both methods: it cancels
    values = [one + luck for one in values]
    ours = two_level(values[0], values[1], rows[0] + luck, rows[1] + luck, CLUSTERS, same_seeds=True)
    plain = by_hand_in_pairs(*(one.tolist() for one in (*values, rows[0] + luck, rows[1] + luck)))
    assert (ours.difference, ours.low, ours.high, ours.p) == pytest.approx(plain, rel=1e-9)
    assert "pairs of seeds" in ours.test


def test_half_a_pair_is_refused():
    values, rows = numbers((2, 3), 0.05)
    with pytest.raises(ValueError, match="2 and 3 seeds cannot be paired"):
        two_level(*values, *rows, CLUSTERS, same_seeds=True)
