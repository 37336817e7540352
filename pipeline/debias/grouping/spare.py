"""SPARE: clusters of what a model says early (Yang et al., AISTATS 2024, arXiv 2305.18761).

Shapes: N examples, M of one label, K clusters, C labels.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from debias.grouping.base import Floats, Grouping, Inferred, Ints
from debias.grouping.clusters import k_means, silhouette

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spare(Grouping):
    """The clusters of what a model says early, label by label: a shortcut that is learned first pulls them apart.

    K-means (ten starts) on the logits of the examples of one label, as far as log-probabilities tell them: less their
    mean. A run keeps probabilities of 0.0001 at least, and that may be what sets few examples apart: on Colored MNIST
    the paper's logits, which have no such bound, give clusters without a shortcut in them (BENCHMARKS.md). `clusters`
    of them, or of 2 to `most` as many as have the largest silhouette (of at most 2,000 examples).
    Beside the groups each example gets the weight with which the paper draws it, for `order: spare`: in proportion to
    `1 / size^power` within its label, and labels alike; `power` is 1 where the silhouette of the label is `threshold`
    or more, and `high_power` below. Group DRO or `resampled` read the groups alone.

    Needs `first_stage: {keep: log_p, settings: {max_steps: ...}}` that ends early, after an epoch or two (or a bias
    model); no groups. Costs the stage, and seconds. Fails where the stage is asked late, when clusters are those of
    what is hard, and where there is no shortcut: every label is cut in two or more all the same. Small clusters are
    seen very often with `high_power` 2.

    Source: Yang et al., Identifying Spurious Biases Early in Training through the Lens of Simplicity Bias, AISTATS
    2024, arXiv 2305.18761, and its authors' library.
    """

    name: ClassVar[str] = "spare"
    gives: ClassVar[frozenset[str]] = frozenset({"draw_weight"})
    clusters: int | None = None
    most: int = 5
    threshold: float = 0.9
    high_power: float = 2.0

    def __post_init__(self) -> None:
        for name in ("clusters", "most"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} is {value}, expected 2 or more")
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, expected a silhouette from -1 to 1")
        if not 1 <= self.high_power <= 10:
            raise ValueError(f"high_power is {self.high_power}, expected a number from 1 to 10")

    def infer(self, log_p_NC: Floats, label_N: Ints, labels: Sequence[str], seed: int) -> Inferred:
        logit_NC = log_p_NC - log_p_NC.mean(axis=1, keepdims=True)
        group_N, weight_N = np.zeros(len(label_N), dtype=np.int64), np.zeros(len(label_N))
        names: list[str] = []
        for label in np.unique(label_N).tolist():
            own = np.flatnonzero(label_N == label)
            cluster_M, score = self._clustered(logit_NC[own], np.random.default_rng([seed, label]))
            sizes_K = np.bincount(cluster_M)
            power = 1.0 if score >= self.threshold else self.high_power
            weight_M = 1.0 / sizes_K[cluster_M] ** power
            group_N[own], weight_N[own] = cluster_M + len(names), weight_M / weight_M.sum()
            names += [f"{labels[label]}, cluster {number}" for number in range(1, len(sizes_K) + 1)]
            told = (labels[label], sizes_K.tolist(), score, power)
            logger.info("groups spare: %s has clusters of %s examples, silhouette %.2f: drawn by 1 / size^%g", *told)
        return Inferred(group_N, tuple(names), weight_N)

    def _clustered(self, logit_MC: Floats, draw: np.random.Generator) -> tuple[Ints, float]:
        """The cluster of each, the largest first, and the silhouette; one cluster where there are no two different."""
        different = len(np.unique(logit_MC, axis=0))
        counts = range(2, self.most + 1) if self.clusters is None else [min(self.clusters, different)]
        tried = []
        for count in counts:
            if 2 <= count <= different:
                cluster_M = k_means(logit_MC, count, draw)
                tried.append((silhouette(logit_MC, cluster_M, draw), -count, cluster_M))
        if not tried:
            return np.zeros(len(logit_MC), dtype=np.int64), 1.0
        score, _, cluster_M = max(tried, key=lambda one: one[:2])
        by_size = np.argsort(-np.bincount(cluster_M), kind="stable")
        return np.argsort(by_size)[cluster_M], score
