"""Accuracy in which every label, or every group, counts the same, however many examples it has.

Shapes: N examples, G parts (labels or groups), K clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from debias_eval.scores.intervals import FEW_CLUSTERS, Bools, Interval, Ints, compact
from debias_eval.scores.shares import any_alike, mean_interval, spread


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


def mean_of_parts(right_N: Bools, part_N: Ints, cluster_N: Ints | None = None) -> PartMean:
    """The mean over parts `part_N` (numbers 0..G-1, each of them there) of the share of right answers.

    Where every example stands for itself the parts are independent shares, and the mean has a score interval
    (`mean_interval`; of one part Wilson's). Where clusters hold several examples, parts count as so many examples as
    would make the mean vary as much. Where that cannot speak (a part in fewer than ten clusters, or one that is right
    or wrong throughout or otherwise the same in all of its clusters) each cluster counts as one example of every part
    it reaches into.
    """
    right_G, size_G = np.bincount(part_N, weights=right_N), np.bincount(part_N)
    if not len(size_G) or not size_G.all():
        raise ValueError(f"{len(right_N)} examples in parts of {size_G.tolist()}; expected some in each part")
    share_G = right_G / size_G
    value = float(share_G.mean())
    index_N, clusters = compact(cluster_N) if cluster_N is not None else (None, len(right_N))
    if index_N is None or clusters == len(right_N):
        return PartMean(len(right_N), value, mean_interval(share_G, size_G.astype(np.float64)))
    of_part_G = np.bincount(np.unique(part_N * clusters + index_N) // clusters)  # clusters that reach into each part
    if of_part_G.min() < FEW_CLUSTERS or any_alike(right_N, part_N, index_N):
        return PartMean(len(right_N), value, mean_interval(share_G, of_part_G.astype(np.float64)))
    found = spread(right_N, part_N, index_N)
    alone = float((share_G * (1 - share_G) / size_G).sum()) / len(size_G) ** 2
    effect = max(found.variance / alone, 1.0)
    return PartMean(len(right_N), value, mean_interval(share_G, np.maximum(size_G / effect, 1.0), found.quantile))
