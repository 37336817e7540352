"""Intervals of shares of right answers, of their mean over parts, and of the gap between two: score intervals.

They hold the truth where a bootstrap's percentiles do not: of high shares, of few clusters, of clusters unlike in size.
Shapes: N examples, G parts (labels or groups), K clusters, E the two ends of an interval.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import sparse
from scipy.stats import t as student

from debias_eval.scores.intervals import (
    FEW_CLUSTERS,
    Z95,
    Bools,
    Floats,
    Interval,
    Ints,
    compact,
    square_and_add,
    wilson,
)

_PSEUDO = 4.0  # examples as right as the mean that each part has more (Agresti and Coull, Am. Stat. 52, 1998)
_FURTHEST = 60.0  # in log-odds: every share is 0 or 1 there
_HALVINGS = 60


@dataclass(frozen=True)
class Spread:
    """How much clusters make a mean vary: its variance, and Student's quantile for what is known of that."""

    variance: float
    quantile: float


def share_interval(right_N: Bools, cluster_N: Ints | None = None) -> Interval:
    """95 % interval of the share of right answers: Wilson's (JASA 22, 1927).

    Where clusters hold several examples, with as many examples as would vary as much as these clusters do (Kish's
    effective size), and Student's quantile. Where that cannot speak (fewer than ten clusters, or all of them alike)
    with each cluster counting as one example.
    """
    correct, n = int(right_N.sum()), len(right_N)
    index_N, clusters = compact(cluster_N) if cluster_N is not None else (None, n)
    if index_N is None or clusters == n:
        return wilson(correct, n)
    share = correct / n
    one_part_N = np.zeros(n, dtype=np.int64)
    if clusters < FEW_CLUSTERS or any_alike(right_N, one_part_N, index_N):
        return wilson(share * clusters, clusters)
    found = spread(right_N, one_part_N, index_N)
    size = min(max(share * (1 - share) / found.variance, 1.0), float(n))
    return wilson(share * size, size, found.quantile)


def gap_interval(right_N: Bools, first_N: Bools, second_N: Bools, cluster_N: Ints | None = None) -> Interval:
    """95 % interval of the accuracy on `first_N` minus that on `second_N` (masks of disjoint, non-empty parts).

    Newcombe's, of the two sides' own intervals (`share_interval`). Clusters that hold examples of both sides make them
    go together; so far as they do, the gap is surer. Where a side cannot speak of its clusters (fewer than ten, or all
    alike), nothing is made of that.
    """
    masks, phi = (first_N, second_N), 0.0
    shares = [float(right_N[mask_N].mean()) for mask_N in masks]
    clusters = [None if cluster_N is None else compact(cluster_N[mask_N])[0] for mask_N in masks]
    ends = [share_interval(right_N[mask_N], index_N) for mask_N, index_N in zip(masks, clusters, strict=True)]
    fewest = min(0 if index_N is None else int(index_N.max()) + 1 for index_N in clusters)
    if cluster_N is not None and fewest >= FEW_CLUSTERS:
        index_N, count = compact(cluster_N)
        first_K, second_K = (
            np.bincount(index_N[mask_N], weights=right_N[mask_N] - share, minlength=count)
            for mask_N, share in zip(masks, shares, strict=True)
        )
        scale = sqrt(float(first_K @ first_K) * float(second_K @ second_K))
        phi = float(first_K @ second_K) / scale if scale > 1e-12 else 0.0
    return square_and_add(shares[0], ends[0], shares[1], ends[1], phi)


def any_alike(right_N: Bools, part_N: Ints, cluster_N: Ints) -> bool:
    """Whether a part (numbers 0..G-1) has one share right in all of its clusters, which then show no variance."""
    clusters = int(cluster_N.max()) + 1
    cell_E, index_N = np.unique(part_N * clusters + cluster_N, return_inverse=True)
    right_E, size_E = np.bincount(index_N, weights=right_N), np.bincount(index_N)
    part_E = cell_E // clusters
    first_E = np.searchsorted(part_E, part_E)  # the first cluster of each one's part
    unlike_E = right_E * size_E[first_E] != right_E[first_E] * size_E
    return not np.bincount(part_E, weights=unlike_E).all()


def mean_interval(share_G: Floats, size_G: Floats, quantile: float = Z95) -> Interval:
    """95 % score interval of the mean of independent shares, each of `size_G` examples; of one share Wilson's.

    All means m for which the shares that make m likeliest do not leave the mean that was seen outside of `quantile`
    standard errors. To that end log-odds are moved until the mean is m, those of a part the further the fewer examples
    it has: nearly what maximum likelihood does. They start where each part has four examples more, as right as the mean
    is, or a part that is right throughout would be known to the last digit.
    """
    value, parts, total = float(share_G.mean()), len(share_G), float(size_G.sum())
    inside = min(max(value, 0.5 / (total + 1)), 1 - 0.5 / (total + 1))
    start_G = (share_G * size_G + _PSEUDO * inside) / (size_G + _PSEUDO)
    odds_G, moves_G = np.log(start_G / (1 - start_G)), size_G.min() / size_G

    side_E = np.array([-1.0, 1.0])
    near_E, far_E = -side_E * 2 * _FURTHEST / moves_G.min(), side_E * 2 * _FURTHEST / moves_G.min()
    for _ in range(_HALVINGS):
        middle_E = (near_E + far_E) / 2
        p_EG = 1 / (1 + np.exp(-np.clip(odds_G + middle_E[:, None] * moves_G, -_FURTHEST, _FURTHEST)))
        mean_E, error_E = p_EG.mean(axis=1), np.sqrt((p_EG * (1 - p_EG) / size_G).sum(axis=1)) / parts
        inside_E = side_E * (mean_E - value) <= quantile * error_E
        near_E, far_E = np.where(inside_E, middle_E, near_E), np.where(inside_E, far_E, middle_E)
    # Rounding must not push the interval off the mean at the two ends.
    low, high = (float(end) for end in mean_E)
    return (0.0 if value <= 0 else min(low, value)), (1.0 if value >= 1 else max(high, value))


def spread(right_N: Bools, part_N: Ints, cluster_N: Ints) -> Spread:
    """How much the mean of the parts' shares varies over clusters (numbers 0..K-1), which may reach into several parts.

    The sum of the clusters' squared residuals, which a cluster that has much of a part keeps small, divided by how
    large it is expected to be for one of the mean's variance; both by a model in which two examples of one cluster have
    the correlation that these have. Degrees of freedom are Satterthwaite's: few, where few clusters hold most examples.
    """
    size_G = np.bincount(part_N)
    parts, clusters = len(size_G), int(cluster_N.max()) + 1
    rest_N = right_N - (np.bincount(part_N, weights=right_N) / size_G)[part_N]
    weight_G = 1 / (parts * size_G)
    rest_K = np.bincount(cluster_N, weights=rest_N * weight_G[part_N], minlength=clusters)
    rho = correlation(rest_N, cluster_N)
    # Of each cluster its share of every part, and what it brings to the mean.
    share_KG = sparse.csr_matrix((1 / size_G[part_N], (cluster_N, part_N)), shape=(clusters, parts))
    whole_K = np.asarray(share_KG.sum(axis=1)).ravel() / parts
    alone_K = np.bincount(cluster_N, weights=weight_G[part_N] ** 2, minlength=clusters)
    variance_K = (1 - rho) * alone_K + rho * whole_K**2
    square_KG = share_KG.multiply(share_KG).tocsr()
    own = rho * float(whole_K @ np.asarray(square_KG.sum(axis=1)).ravel()) / parts
    own += (1 - rho) * float(np.asarray(square_KG.sum(axis=0)).ravel() @ (1 / size_G)) / parts**2
    together_GG = (share_KG.T @ share_KG).tocsr()
    of_parts = rho * float(together_GG.multiply(together_GG).sum())
    of_parts += (1 - rho) * float(together_GG.diagonal() @ (1 / size_G))
    total = float(variance_K.sum())
    expected = total - 2 * own + of_parts / parts**2
    freedom = max(total**2 / float((variance_K**2).sum()) - 1, 1.0)
    return Spread(float(rest_K @ rest_K) * total / expected, float(student.ppf(0.975, freedom)))


def correlation(rest_N: Floats, cluster_N: Ints) -> float:
    """The correlation of two residuals of one cluster, from the analysis of variance; from 0 to 1."""
    size_K = np.bincount(cluster_N)
    mean_K = np.bincount(cluster_N, weights=rest_N) / size_K
    n, clusters = len(rest_N), len(size_K)
    between = float((size_K * mean_K**2).sum()) / (clusters - 1)
    within = float(((rest_N - mean_K[cluster_N]) ** 2).sum()) / (n - clusters)
    size = (n - float((size_K**2).sum()) / n) / (clusters - 1)
    below = between + (size - 1) * within
    return min(max((between - within) / below, 0.0), 1.0) if below > 0 else 0.0
