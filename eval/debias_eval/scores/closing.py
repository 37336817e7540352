"""How much of a gap a method closes: a ratio of two differences, both of which are uncertain.

Shapes: R roles (floor, ceiling, method), S training seeds, B bootstrap replicates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from debias_eval.scores.intervals import Floats, Interval

ROLES = ("floor", "ceiling", "method")
ENOUGH_PAIRS = 5  # so many seeds that all three share, or all of one's, are used alone, though others have more
REPLICATES = 10_000  # the percentiles of few seeds lie far out
NO_DIFFERENCE = 1e-12
COINCIDE = "seeds coincide: they show no variance, so there is no interval"
METHOD_R = np.array([-1.0, 0.0, 1.0])  # method - floor
GAP_R = np.array([-1.0, 1.0, 0.0])  # ceiling - floor


@dataclass(frozen=True)
class Closed:
    """(method - floor) / (ceiling - floor), 1 where all of the gap is closed; None where there is no gap to close.

    `interval` is Fieller's, `bootstrap` that of seeds drawn with replacement, `gap_interval` of ceiling - floor; all
    95 %, None where a role has one seed, or where seeds coincide, so that they show no variance. `seeds`: how many of
    each role were used. `why`: what keeps it from a number.
    """

    gap: float
    gap_interval: Interval | None
    closed: float | None
    interval: Interval | None
    bootstrap: Interval | None
    seeds: tuple[int, int, int]
    pairing: str
    why: str = ""


@dataclass(frozen=True)
class _Block:
    """Roles whose runs have the same seeds, `[R', S]`: what luck a seed has it has for all of them."""

    roles: tuple[int, ...]
    values_RS: Floats


def gap_closed(floor: Mapping[str, float], ceiling: Mapping[str, float], method: Mapping[str, float]) -> Closed:
    """How much of the gap from `floor` to `ceiling` the method closes; each gives a value for each seed.

    Roles with the same seeds are paired. Where all three share five or more, or all seeds of one, only these count.
    Fieller's interval (J. R. Stat. Soc. B 16, 1954): all ratios r for which Student's t does not tell method - floor
    from r (ceiling - floor); it is bounded if and only if the interval of the gap leaves out 0. ValueError for a role
    without seeds, or NaN.
    """
    sides = [dict(side) for side in (floor, ceiling, method)]
    for role, side in zip(ROLES, sides, strict=True):
        if not side or not np.isfinite(list(side.values())).all():
            raise ValueError(f"{role} has the values {list(side.values())}; expected one finite number for each seed")
    sides, pairing = _paired(sides)
    blocks = _blocks(sides)
    mean_R = np.array([np.mean(list(side.values())) for side in sides])
    gap, moved = float(GAP_R @ mean_R), float(METHOD_R @ mean_R)
    seeds = (len(sides[0]), len(sides[1]), len(sides[2]))
    found = Closed(gap, None, None, None, None, seeds, pairing)
    if min(seeds) == 1:
        return _of_one_seed(found, moved)
    cov_RR, t = _covariance(blocks), _quantile(blocks, gap, moved)
    half = t * sqrt(max(0.0, float(GAP_R @ cov_RR @ GAP_R)))
    gap_varies = _varies(blocks, GAP_R)
    if gap_varies:
        found = replace(found, gap_interval=(gap - half, gap + half))
    if why := _no_gap(gap, half if gap_varies else 0.0):
        return replace(found, why=why)
    found = replace(found, closed=moved / gap)
    if not gap_varies or not _varies(blocks, METHOD_R - moved / gap * GAP_R):
        return replace(found, why=COINCIDE)
    return replace(found, interval=_fieller(gap, moved, cov_RR, t), bootstrap=_bootstrap(blocks, moved / gap))


def _of_one_seed(found: Closed, moved: float) -> Closed:
    if why := _no_gap(found.gap, 0.0):
        return replace(found, why=why)
    return replace(
        found, closed=moved / found.gap, why="one seed: no interval, and nobody knows whether there is a gap"
    )


def _no_gap(gap: float, half: float) -> str:
    if abs(gap) <= max(half, NO_DIFFERENCE):
        return "no gap to close: the interval of ceiling - floor holds 0" if half else "no gap to close"
    return "no gap to close: the ceiling is below the floor" if gap < 0 else ""


def _paired(sides: Sequence[dict[str, float]]) -> tuple[list[dict[str, float]], str]:
    """The values that count, and how seeds were paired in words."""
    shared = set(sides[0]) & set(sides[1]) & set(sides[2])
    if len(shared) >= min(ENOUGH_PAIRS, *map(len, sides)) > 1 or all(set(side) == shared for side in sides):
        left = sum(len(side) - len(shared) for side in sides)
        kept = [{seed: side[seed] for seed in sorted(shared)} for side in sides]
        return kept, f"{len(shared)} paired seeds" + (f", {left} runs without a pair left out" if left else "")
    paired = [f"{ROLES[i]} and {ROLES[j]}" for i, j in ((0, 1), (0, 2), (1, 2)) if set(sides[i]) == set(sides[j])]
    return list(sides), f"only {paired[0]} have the same seeds" if paired else "seeds not paired"


def _blocks(sides: Sequence[Mapping[str, float]]) -> list[_Block]:
    groups: dict[frozenset[str], list[int]] = {}
    for role, side in enumerate(sides):
        groups.setdefault(frozenset(side), []).append(role)
    return [
        _Block(tuple(roles), np.array([[sides[role][seed] for seed in sorted(seeds)] for role in roles]))
        for seeds, roles in groups.items()
    ]


def _varies(blocks: Sequence[_Block], weights_R: NDArray[np.float64]) -> bool:
    """Whether a weighted sum of the roles differs between seeds in some block; few examples often make it the same."""
    sums = (weights_R[list(block.roles)] @ block.values_RS for block in blocks)
    return any(float(np.ptp(sum_S)) > NO_DIFFERENCE for sum_S in sums)


def _covariance(blocks: Sequence[_Block]) -> NDArray[np.float64]:
    """Of the three means, `[R, R]`; roles of different blocks are independent."""
    cov_RR = np.zeros((len(ROLES), len(ROLES)))
    for block in blocks:
        seeds = block.values_RS.shape[1]
        cov_RR[np.ix_(block.roles, block.roles)] = np.cov(block.values_RS) / seeds
    return cov_RR


def _quantile(blocks: Sequence[_Block], gap: float, moved: float) -> float:
    """Student's t with the degrees of freedom of the less sure of the gap and the ratio's own difference.

    One for both, so that there is a gap exactly where Fieller's interval is bounded.
    """
    ratio = moved / gap if gap else 0.0
    return float(student.ppf(0.975, min(_freedom(blocks, GAP_R), _freedom(blocks, METHOD_R - ratio * GAP_R))))


def _freedom(blocks: Sequence[_Block], weights_R: NDArray[np.float64]) -> float:
    """Satterthwaite's degrees of freedom of a weighted sum of the means; not fewer than the smallest block has."""
    parts = []
    for block in blocks:
        weights = weights_R[list(block.roles)]
        seeds = block.values_RS.shape[1]
        parts.append((float((weights @ block.values_RS).var(ddof=1)) / seeds, seeds - 1))
    total, least = sum(variance for variance, _ in parts), min(df for _, df in parts)
    below = sum(variance**2 / df for variance, df in parts)
    return max(total**2 / below, least) if below > 0 else least


def _fieller(gap: float, moved: float, cov_RR: NDArray[np.float64], t: float) -> Interval:
    """The roots of (moved - r gap)^2 = t^2 var(moved - r gap) in r; the gap is known not to be 0."""
    var_gap = float(GAP_R @ cov_RR @ GAP_R)
    var_moved = float(METHOD_R @ cov_RR @ METHOD_R)
    both = float(METHOD_R @ cov_RR @ GAP_R)
    square = gap**2 - t**2 * var_gap
    centre = moved * gap - t**2 * both
    root = sqrt(max(0.0, centre**2 - square * (moved**2 - t**2 * var_moved)))
    ratio = moved / gap
    return min((centre - root) / square, ratio), max((centre + root) / square, ratio)


def _bootstrap(blocks: Sequence[_Block], ratio: float) -> Interval | None:
    """Percentiles of the ratio over seeds drawn with replacement, widened for few seeds (Hesterberg, 2015, section 5).

    None where so many draws have no gap that there is no such percentile.
    """
    rng = np.random.default_rng(0)
    means_BR = np.empty((REPLICATES, len(ROLES)))
    for block in blocks:
        seeds = block.values_RS.shape[1]
        times_BS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=REPLICATES)
        means_BR[:, list(block.roles)] = times_BS @ block.values_RS.T / seeds
    gap_B, moved_B = means_BR @ GAP_R, means_BR @ METHOD_R
    # A draw without a gap says that any ratio may be; on the side on which it lies.
    far_B = np.copysign(np.inf, moved_B - ratio * gap_B)
    there_B = gap_B > NO_DIFFERENCE
    ratio_B = np.where(there_B, moved_B / np.where(there_B, gap_B, 1.0), far_B)
    fewest = min(block.values_RS.shape[1] for block in blocks)
    level = float(norm.cdf(-sqrt(fewest / (fewest - 1)) * student.ppf(0.975, fewest - 1)))
    low = float(np.quantile(ratio_B, level, method="lower"))
    high = float(np.quantile(ratio_B, 1 - level, method="higher"))
    return (min(low, ratio), max(high, ratio)) if np.isfinite([low, high]).all() else None
