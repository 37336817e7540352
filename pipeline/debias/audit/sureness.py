"""How sure a finding is: intervals, and p-values adjusted for all that was looked at. Shapes: K tests."""

from math import sqrt

import numpy as np
from scipy.stats import binom

from debias.bias.base import Bools, Floats

Interval = tuple[float, float]
ALPHA = 0.05
FAMILIES = 3  # fields alone, words, measures: each has a third of the one error rate
# Of the last third four fifths for how fields relate; how texts are written is seldom doubtful where it matters.
RELATED, WRITTEN = FAMILIES / 0.8, FAMILIES / 0.2
_Z95 = 1.959963984540054


def wilson(right: float, n: float) -> Interval:
    """The 95 % score interval of a share (Wilson, JASA 22, 1927)."""
    share, z2 = right / n, _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = _Z95 * sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def interval_of(right_N: Bools, weight_N: Floats | None = None) -> Interval:
    """The interval of the share of rows that are right; `weight_N`: as wide as of so many rows as these weigh."""
    right, n = float(right_N.sum()), float(len(right_N))
    rows = n if weight_N is None else float(weight_N.sum())
    return wilson(right if weight_N is None else right / n * rows, rows)


def adjusted(p_K: Floats, families: float = FAMILIES) -> Floats:
    """Holm's adjusted p-values (Scand. J. Statist. 6, 1979) of one family of several that share an error rate.

    With all families adjusted like this, the chance of any false alarm anywhere is at most ALPHA, where each p is of
    rows that were drawn one by one. Copies of a row count as one, and so do those of a field's text (one hypothesis
    beside many premises) as far as their labels agree (`weights_of_copies`); rows that were made of each other in
    another way, such as the sentences of one author, are not known as such.
    """
    order = np.argsort(p_K, kind="stable")
    stepped_K = np.maximum.accumulate(p_K[order] * np.arange(len(p_K), 0, -1))
    found = np.empty_like(stepped_K)
    found[order] = np.minimum(1.0, families * stepped_K)
    return found


def better_than(right_N: Bools, other_right_N: Bools, weight_N: Floats | None = None) -> float:
    """One-sided p that the first is right no oftener than the other, of the examples on which they differ (McNemar).

    `weight_N`: how much each example counts, None for all alike; sums of it are rounded.
    """
    counts_N = np.ones(len(right_N)) if weight_N is None else weight_N
    wins = round(float(counts_N[right_N & ~other_right_N].sum()))
    losses = round(float(counts_N[~right_N & other_right_N].sum()))
    return float(binom.sf(wins - 1, wins + losses, 0.5)) if wins + losses else 1.0
