"""K-means and the silhouette. Shapes: M points, C coordinates, K clusters, S of the points."""

import numpy as np

from debias.grouping.base import Floats, Ints

STARTS, STEPS = 10, 300  # of k-means
JUDGED = 2000  # points whose silhouettes are averaged: all pairs of these are looked at


def k_means(point_MC: Floats, clusters: int, draw: np.random.Generator) -> Ints:
    """The cluster of each point, [M] from 0, of the best of ten starts (k-means++; Arthur & Vassilvitskii 2007).

    There are as many different points as clusters, or more; each cluster has a point.
    """
    best, found = np.inf, np.zeros(len(point_MC), dtype=np.int64)
    for _ in range(STARTS):
        centre_KC = _spread_out(point_MC, clusters, draw)
        cluster_M = np.full(len(point_MC), -1)
        for _ in range(STEPS):
            distance_MK = _squared(point_MC, centre_KC)
            nearest_M = distance_MK.argmin(axis=1)
            _fill(nearest_M, distance_MK)
            if (nearest_M == cluster_M).all():
                break
            cluster_M = nearest_M
            sums_KC = np.stack([np.bincount(cluster_M, column, clusters) for column in point_MC.T], axis=1)
            centre_KC = sums_KC / np.bincount(cluster_M, minlength=clusters)[:, None]
        inertia = float(((point_MC - centre_KC[cluster_M]) ** 2).sum())
        if inertia < best:
            best, found = inertia, cluster_M
    return found


def silhouette(point_MC: Floats, cluster_M: Ints, draw: np.random.Generator) -> float:
    """The mean of `(b - a) / max(a, b)` (Rousseeuw 1987): a is a point's mean distance to its own cluster, b that to
    the next. Of 2,000 points where there are more; 0 of a point that is alone, and where there is one cluster.
    """
    if len(point_MC) > JUDGED:
        some = np.sort(draw.choice(len(point_MC), JUDGED, replace=False))
        point_MC, cluster_M = point_MC[some], cluster_M[some]
    there, own_S = np.unique(cluster_M, return_inverse=True)
    if len(there) < 2:
        return 0.0
    distance_SS = np.sqrt(np.maximum(_squared(point_MC, point_MC), 0.0))
    sums_SK = np.stack([distance_SS[:, own_S == one].sum(axis=1) for one in range(len(there))], axis=1)
    size_K, rows = np.bincount(own_S), np.arange(len(own_S))
    within_S = sums_SK[rows, own_S] / np.maximum(size_K[own_S] - 1, 1)
    mean_SK = sums_SK / size_K
    mean_SK[rows, own_S] = np.inf
    next_S = mean_SK.min(axis=1)
    larger_S = np.maximum(within_S, next_S)
    score_S = np.where(larger_S > 0, (next_S - within_S) / np.where(larger_S > 0, larger_S, 1.0), 0.0)
    return float(np.where(size_K[own_S] > 1, score_S, 0.0).mean())


def _spread_out(point_MC: Floats, clusters: int, draw: np.random.Generator) -> Floats:
    """The first centres, [K, C]: points that are different, the farther from those before the likelier."""
    centres = [point_MC[draw.integers(len(point_MC))]]
    for _ in range(clusters - 1):
        # By differences, not by products: a point that is a centre already has a distance of exactly 0.
        far_M = np.min([((point_MC - centre) ** 2).sum(axis=1) for centre in centres], axis=0)
        centres.append(point_MC[draw.choice(len(point_MC), p=far_M / far_M.sum())])
    return np.stack(centres)


def _squared(point_MC: Floats, centre_KC: Floats) -> Floats:
    squares: Floats = (point_MC**2).sum(axis=1)[:, None] - 2 * point_MC @ centre_KC.T + (centre_KC**2).sum(axis=1)
    return squares


def _fill(nearest_M: Ints, distance_MK: Floats) -> None:
    """A cluster that lost its points takes the one farthest from its centre, of a cluster that has more than one."""
    for lost in np.flatnonzero(np.bincount(nearest_M, minlength=distance_MK.shape[1]) == 0).tolist():
        alone_M = np.bincount(nearest_M, minlength=distance_MK.shape[1])[nearest_M] < 2
        far_M = np.where(alone_M, -np.inf, distance_MK[np.arange(len(nearest_M)), nearest_M])
        nearest_M[int(far_M.argmax())] = lost
