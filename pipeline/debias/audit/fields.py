"""What a field alone gives away, and what the relation of fields does. Shapes: N examples, C labels, R relations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2, rankdata

from debias.audit.sureness import ALPHA, FAMILIES, Interval, adjusted, better_than, interval_of
from debias.audit.words import exact
from debias.bias.base import Bools, Floats, Ints
from debias.bias.lexical import judged_out_of_fold

POINTS = 0.02  # of accuracy above the most frequent label from which a field is worth telling
SMALL = 0.01  # of rank variance: Cohen's small effect (Statistical Power Analysis, 1988)


@dataclass(frozen=True)
class Alone:
    """How often a classifier of one field's words is right, out of fold, beside the most frequent label's share."""

    field: str
    accuracy: float
    interval: Interval
    most: float
    p: float

    @property
    def found(self) -> bool:
        """Whether the field gives labels away: surely, and enough to matter."""
        return self.p < ALPHA and self.accuracy - self.most >= POINTS


@dataclass(frozen=True)
class Relation:
    """Something that can be measured of the fields, and how it goes with the labels.

    `effect`: the share of the variance of its ranks that the labels explain (epsilon squared); `means`: of each label.
    """

    name: str
    effect: float
    means: dict[str, float]
    p: float

    @property
    def found(self) -> bool:
        """Whether it gives labels away: surely, and enough to matter."""
        return self.p < ALPHA and self.effect >= SMALL


def alone(
    seen: dict[str, tuple[Any, Ints]], label_N: Ints, labels: int, weights: Mapping[str, Floats | None]
) -> list[Alone]:
    """What each field gives away: of each its features [N, V], sparse, and the folds [N] in which equal texts meet.

    `weights`: how much each row [N] counts for the p and the interval of a field (`weights_of_copies`).
    """
    most = int(np.bincount(label_N).argmax())
    judged = {
        field: judged_out_of_fold(seen_NV, label_N, labels, fold_N).argmax(axis=1) == label_N
        for field, (seen_NV, fold_N) in seen.items()
    }
    p_K = adjusted(
        np.array([_better_than_most(right_N, label_N, weights.get(field)) for field, right_N in judged.items()])
    )
    share = float((label_N == most).mean())
    return [
        Alone(field, float(right_N.mean()), interval_of(right_N, weights.get(field)), share, float(p))
        for (field, right_N), p in zip(judged.items(), p_K, strict=True)
    ]


def _better_than_most(right_N: Bools, label_N: Ints, weight_N: Floats | None) -> float:
    """One-sided p against who always says the likeliest label; copies may have made another the most frequent."""
    likely = int(np.bincount(label_N, weights=weight_N).argmax())
    return better_than(right_N, label_N == likely, weight_N)


def related(
    values_NR: Floats,
    names: Sequence[str],
    label_N: Ints,
    labels: Sequence[str],
    weight_N: Floats | None = None,
    families: float = FAMILIES,
) -> list[Relation]:
    """How each relation goes with the labels (Kruskal & Wallis, JASA 47, 1952; flags: Fisher), largest effect first.

    `weight_N`: how much each row counts for p (`weights_of_copies`), None for all alike. `families`: see `adjusted`.
    """
    if not len(names):
        return []
    h_R = np.array([kruskal(value_N, label_N, len(labels)) for value_N in values_NR.T])
    sure_R = h_R
    if weight_N is not None:
        sure_R = np.array([kruskal_of(value_N, label_N, len(labels), weight_N) for value_N in values_NR.T])
    p_R = adjusted(
        np.array(
            [_p(value_N, h, label_N, len(labels), weight_N) for value_N, h in zip(values_NR.T, sure_R, strict=True)]
        ),
        families,
    )
    return sorted(
        (
            Relation(
                name,
                float(h / (len(label_N) - 1)),
                _means(name, values_NR[:, place], label_N, labels),
                float(p),
            )
            for place, (name, h, p) in enumerate(zip(names, h_R, p_R, strict=True))
        ),
        key=lambda one: -one.effect,
    )


def _p(value_N: Floats, h: float, label_N: Ints, labels: int, weight_N: Floats | None) -> float:
    """The chance of such an H; of a flag exactly, for H says too little of one that few examples have."""
    there = np.unique(value_N)
    if len(there) != 2:
        return float(chi2.sf(h, len(np.unique(label_N)) - 1))
    has_N = value_N == there[1]
    has_C = _counted(label_N[has_N], labels, None if weight_N is None else weight_N[has_N])
    size_C = has_C + _counted(label_N[~has_N], labels, None if weight_N is None else weight_N[~has_N])
    least = exact(np.stack([has_C, size_C - has_C]), size_C).min()  # of one label with the flag, or without it
    return float(min(1.0, 2 * labels * least))


def _means(name: str, value_N: Floats, label_N: Ints, labels: Sequence[str]) -> dict[str, float]:
    """Of each label; a length, which is measured in logarithms, in words."""
    means = {label: float(value_N[label_N == at].mean()) for at, label in enumerate(labels) if (label_N == at).any()}
    return {label: float(np.expm1(mean)) for label, mean in means.items()} if name.startswith("length of") else means


def _counted(label_N: Ints, labels: int, weight_N: Floats | None) -> Ints:
    return np.rint(np.bincount(label_N, weights=weight_N, minlength=labels)).astype(np.int64)


def kruskal_of(value_N: Floats, label_N: Ints, labels: int, weight_N: Floats) -> float:
    """The statistic H of rows that count `weight_N` each: as `kruskal` where each counts 1."""
    _, place_N = np.unique(value_N, return_inverse=True)
    held_K = np.bincount(place_N.ravel(), weights=weight_N)
    rank_N = (np.cumsum(held_K) - held_K / 2)[place_N.ravel()]  # the middle of what counts as much
    n, size_C = float(weight_N.sum()), np.bincount(label_N, weights=weight_N, minlength=labels)
    mean_C = np.bincount(label_N, weights=weight_N * rank_N, minlength=labels) / np.where(size_C > 0, size_C, 1.0)
    spread = float((weight_N * (rank_N - n / 2) ** 2).sum()) / n
    return 0.0 if len(held_K) < 2 else float((size_C * (mean_C - n / 2) ** 2).sum() / spread * (n - 1) / n)


def kruskal(value_N: Floats, label_N: Ints, labels: int) -> float:
    """The statistic H, corrected for ties; 0 where all values are one."""
    rank_N = rankdata(value_N)
    n, size_C = len(rank_N), np.bincount(label_N, minlength=labels)
    mean_C = np.bincount(label_N, weights=rank_N, minlength=labels) / np.maximum(size_C, 1)
    spread = float(rank_N.var())
    return 0.0 if spread == 0 else float((size_C * (mean_C - (n + 1) / 2) ** 2).sum() / spread * (n - 1) / n)
