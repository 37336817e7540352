"""Accuracy in which every label, or every group, counts the same, however many examples it has.

Shapes: N examples, G parts (labels or groups), K clusters, B bootstrap replicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from scipy import sparse

from debias_eval.scores.intervals import (
    FEW_CLUSTERS,
    Bools,
    Floats,
    Interval,
    Ints,
    any_alike,
    cluster_bootstrap,
    compact,
    expanded_percentiles,
    wilson,
)

_DENSE = 4_000_000  # elements of a table that is still worth searching for equal clusters


@dataclass(frozen=True)
class PartMean:
    """The mean of the parts' accuracies over `n` examples, with its 95 % interval."""

    n: int
    value: float
    ci95: Interval

    def as_dict(self) -> dict[str, Any]:
        return {"n": self.n, "accuracy": self.value, "ci95": list(self.ci95)}


def balanced_accuracy(prediction_N: Ints, gold_N: Ints, cluster_N: Ints | None = None) -> PartMean:
    """Mean over the labels of the accuracy on the examples of that label; a label that no example has takes no part.

    Source: Brodersen et al., ICPR 2010; SubpopBench's `balanced_acc` (Yang et al., ICML 2023).
    """
    return mean_of_parts(prediction_N == gold_N, np.unique(gold_N, return_inverse=True)[1], cluster_N)


def adjusted_accuracy(
    prediction_N: Ints, gold_N: Ints, groups: Sequence[str | None], cluster_N: Ints | None = None
) -> PartMean | None:
    """Mean over the suite's groups of their accuracies, all groups alike; None without groups.

    Examples whose group is None have no part. Source: SubpopBench's `adjusted_accuracy` (Yang et al., ICML 2023). Group
    DRO's figure of that name on Waterbirds weighs groups by their share of the training data (Sagawa et al., ICLR
    2020); it is not given, for a suite's groups are seldom those that a run was trained on.
    """
    named_N = np.array([name is not None for name in groups], dtype=np.bool_)
    if not named_N.any():
        return None
    part_N = np.unique([name for name in groups if name is not None], return_inverse=True)[1]
    return mean_of_parts((prediction_N == gold_N)[named_N], part_N, None if cluster_N is None else cluster_N[named_N])


def mean_of_parts(right_N: Bools, part_N: Ints, cluster_N: Ints | None = None, seed: int = 0) -> PartMean:
    """The mean over parts `part_N` (numbers 0..G-1, each of them there) of the share of right answers.

    Where every example stands for itself the parts are independent shares, and the mean's interval comes from their
    Wilson intervals (MOVER: Zou and Donner, Stat. Med. 27, 2008). Else whole clusters are resampled; a resample without
    a part is a mean over the others. Where that cannot speak (a part in fewer than ten clusters, or one that is right
    or wrong throughout or otherwise the same in all of its clusters, in every resample too) each cluster counts as one
    example of every part it reaches into.
    """
    right_G, size_G = np.bincount(part_N, weights=right_N), np.bincount(part_N)
    if not len(size_G) or not size_G.all():
        raise ValueError(f"{len(right_N)} examples in parts of {size_G.tolist()}; expected some in each part")
    share_G = right_G / size_G
    value = float(share_G.mean())
    index_N, clusters = compact(cluster_N) if cluster_N is not None else (None, len(right_N))
    if index_N is None or clusters == len(right_N):
        return PartMean(len(right_N), value, _mover(share_G, size_G))
    of_part_G = np.bincount(np.unique(part_N * clusters + index_N) // clusters)  # clusters that reach into each part
    if of_part_G.min() >= FEW_CLUSTERS and not any_alike(right_N, part_N, index_N):
        means_B = _resampled_means(right_N, part_N, index_N, clusters, seed)
        low, high = expanded_percentiles(means_B, clusters)
        return PartMean(len(right_N), value, (min(low, value), max(high, value)))
    return PartMean(len(right_N), value, _mover(share_G, of_part_G))


def _mover(share_G: Floats, size_G: Ints) -> Interval:
    """The interval of a mean of independent shares: the squares of their distances to their own limits add up."""
    parts = zip(share_G, size_G, strict=True)
    low_G, high_G = np.array([wilson(min(share * size, size), int(size)) for share, size in parts]).T
    value, count = float(share_G.mean()), len(share_G)
    below = sqrt(float(((share_G - low_G) ** 2).sum())) / count
    above = sqrt(float(((high_G - share_G) ** 2).sum())) / count
    return max(0.0, value - below), min(1.0, value + above)


def _resampled_means(right_N: Bools, part_N: Ints, index_N: Ints, clusters: int, seed: int) -> Floats:
    """The mean in each sample of whole clusters, `[B]`."""
    parts = int(part_N.max()) + 1
    right_E = np.flatnonzero(right_N)
    rows = np.concatenate([index_N[right_E], index_N])
    columns = np.concatenate([part_N[right_E], parts + part_N])
    sums_KC = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(clusters, 2 * parts))
    dense = clusters * 2 * parts <= _DENSE
    sums_BC = cluster_bootstrap(sums_KC.toarray() if dense else sums_KC, seed=seed)
    right_BG, size_BG = sums_BC[:, :parts], sums_BC[:, parts:]
    shares_BG = np.divide(right_BG, size_BG, out=np.full(right_BG.shape, np.nan), where=size_BG > 0)
    return np.asarray(np.nanmean(shares_BG, axis=1))
