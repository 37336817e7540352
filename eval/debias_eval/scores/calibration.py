"""Does a model know when it is wrong: reliability, calibration error, Brier score.

Shapes: N examples, C labels. A confidence is the probability of the predicted label.
"""

from typing import Any

import numpy as np

from debias_eval.scores.intervals import Bools, Floats, Ints

BINS = 15


def reliability(confidence_N: Floats, right_N: Bools, bins: int = BINS) -> list[dict[str, Any]]:
    """Equal-width bins of confidence with how many predictions each holds, their mean confidence and their accuracy.

    Bins are open below and closed above; a confidence of exactly 0 falls in the first. An empty bin has no means.
    """
    edges = np.linspace(0, 1, bins + 1)
    bin_N = np.searchsorted(edges[1:-1], confidence_N, side="left")
    sums = [np.bincount(bin_N, weights=weights_N, minlength=bins) for weights_N in (None, confidence_N, right_N)]
    return [_bin(edges[i : i + 2], *(float(column[i]) for column in sums)) for i in range(bins)]


def _bin(edges: Floats, n: float, confidence: float, right: float) -> dict[str, Any]:
    means = (min(1.0, confidence / n), right / n) if n else (None, None)  # a mean of ones can round past one
    return {"low": float(edges[0]), "high": float(edges[1]), "n": int(n), "confidence": means[0], "accuracy": means[1]}


def expected_calibration_error(confidence_N: Floats, correct_N: Bools, bins: int = BINS) -> float:
    """Mean gap between confidence and accuracy over the bins, weighted by size (Guo et al., ICML 2017, eq. 3)."""
    bars = [bar for bar in reliability(confidence_N, correct_N, bins) if bar["n"]]
    return float(sum(bar["n"] * abs(bar["confidence"] - bar["accuracy"]) for bar in bars) / len(confidence_N))


def brier(probabilities_NC: Floats, gold_N: Ints) -> float:
    """Mean squared distance to the one-hot label, summed over labels: 0 (sure and right) to 2 (Brier, 1950)."""
    one_hot_NC = np.eye(probabilities_NC.shape[1])[gold_N]
    return float(((probabilities_NC - one_hot_NC) ** 2).sum(1).mean())
