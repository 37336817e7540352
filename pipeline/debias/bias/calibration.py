"""Temperature of a bias model's probabilities (Guo et al., ICML 2017, arXiv 1706.04599). N examples, C labels."""

import numpy as np
from numpy.typing import NDArray

from debias.bias.base import Floats

SHARPEST = 20.0  # of 1 / temperature: sharper is a bias model that is never wrong, which the floor has to bound


def calibrated(log_p_NC: Floats, label_N: NDArray[np.int64]) -> Floats:
    """`log softmax(log_p / T)` with the one temperature under which these labels are likeliest.

    The likelihood is concave in 1 / T, whose slope changes sign once: found by halving. Where the labels say nothing
    for the probabilities, 1 / T is 0 and every label is as likely as any other.
    """
    rows = np.arange(len(label_N))
    low, high = 0.0, SHARPEST
    for _ in range(60):
        middle = (low + high) / 2
        p_NC = np.exp(_normalised(middle * log_p_NC))
        slope = (log_p_NC[rows, label_N] - (p_NC * log_p_NC).sum(axis=1)).mean()
        low, high = (middle, high) if slope > 0 else (low, middle)
    return _normalised((low + high) / 2 * log_p_NC)


def _normalised(log_p_NC: Floats) -> Floats:
    whole: Floats = log_p_NC - np.logaddexp.reduce(log_p_NC, axis=1, keepdims=True)
    return whole
