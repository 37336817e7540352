"""How well one score ranks what another one measures. Shapes: N pairs."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from debias_eval.scores.intervals import Z95, Interval

FEWEST = 4  # pairs: the interval's error divides by N - 3


def spearman(first: Sequence[float], second: Sequence[float]) -> tuple[float, Interval] | None:
    """Spearman's rank correlation and its 95 % interval; None where a score is the same of all, or N is below FEWEST.

    On Fisher's scale the standard error is `sqrt((1 + rho^2 / 2) / (N - 3))` (Bonett and Wright, Psychometrika 65,
    2000). Pairs are taken as independent.
    """
    if len(first) < FEWEST or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    rho = float(spearmanr(first, second).statistic)
    if 1 - abs(rho) < 1e-12:
        # All in order, or in the opposite one: the interval is that of the largest correlation of N ranks below it.
        rho = math.copysign(1.0, rho)
        near = math.copysign(1 - 6 * 2 / (len(first) * (len(first) ** 2 - 1)), rho)
        low, high = _interval(near, len(first))
        return rho, ((low, 1.0) if rho > 0 else (-1.0, high))
    return rho, _interval(rho, len(first))


def _interval(rho: float, n: int) -> Interval:
    half = Z95 * math.sqrt((1 + rho * rho / 2) / (n - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)
