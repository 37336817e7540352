"""Numbers from predictions: pure functions on arrays, no torch.

Shapes: N examples, M labels of the model, C labels of the suite. Probabilities are float64 and rows sum to one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from debias.errors import InputError
from debias_eval.scores.calibration import brier, expected_calibration_error, reliability
from debias_eval.scores.counterfactual import counterfactual_gap
from debias_eval.scores.intervals import (
    Bools,
    Floats,
    Interval,
    Ints,
    cluster_index,
    compact,
    square_and_add,
    wilson,
)
from debias_eval.scores.means import adjusted_accuracy, balanced_accuracy
from debias_eval.scores.shares import gap_interval, share_interval


@dataclass(frozen=True)
class Accuracy:
    """`correct` right answers out of `n`, and the 95 % interval of their share (Wilson's, unless clusters gave it)."""

    n: int
    correct: int
    interval: Interval | None = field(default=None, compare=False)

    @property
    def value(self) -> float:
        return self.correct / self.n

    @property
    def ci95(self) -> Interval:
        return self.interval or wilson(self.correct, self.n)

    def as_dict(self) -> dict[str, Any]:
        return {"n": self.n, "accuracy": self.value, "ci95": list(self.ci95)}


def newcombe(first: Accuracy, second: Accuracy) -> Interval:
    """95 % interval of `first - second`, two independent shares (Newcombe, Stat. Med. 17, 1998, method 10)."""
    return square_and_add(first.value, wilson(first.correct, first.n), second.value, wilson(second.correct, second.n))


def softmax(scores_NM: Floats) -> Floats:
    """Log-likelihoods `[N, M]` to probabilities; -inf is probability 0, NaN or no finite score an error."""
    scores_NM = np.asarray(scores_NM, dtype=np.float64)
    if scores_NM.ndim != 2 or 0 in scores_NM.shape:
        raise ValueError(f"scores have shape {scores_NM.shape}, expected [examples, labels], neither of them 0")
    # The largest score of a row is NaN if any is, +inf if any is, -inf if all are.
    bad_N = ~np.isfinite(scores_NM.max(axis=1))
    if bad_N.any():
        row = int(np.argmax(bad_N))
        raise InputError(
            f"the model's scores are not finite for {int(bad_N.sum())} of {len(bad_N)} examples (first: number {row}): "
            "the run diverged or its weights are damaged"
        )
    shifted_NM = np.exp(scores_NM - scores_NM.max(1, keepdims=True))
    return np.asarray(shifted_NM / shifted_NM.sum(1, keepdims=True))


def merge_probabilities(probabilities_NM: Floats, suite_label_M: Ints, classes: int) -> Floats:
    """`[N, M]` to `[N, C]`: the probability of a suite label is the sum over the model labels merged into it."""
    merge_MC = np.eye(classes)[suite_label_M]
    return np.asarray(probabilities_NM @ merge_MC)


def merged_prediction(probabilities_NM: Floats, suite_label_M: Ints) -> Ints:
    """`[N]` suite labels: the model's own best label first, merged afterwards (as McCoy et al., ACL 2019, score HANS).

    So a prediction may differ from the largest merged probability: 0.4 / 0.3 / 0.3 stays entailment.
    """
    return np.asarray(suite_label_M[np.argmax(probabilities_NM, axis=1)])


def accuracy(prediction_N: Ints, gold_N: Ints, cluster_N: Ints | None = None) -> Accuracy:
    """Share of right answers, its interval over clusters where there are any; an empty input is a ValueError."""
    if len(prediction_N) != len(gold_N) or len(gold_N) == 0:
        raise ValueError(f"{len(prediction_N)} predictions for {len(gold_N)} labels; expected the same number, over 0")
    right_N = prediction_N == gold_N
    interval = None if cluster_N is None else share_interval(right_N, cluster_N)
    return Accuracy(len(gold_N), int(right_N.sum()), interval)


def group_accuracy(
    prediction_N: Ints, gold_N: Ints, groups: Sequence[str | None], cluster_N: Ints | None = None
) -> dict[str, Accuracy]:
    """Accuracy of each named group, names sorted; examples whose group is None belong to none."""
    names = sorted({name for name in groups if name is not None})
    return {name: _within(prediction_N, gold_N, in_groups(groups, [name]), cluster_N) for name in names}


def in_groups(groups: Sequence[str | None], names: Sequence[str]) -> Bools:
    """`[N]`: which examples belong to one of the named groups."""
    wanted = set(names)
    return np.array([name in wanted for name in groups], dtype=bool)


def _within(prediction_N: Ints, gold_N: Ints, mask_N: Bools, cluster_N: Ints | None) -> Accuracy:
    return accuracy(prediction_N[mask_N], gold_N[mask_N], None if cluster_N is None else cluster_N[mask_N])


def worst_group(groups: Mapping[str, Accuracy]) -> str | None:
    """Name of the group with the lowest accuracy (the first by name on a tie), None without groups."""
    return min(groups, key=lambda name: (groups[name].value, name), default=None)


def pooled(groups: Mapping[str, Accuracy], names: Sequence[str]) -> Accuracy | None:
    """The examples of several groups as one; None if none of them is present."""
    parts = [groups[name] for name in names if name in groups]
    return Accuracy(sum(part.n for part in parts), sum(part.correct for part in parts)) if parts else None


def macro_f1(prediction_N: Ints, gold_N: Ints, classes: int) -> float:
    """Mean of the labels' F1, each label the same weight; a label neither right nor answered anywhere has no part."""
    right_C = np.bincount(gold_N[prediction_N == gold_N], minlength=classes)
    total_C = np.bincount(gold_N, minlength=classes) + np.bincount(prediction_N, minlength=classes)
    seen_C = total_C > 0
    return float((2 * right_C[seen_C] / total_C[seen_C]).mean())


def consistency(right_N: Bools, cluster_N: Ints) -> Accuracy | None:
    """Share of clusters of at least two examples in which every example is right; None if there is no such cluster.

    The clusters are what is counted, so the interval is Wilson's.
    """
    index_N, clusters = compact(cluster_N)
    size_K = np.bincount(index_N, minlength=clusters)
    right_K = np.bincount(index_N, weights=right_N, minlength=clusters) == size_K
    several_K = size_K > 1
    return Accuracy(int(several_K.sum()), int(right_K[several_K].sum())) if several_K.any() else None


def majority_accuracy(gold_N: Ints) -> float:
    """Accuracy of always answering the suite's most frequent label: the floor under every number."""
    return float(np.bincount(gold_N).max() / len(gold_N))


@dataclass(frozen=True)
class Judged:
    """Predictions beside what was right: `prediction_N` and `gold_N` index `labels`, `probabilities_NC` are merged.

    `clusters` names the cluster of each example; empty where every example stands for itself.
    """

    labels: tuple[str, ...]
    gold_N: Ints
    prediction_N: Ints
    probabilities_NC: Floats
    groups: tuple[str | None, ...]
    clusters: tuple[str, ...] = ()


def check(judged: Judged) -> None:
    """ValueError for arrays that do not belong together or are not probabilities."""
    n, classes = len(judged.gold_N), len(judged.labels)
    if judged.probabilities_NC.shape != (n, classes) or len(judged.prediction_N) != n or len(judged.groups) != n:
        raise ValueError(f"probabilities {judged.probabilities_NC.shape} do not fit {n} labels of {classes} kinds")
    if not np.allclose(judged.probabilities_NC.sum(1), 1, atol=1e-4) or (judged.probabilities_NC < 0).any():
        raise ValueError("probabilities are negative, NaN, or do not sum to one")
    for name, index_N in (("gold_N", judged.gold_N), ("prediction_N", judged.prediction_N)):
        if n == 0 or index_N.min() < 0 or index_N.max() >= classes:
            raise ValueError(f"{name} is empty or holds an index outside 0..{classes - 1}")
    if len(judged.clusters) not in (0, n):
        raise ValueError(f"{len(judged.clusters)} clusters for {n} examples; expected one each, or none at all")


def real_clusters(clusters: Sequence[str | None]) -> Ints | None:
    """Cluster numbers `[N]` where some cluster holds several examples, else None."""
    if not clusters:
        return None
    index_N = cluster_index(clusters)
    return index_N if index_N.max() + 1 < len(index_N) else None


def score(
    judged: Judged,
    aligned: Sequence[str] = (),
    conflicting: Sequence[str] = (),
    with_consistency: bool = False,
    invariant_N: Bools | None = None,
) -> dict[str, Any]:
    """Every number of a results file; `aligned` and `conflicting` name the groups whose difference is the gap.

    Groups that the examples do not hold count as absent: a side without examples leaves the gap None. Where clusters
    hold several examples, intervals know of them (`scores/shares.py`); `with_consistency` counts the clusters that
    are right throughout. `invariant_N`: of a suite whose clusters differ in nothing that matters, the examples of which
    the counterfactual gap says how far scores move within a cluster.
    """
    check(judged)
    cluster_N = real_clusters(judged.clusters)
    right_N = judged.prediction_N == judged.gold_N
    groups = group_accuracy(judged.prediction_N, judged.gold_N, judged.groups, cluster_N)
    worst = worst_group(groups)
    confidence_N = judged.probabilities_NC[np.arange(len(right_N)), judged.prediction_N]
    held = consistency(right_N, cluster_N) if with_consistency and cluster_N is not None else None
    moved = None
    if invariant_N is not None and cluster_N is not None:
        p_NC, gold_N = judged.probabilities_NC[invariant_N], judged.gold_N[invariant_N]
        moved = counterfactual_gap(p_NC, gold_N, cluster_N[invariant_N])
    answers = (judged.prediction_N, judged.gold_N)
    adjusted = adjusted_accuracy(*answers, judged.groups, cluster_N)
    return {
        **accuracy(*answers, cluster_N).as_dict(),
        "majority_accuracy": majority_accuracy(judged.gold_N),
        "macro_f1": macro_f1(*answers, len(judged.labels)),
        "balanced_accuracy": balanced_accuracy(*answers, cluster_N).as_dict(),
        "adjusted_accuracy": None if adjusted is None else adjusted.as_dict(),
        "groups": {name: group.as_dict() for name, group in groups.items()},
        "worst_group": None if worst is None else {"name": worst, "accuracy": groups[worst].value},
        **_gap(judged, right_N, cluster_N, (aligned, conflicting)),
        "clusters": None if cluster_N is None else compact(cluster_N)[1],
        "consistency": None if held is None else held.as_dict(),
        "counterfactual_gap": None if moved is None else moved.as_dict(),
        "ece": expected_calibration_error(confidence_N, right_N),
        "brier": brier(judged.probabilities_NC, judged.gold_N),
        "reliability": reliability(confidence_N, right_N),
        "labels": _label_counts(judged),
    }


def _gap(
    judged: Judged, right_N: Bools, cluster_N: Ints | None, sides: tuple[Sequence[str], Sequence[str]]
) -> dict[str, Any]:
    first_N, second_N = (in_groups(judged.groups, names) for names in sides)
    if not (first_N.any() and second_N.any()):
        return {"gap": None, "gap_ci95": None, "gap_groups": None, "aligned": None, "conflicting": None}
    aligned, conflicting = (
        _within(judged.prediction_N, judged.gold_N, mask_N, cluster_N) for mask_N in (first_N, second_N)
    )
    return {
        "gap": aligned.value - conflicting.value,
        "gap_ci95": list(gap_interval(right_N, first_N, second_N, cluster_N)),
        "gap_groups": {"aligned": list(sides[0]), "conflicting": list(sides[1])},
        "aligned": aligned.as_dict(),
        "conflicting": conflicting.as_dict(),
    }


def _label_counts(judged: Judged) -> dict[str, dict[str, int]]:
    """How often a label is right and how often it is answered: a model with one answer for everything shows here."""
    return {
        name: {"n": int((judged.gold_N == i).sum()), "predicted": int((judged.prediction_N == i).sum())}
        for i, name in enumerate(judged.labels)
    }
