"""One temperature for what a bias model said out of fold, so that 0.8 means right four times in five.

Shapes: N examples, C labels.
"""

import numpy as np

from debias.bias.base import Floats, Ints, floored

COLDEST, HOTTEST = 0.05, 20.0
_HALVINGS = 60


def calibrate(log_p_NC: Floats, label_N: Ints) -> Floats:
    """`softmax(log p / T)` as logarithms, T from `temperature` of the first N rows, whose labels are given.

    Source: temperature scaling, Guo et al., ICML 2017, arXiv 1706.04599; here on out-of-fold predictions.
    """
    return log_softmax(log_p_NC / temperature(log_p_NC[: len(label_N)], label_N))


def temperature(log_p_NC: Floats, label_N: Ints) -> float:
    """The T between COLDEST and HOTTEST with the least negative log-likelihood of `softmax(log p / T)`.

    That is convex in 1 / T, so its slope is halved in on. 1 where there are no examples.
    """
    if not len(label_N):
        return 1.0
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(_HALVINGS):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if _slope(middle, log_p_NC, label_N) > 0 else (middle, high)
    return float(1 / np.sqrt(low * high))


def log_softmax(logits_NC: Floats) -> Floats:
    """Logarithms of rows that sum to 1."""
    below_NC = logits_NC - logits_NC.max(axis=1, keepdims=True)
    logs: Floats = below_NC - np.log(np.exp(below_NC).sum(axis=1, keepdims=True))
    return logs


def _slope(sharpness: float, log_p_NC: Floats, label_N: Ints) -> float:
    """The derivative of the mean negative log-likelihood by 1 / T."""
    p_NC = np.exp(log_softmax(sharpness * log_p_NC))
    own_N = log_p_NC[np.arange(len(label_N)), label_N]
    return float(((p_NC * log_p_NC).sum(axis=1) - own_N).mean())


def out_of_fold(p_NC: Floats, label_N: Ints, *, calibrated: bool) -> Floats:
    """Out-of-fold probabilities as a bias model says them: floored logarithms, calibrated where that is asked for.

    Rows beyond the N labels are of examples that nothing is fitted on: their temperature is that of the first N.
    """
    log_p_NC = floored(p_NC)
    return floored(np.exp(calibrate(log_p_NC, label_N))) if calibrated else log_p_NC
