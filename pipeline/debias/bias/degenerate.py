"""Bias models that nothing can be learned with, or that are not what they seem: found before training.

Shapes: N examples, C labels.
"""

from dataclasses import dataclass

import numpy as np

from debias.bias.base import Floats, Ints

SURE = 0.99  # of the right label: with it a sample counts for next to nothing
SAME = 0.005  # how far apart probabilities of a label may be in a model that says the same of every example
MISCALIBRATED = 0.05  # calibration error beyond what the number of examples makes by itself
_BINS = 10


@dataclass(frozen=True)
class Fault:
    """What is wrong, in a line's end; `stops`: training would be meaningless, else it is a matter of judgement."""

    text: str
    stops: bool


def faults(log_p_NC: Floats, label_N: Ints) -> list[Fault]:
    """What is wrong with a bias model that says this of these examples; the worst first."""
    p_NC = np.exp(log_p_NC)
    own_N = p_NC[np.arange(len(label_N)), label_N]
    if (found := _stops(p_NC, own_N)) is not None:
        return [Fault(found, True)]
    right_N, most = p_NC.argmax(axis=1) == label_N, np.bincount(label_N).max() / len(label_N)
    found_too = []
    if right_N.mean() <= most:
        found_too.append("knows no more than the most frequent label: there is nothing to correct")
    if (own_N > SURE).mean() > SURE:
        told = f"{100 * (own_N > SURE).mean():.1f} % of the examples"
        found_too.append(f"is right with p > {SURE} on {told}: the others are all that is left to learn from")
    over = calibration_error(p_NC.max(axis=1), right_N)
    if over > MISCALIBRATED:
        found_too.append(f"is not calibrated: confidence and accuracy are {100 * over:.0f} points apart")
    return [Fault(text, False) for text in found_too]


def says_the_same(log_p_NC: Floats) -> bool:
    """Whether every example hears the same."""
    return bool(np.ptp(np.exp(log_p_NC), axis=0).max() < SAME)


def _stops(p_NC: Floats, own_N: Floats) -> str | None:
    if says_the_same(np.log(p_NC)):
        return f"says the same of every example, {[round(float(p), 3) for p in p_NC.mean(axis=0)]}: it sees no shortcut"
    if own_N.min() >= SURE:
        return f"is right on all {len(own_N)} examples with p of {SURE} or more: nothing is left to learn from"
    return None


def calibration_error(confidence_N: Floats, right_N: Floats) -> float:
    """The expected calibration error (Guo et al., ICML 2017, eq. 3), less what chance makes in so few examples."""
    bin_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    size_K = np.bincount(bin_N, minlength=_BINS)
    used_K = np.flatnonzero(size_K)
    mean_K = np.bincount(bin_N, weights=confidence_N, minlength=_BINS)[used_K] / size_K[used_K]
    right_K = np.bincount(bin_N, weights=right_N, minlength=_BINS)[used_K] / size_K[used_K]
    # The mean distance of a share of n from its expectation, were every bin calibrated: sqrt(2 p (1 - p) / (pi n)).
    chance_K = np.sqrt(2 * mean_K * (1 - mean_K) / (np.pi * size_K[used_K]))
    return float((size_K[used_K] * (np.abs(mean_K - right_K) - chance_K)).sum() / len(confidence_N))
