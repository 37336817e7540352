"""Does a model know when it is wrong: reliability, calibration error, Brier score, and all of it under a shift.

Shapes: N examples, C labels. A confidence is the probability of the predicted label.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from debias_eval.scores.intervals import Bools, Floats, Ints

BINS = 15
_TINY = 1e-12  # a stored probability of 0 must not make a logarithm infinite


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


@dataclass(frozen=True)
class Probabilities:
    """Predicted probabilities `[N, C]`, rows sum to one, beside the right labels `[N]`."""

    probabilities_NC: Floats
    gold_N: Ints

    def error(self, temperature: float = 1.0) -> float:
        """Expected calibration error, probabilities first softened (above 1) or sharpened by `temperature`."""
        softened_NC = _softened(self.probabilities_NC, temperature)
        return expected_calibration_error(softened_NC.max(axis=1), softened_NC.argmax(axis=1) == self.gold_N)


@dataclass(frozen=True)
class CalibrationShift:
    """Calibration error at home and shifted, as the model is and with the one temperature that suits it at home."""

    home: float
    shifted: float
    temperature: float
    home_scaled: float
    shifted_scaled: float


def calibration_under_shift(home: Probabilities, shifted: Probabilities) -> CalibrationShift:
    """What happens to calibration under a shift, recalibrated on in-distribution data alone (Ovadia et al., 2019)."""
    best = fitted_temperature(home)
    return CalibrationShift(home.error(), shifted.error(), best, home.error(best), shifted.error(best))


def fitted_temperature(examples: Probabilities) -> float:
    """The temperature with the least log loss on the examples (Guo et al., ICML 2017), between 0.05 and 20."""
    rows = np.arange(len(examples.gold_N))

    def log_loss(log_temperature: float) -> float:
        softened_NC = _softened(examples.probabilities_NC, float(np.exp(log_temperature)))
        return float(-np.log(np.maximum(softened_NC[rows, examples.gold_N], _TINY)).mean())

    found = minimize_scalar(log_loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def _softened(probabilities_NC: Floats, temperature: float) -> Floats:
    logs_NC = np.log(np.maximum(probabilities_NC, _TINY)) / temperature
    powers_NC = np.exp(logs_NC - logs_NC.max(axis=1, keepdims=True))
    return np.asarray(powers_NC / powers_NC.sum(axis=1, keepdims=True))
