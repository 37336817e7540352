"""Numbers from predictions: pure functions on arrays, no torch.

Shapes: N examples, M labels of the model, C labels of the suite. Probabilities are float64 and rows sum to one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from debias.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Accuracy:
    """`correct` right answers out of `n`, and the 95 % interval of their share."""

    n: int
    correct: int

    @property
    def value(self) -> float:
        return self.correct / self.n

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson(self.correct, self.n)

    def as_dict(self) -> dict[str, Any]:
        return {"n": self.n, "accuracy": self.value, "ci95": list(self.ci95)}


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a share (Wilson, JASA 22, 1927): inside [0, 1], usable for small n and for 0 or n right."""
    if not 0 <= correct <= n or n == 0:
        raise ValueError(f"correct is {correct} and n is {n}; expected 0 <= correct <= n and n > 0")
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding must not push the interval off the share at the two ends, where they coincide by algebra.
    return (0.0 if correct == 0 else max(0.0, centre - half)), (1.0 if correct == n else min(1.0, centre + half))


def newcombe(first: Accuracy, second: Accuracy) -> tuple[float, float]:
    """95 % interval of `first - second`, two independent shares (Newcombe, Stat. Med. 17, 1998, method 10)."""
    (low1, high1), (low2, high2) = first.ci95, second.ci95
    difference = first.value - second.value
    below = sqrt((first.value - low1) ** 2 + (high2 - second.value) ** 2)
    above = sqrt((high1 - first.value) ** 2 + (second.value - low2) ** 2)
    return max(-1.0, difference - below), min(1.0, difference + above)


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


def accuracy(prediction_N: Ints, gold_N: Ints) -> Accuracy:
    """Share of right answers; an empty input is a ValueError."""
    if len(prediction_N) != len(gold_N) or len(gold_N) == 0:
        raise ValueError(f"{len(prediction_N)} predictions for {len(gold_N)} labels; expected the same number, over 0")
    return Accuracy(len(gold_N), int((prediction_N == gold_N).sum()))


def group_accuracy(prediction_N: Ints, gold_N: Ints, groups: Sequence[str | None]) -> dict[str, Accuracy]:
    """Accuracy of each named group, names sorted; examples whose group is None belong to none."""
    group_N = np.array(["" if name is None else name for name in groups])
    named_N = np.array([name is not None for name in groups], dtype=bool)
    names = sorted({name for name in groups if name is not None})
    return {name: _within(prediction_N, gold_N, named_N & (group_N == name)) for name in names}


def _within(prediction_N: Ints, gold_N: Ints, mask_N: NDArray[np.bool_]) -> Accuracy:
    return accuracy(prediction_N[mask_N], gold_N[mask_N])


def worst_group(groups: Mapping[str, Accuracy]) -> str | None:
    """Name of the group with the lowest accuracy (the first by name on a tie), None without groups."""
    return min(groups, key=lambda name: (groups[name].value, name), default=None)


def pooled(groups: Mapping[str, Accuracy], names: Sequence[str]) -> Accuracy | None:
    """The examples of several groups as one; None if none of them is present."""
    parts = [groups[name] for name in names if name in groups]
    return Accuracy(sum(part.n for part in parts), sum(part.correct for part in parts)) if parts else None


def expected_calibration_error(confidence_N: Floats, correct_N: NDArray[np.bool_], bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins, weighted by size (Guo et al., ICML 2017, eq. 3).

    Bins are open below and closed above; a confidence of exactly 0 falls in the first.
    """
    inner_edges = np.linspace(0, 1, bins + 1)[1:-1]
    bin_N = np.searchsorted(inner_edges, confidence_N, side="left")
    difference = np.bincount(bin_N, weights=confidence_N - correct_N, minlength=bins)
    return float(np.abs(difference).sum() / len(confidence_N))


def brier(probabilities_NC: Floats, gold_N: Ints) -> float:
    """Mean squared distance to the one-hot label, summed over labels: 0 (sure and right) to 2 (Brier, 1950)."""
    one_hot_NC = np.eye(probabilities_NC.shape[1])[gold_N]
    return float(((probabilities_NC - one_hot_NC) ** 2).sum(1).mean())


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


def score(judged: Judged, aligned: Sequence[str] = (), conflicting: Sequence[str] = ()) -> dict[str, Any]:
    """Every number of a results file; `aligned` and `conflicting` name the groups whose difference is the gap.

    Groups that the examples do not hold count as absent: a side without examples leaves the gap None.
    """
    check(judged)
    groups = group_accuracy(judged.prediction_N, judged.gold_N, judged.groups)
    worst = worst_group(groups)
    correct_N = judged.prediction_N == judged.gold_N
    confidence_N = judged.probabilities_NC[np.arange(len(correct_N)), judged.prediction_N]
    return {
        **accuracy(judged.prediction_N, judged.gold_N).as_dict(),
        "majority_accuracy": majority_accuracy(judged.gold_N),
        "groups": {name: group.as_dict() for name, group in groups.items()},
        "worst_group": None if worst is None else {"name": worst, "accuracy": groups[worst].value},
        **_gap(pooled(groups, aligned), pooled(groups, conflicting)),
        "ece": expected_calibration_error(confidence_N, correct_N),
        "brier": brier(judged.probabilities_NC, judged.gold_N),
        "labels": _label_counts(judged),
    }


def _gap(aligned: Accuracy | None, conflicting: Accuracy | None) -> dict[str, Any]:
    if aligned is None or conflicting is None:
        return {"gap": None, "gap_ci95": None, "aligned": None, "conflicting": None}
    return {
        "gap": aligned.value - conflicting.value,
        "gap_ci95": list(newcombe(aligned, conflicting)),
        "aligned": aligned.as_dict(),
        "conflicting": conflicting.as_dict(),
    }


def _label_counts(judged: Judged) -> dict[str, dict[str, int]]:
    """How often a label is right and how often it is answered: a model with one answer for everything shows here."""
    return {
        name: {"n": int((judged.gold_N == i).sum()), "predicted": int((judged.prediction_N == i).sum())}
        for i, name in enumerate(judged.labels)
    }
