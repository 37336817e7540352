"""How sure a number is: intervals and tests for shares, where examples come in clusters and models in seeds.

Shapes: N examples, K clusters, C columns, B bootstrap replicates, S training seeds. Everything that draws is seeded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.stats import binomtest, norm
from scipy.stats import t as student

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Interval = tuple[float, float]
Z95 = float(norm.ppf(0.975))

PAIRED_REPLICATES = 1000  # only a variance is taken from them, known to about 2 % of its root
FEW_CLUSTERS = 10  # below it resampling says too little: each cluster then counts as one example
_FEW_KINDS = 64
_CHUNK = 4_000_000


def wilson(correct: float, n: float, z: float = Z95) -> Interval:
    """Score interval of a share (Wilson, JASA 22, 1927): inside [0, 1], usable for small n and for 0 or n right."""
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"correct is {correct} and n is {n}; expected 0 <= correct <= n and n > 0")
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not push the interval off the share at the two ends, where they coincide by algebra.
    return (0.0 if correct == 0 else max(0.0, centre - half)), (1.0 if correct == n else min(1.0, centre + half))


def square_and_add(first: float, first_ci: Interval, second: float, second_ci: Interval, phi: float = 0.0) -> Interval:
    """95 % interval of `first - second` from the intervals of both (Newcombe, Stat. Med. 17, 1998, method 10).

    `phi` is the correlation of two shares of the same examples, 0 for independent ones.
    """
    (low1, high1), (low2, high2) = first_ci, second_ci
    below = _root(first - low1, high2 - second, phi)
    above = _root(high1 - first, second - low2, phi)
    return max(-1.0, first - second - below), min(1.0, first - second + above)


def _root(x: float, y: float, phi: float) -> float:
    return sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))


def paired_newcombe(both: float, first_only: float, second_only: float, neither: float) -> Interval:
    """95 % interval of `second - first`, two shares of the same examples (Newcombe, Stat. Med. 17, 1998, 2635).

    The four counts say how many examples both, only one, or neither got right.
    """
    n = both + first_only + second_only + neither
    one, two = both + second_only, both + first_only
    margins = one * (n - one) * two * (n - two)
    excess = both * neither - first_only * second_only
    # Method 10: the continuity correction applies to a positive correlation only.
    excess = max(0.0, excess - n / 2) if excess > 0 else excess
    phi = excess / sqrt(margins) if margins > 0 else 0.0
    return square_and_add(one / n, wilson(one, n), two / n, wilson(two, n), phi)


def mcnemar(first_right_N: ArrayLike, second_right_N: ArrayLike) -> float:
    """Exact two-sided p that two classifiers are right equally often on the same examples (McNemar, 1947).

    1 where they never differ.
    """
    first_N, second_N = np.asarray(first_right_N, dtype=bool), np.asarray(second_right_N, dtype=bool)
    if first_N.shape != second_N.shape or first_N.size == 0:
        raise ValueError(f"{first_N.size} and {second_N.size} answers; expected the same number, over 0")
    return sign_test(int((first_N & ~second_N).sum()), int((~first_N & second_N).sum()))


def sign_test(losses: int, wins: int) -> float:
    """Exact two-sided p of `losses` against `wins` under even odds; 1 where there is neither."""
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the order given (Holm, Scand. J. Stat. 6, 1979)."""
    p_N = np.asarray(p, dtype=np.float64)
    if p_N.size and not ((p_N >= 0) & (p_N <= 1)).all():
        raise ValueError(f"p is {list(p)}; expected numbers from 0 to 1")
    order_N = np.argsort(p_N, kind="stable")
    adjusted_N = np.empty_like(p_N)
    adjusted_N[order_N] = np.minimum(1.0, np.maximum.accumulate(p_N[order_N] * np.arange(p_N.size, 0, -1)))
    return [float(value) for value in adjusted_N]


def cluster_index(names: Sequence[str | None]) -> Ints:
    """Cluster names as numbers 0..K-1, `[N]`; an example without a name is a cluster of its own."""
    seen: dict[Any, int] = {}
    keys = (("row", i) if name is None else name for i, name in enumerate(names))
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def compact(cluster_N: Ints) -> tuple[Ints, int]:
    """The same clusters numbered without holes, and their number K."""
    names, index_N = np.unique(cluster_N, return_inverse=True)
    return index_N.astype(np.int64), len(names)


def cluster_sums(values_NC: ArrayLike, cluster_N: Ints, clusters: int) -> Floats:
    """Sums of the columns within each cluster, `[K, C]`."""
    columns = np.atleast_2d(np.asarray(values_NC, dtype=np.float64).T)
    return np.stack([np.bincount(cluster_N, weights=column, minlength=clusters) for column in columns], axis=1)


def cluster_bootstrap(sums_KC: Any, replicates: int = PAIRED_REPLICATES, seed: int = 0) -> Floats:
    """Column totals `[B, C]` of samples of K whole clusters drawn with replacement; `sums_KC` may be sparse.

    Clusters with equal sums are interchangeable, so where there are few kinds of them only the number of each kind is
    drawn: the same distribution, much faster.
    """
    rng = np.random.default_rng(seed)
    clusters = sums_KC.shape[0]
    if not sparse.issparse(sums_KC):
        kinds_UC, first_U, count_U = np.unique(sums_KC, axis=0, return_index=True, return_counts=True)
        # In order of appearance, which does not depend on the order of the columns: swapping two methods mirrors all.
        kinds_UC, count_U = kinds_UC[np.argsort(first_U)], count_U[np.argsort(first_U)]
        if len(count_U) <= max(_FEW_KINDS, clusters // 4):
            return np.asarray(rng.multinomial(clusters, count_U / clusters, size=replicates) @ kinds_UC)
    columns = sparse.csr_matrix(sums_KC).T.tocsr()
    step = max(1, _CHUNK // clusters)
    chunks = [_draw(rng, clusters, min(step, replicates - start)) for start in range(0, replicates, step)]
    return np.concatenate([(columns @ times_KB).T for times_KB in chunks])


def _draw(rng: np.random.Generator, clusters: int, replicates: int) -> Floats:
    """How often each cluster is in each replicate, `[K, B]`."""
    times_BK = np.empty((replicates, clusters))
    for times_K in times_BK:
        times_K[:] = np.bincount(rng.integers(clusters, size=clusters), minlength=clusters)
    return np.ascontiguousarray(times_BK.T)


def over_seeds(
    values_S: Sequence[float], intervals_S: Sequence[Interval], bounds: Interval = (-1.0, 1.0)
) -> tuple[float, float, float]:
    """Mean over training seeds with its 95 % interval: (mean, low, high), inside `bounds`.

    Student's t over seeds and the examples' own interval, combined in quadrature. The seeds share one test set, so the
    examples' part does not shrink with their number. One seed keeps its own interval, which knows of examples alone.
    """
    if not len(values_S) == len(intervals_S) > 0:
        raise ValueError(f"{len(values_S)} values and {len(intervals_S)} intervals; expected the same number, over 0")
    values, ends = np.asarray(values_S, dtype=np.float64), np.asarray(intervals_S, dtype=np.float64)
    seeds, mean = len(values), float(values.mean())
    below, above = (values - ends[:, 0]).mean(), (ends[:, 1] - values).mean()
    spread = student.ppf(0.975, seeds - 1) * values.std(ddof=1) / sqrt(seeds) if seeds > 1 else 0.0
    low, high = mean - np.hypot(spread, below), mean + np.hypot(spread, above)
    return mean, float(max(low, bounds[0])), float(min(high, bounds[1]))


@dataclass(frozen=True)
class Paired:
    """`second - first` on the same examples, with its 95 % interval, two-sided p, and the test in words."""

    difference: float
    low: float
    high: float
    p: float
    test: str


def paired_bootstrap(
    first_SN: ArrayLike,
    second_SN: ArrayLike,
    cluster_N: Ints | None = None,
    *,
    replicates: int = PAIRED_REPLICATES,
    seed: int = 0,
    same_seeds: bool = False,
) -> Paired:
    """Difference in accuracy of two methods, each `[S, N]` (right or not; S may differ), over seeds and clusters.

    See `two_level` for what varies and for `same_seeds`. ValueError for shapes that do not fit.
    """
    first_SN, second_SN = np.atleast_2d(np.asarray(first_SN)), np.atleast_2d(np.asarray(second_SN))
    n = first_SN.shape[1]
    if second_SN.shape[1] != n or 0 in (*first_SN.shape, *second_SN.shape):
        raise ValueError(f"answers of shapes {first_SN.shape} and {second_SN.shape}; expected [seeds, examples]")
    index_N, clusters = compact(np.arange(n) if cluster_N is None else cluster_N)
    columns = np.concatenate([first_SN, second_SN, np.ones((1, n))]).T
    sums_BC = cluster_bootstrap(cluster_sums(columns, index_N, clusters), replicates, seed)
    shares_BS = sums_BC[:, :-1] / sums_BC[:, -1:]
    seeds = len(first_SN)
    return two_level(
        first_SN.mean(axis=1),
        second_SN.mean(axis=1),
        shares_BS[:, :seeds],
        shares_BS[:, seeds:],
        clusters,
        same_seeds=same_seeds,
    )


def two_level(
    first_S: Floats,
    second_S: Floats,
    first_BS: Floats,
    second_BS: Floats,
    clusters: int,
    *,
    most: float = 1.0,
    same_seeds: bool = False,
    of_examples: "Variance | None" = None,
) -> Paired:
    """Difference of two methods' means over seeds, from each seed's value and its replicates over clusters.

    Two things vary: which examples are in the test set, shared by all runs (the replicates' variance), and the training
    seed (the variance between seeds, in closed form what resampling seeds gives, times S / (S - 1); the part of it that
    resampled clusters already show is taken out). Student's t with Satterthwaite's degrees of freedom makes up for few
    seeds. A lone seed beside several is taken to vary as they do. With one seed each only the examples vary. `most` is
    the largest difference there can be; `of_examples` the variance that examples cause, where it is known better.

    With `same_seeds` run s of both methods had the same seed (the same batches, the same fresh weights): what varies
    over seeds is then the difference within such a pair. ValueError for pairs of which one is missing.
    """
    if same_seeds and len(first_S) != len(second_S):
        raise ValueError(f"{len(first_S)} and {len(second_S)} seeds cannot be paired")
    difference = float(second_S.mean() - first_S.mean())
    seeds = (len(first_S), len(second_S))
    over = "clusters" if max(seeds) == 1 else "pairs of seeds and clusters" if same_seeds else "seeds and clusters"
    test = f"paired bootstrap over {over}"
    difference_B = second_BS.mean(axis=1) - first_BS.mean(axis=1)
    difference_B = difference_B[np.isfinite(difference_B)]
    if clusters < 2 or len(difference_B) < 2:
        return Paired(difference, -most, most, 1.0, f"{test}: a single cluster says nothing")
    of_examples = of_examples or _of_clusters(difference_B, clusters)
    sides = [(second_S - first_S, second_BS - first_BS)] if same_seeds else [(first_S, first_BS), (second_S, second_BS)]
    of_seeds = _seed_variances(sides)
    variance = of_examples.without_noise + sum(part.without_noise for part in of_seeds)
    if variance <= 1e-18:
        return _without_spread(difference, float(first_S.mean()), clusters)
    freedom = _freedom(variance, [of_examples, *of_seeds])
    error = sqrt(variance)
    half = float(student.ppf(0.975, freedom)) * error
    p = float(2 * student.sf(abs(difference) / error, freedom))
    return Paired(difference, max(-most, difference - half), min(most, difference + half), p, test)


@dataclass(frozen=True)
class Variance:
    """A variance as measured, without what another part already holds, and its degrees of freedom."""

    measured: float
    without_noise: float
    df: float

    def times(self, factor: float) -> "Variance":
        return Variance(self.measured * factor, self.without_noise * factor, self.df)


def _of_clusters(difference_B: Floats, clusters: int) -> Variance:
    variance = float(difference_B.var(ddof=1)) * clusters / (clusters - 1)
    return Variance(variance, variance, clusters - 1)


def _freedom(variance: float, parts: Sequence[Variance]) -> float:
    """Satterthwaite's degrees of freedom; not fewer than those of the part that has fewest.

    What is subtracted from a variance makes it smaller but no surer, so the parts count here as they were measured.
    """
    return max(variance**2 / sum(part.measured**2 / part.df for part in parts), min(part.df for part in parts))


def _seed_variances(sides: Sequence[tuple[Floats, Floats]]) -> list[Variance]:
    """The variance of the difference that seeds cause, by source: two methods, or pairs; one seed each gives none."""
    known = [(_of_one_run(*side), 1 / len(side[0])) for side in sides if len(side[0]) > 1]
    if len(known) == 1 and len(sides) == 2:  # one variance for both sides, known from one of them
        ((part, of_mean),) = known
        return [part.times(1 + of_mean)]
    return [part.times(of_mean) for part, of_mean in known]


def _of_one_run(values_S: Floats, values_BS: Floats) -> Variance:
    """Variance of a run's value over training seeds, and the same without the noise of its own answers."""
    seeds = len(values_S)
    apart_BS = values_BS - values_BS.mean(axis=1, keepdims=True)
    noise = float(np.nanvar(apart_BS, axis=0, ddof=1).mean()) * seeds / (seeds - 1)
    measured = float(values_S.var(ddof=1))
    return Variance(measured, max(0.0, measured - noise), seeds - 1)


def _without_spread(difference: float, first: float, clusters: int) -> Paired:
    """Every cluster differs by the same: each counts as one example, so that a handful of them proves little."""
    moved = min(round(abs(difference) * clusters), clusters)
    wins, losses = (moved, 0) if difference > 0 else (0, moved)
    both = min(max(first * clusters - losses, 0.0), clusters - moved)
    low, high = paired_newcombe(both, losses, wins, clusters - moved - both)
    p = sign_test(losses, wins)
    return Paired(difference, min(low, difference), max(high, difference), p, "sign test over clusters")
