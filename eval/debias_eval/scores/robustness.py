"""Effective robustness: how far a model is above what its in-distribution accuracy lets one expect elsewhere."""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit

# An accuracy of 0 or 1 has no logit; a model that is right on all of a finite test set is taken for right on 99.9 %.
_END = 1e-3


def effective_robustness(
    id_accuracy: float, ood_accuracy: float, baseline_points: Sequence[tuple[float, float]]
) -> float | None:
    """Accuracy on the shifted suite minus what the line through the baselines gives (Taori et al., NeurIPS 2020).

    `baseline_points` are (in-distribution, shifted) accuracies of plainly trained models; the line is a least-squares
    fit on the logit scale. None with fewer than three baselines, or when all have the same in-distribution accuracy.
    """
    line = fitted_line(baseline_points)
    if line is None:
        return None
    slope, intercept = line
    return float(ood_accuracy - expit(intercept + slope * _logit(id_accuracy)))


def fitted_line(baseline_points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """(slope, intercept) on the logit scale, None where three baselines of differing accuracy are not to be had."""
    points = np.array([(_logit(x), _logit(y)) for x, y in baseline_points]).reshape(-1, 2)
    if len(points) < 3 or np.ptp(points[:, 0]) < 1e-9:
        return None
    slope, intercept = np.polyfit(points[:, 0], points[:, 1], deg=1)
    return float(slope), float(intercept)


def _logit(share: float) -> float:
    if not 0 <= share <= 1:
        raise ValueError(f"an accuracy is {share}; expected a share from 0 to 1")
    return float(logit(min(max(share, _END), 1 - _END)))
