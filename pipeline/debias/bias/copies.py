"""How much rows of equal texts count where it is asked how sure something is: copies make nothing surer.

Shapes: N examples, T texts that several rows have, K cells of a text and a label that occur together, R agreements.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from debias.bias.base import Floats, Ints, has_few_texts, keys_of, labels_of
from debias.data.examples import Example

# How far the labels of a text may agree beyond chance; near 0 as it takes of a text that thousands of rows have.
AGREEMENTS: Floats = np.array([0.0, 0.001, 0.003, 0.01, 0.03, *(tenth / 10 for tenth in range(1, 11))])
_ROUNDS = 1000  # of expectation and maximisation, at most
_STILL = 1e-13  # a change of a share that is none


def weights_of_copies(examples: Sequence[Example], place: int | None = None) -> Floats | None:
    """How much each row [N] counts where it is asked how sure something is; None where no two have the same texts (or
    such as differ in a space or a capital: `keys_of`).

    `place`: what is asked is of one field alone, so that rows with the same text there are copies, whatever stands
    beside it (one hypothesis beside many premises). A field with few texts (an instruction, a topic) has no copies.

    Rows of m equal texts count 1 / (1 + (m - 1) r) each (the design effect of clusters: Kish, Survey Sampling, Wiley
    1965), r being how far the labels of this text agree beyond chance: a text that was copied m times with its label
    is one row, labels that were given to equal texts one by one are m. Two labels hardly tell which of these a text
    is, and a hundred do, so that r is what its own labels say in the light of those of all other texts: its mean given
    both (`agreements_of`). Many texts that were labelled by chance make no rows of one that was copied a hundred times.
    """
    texts: dict[tuple[str, ...], int] = {}
    keys = (keys_of(one.texts if place is None else one.texts[place : place + 1]) for one in examples)
    text_N = np.array([texts.setdefault(key, len(texts)) for key in keys], dtype=np.int64)
    if len(texts) == len(examples) or (place is not None and has_few_texts(examples, place)):
        return None
    label_N, size_T = labels_of(examples), np.bincount(text_N)
    several_T = np.flatnonzero(size_T > 1)
    at_T = np.zeros(len(size_T), dtype=np.int64)
    at_T[several_T] = np.arange(len(several_T))
    several_N = size_T[text_N] > 1
    agreed_T = np.zeros(len(size_T))
    agreed_T[several_T] = agreements_of(at_T[text_N[several_N]], label_N[several_N], np.bincount(label_N))
    weight_N: Floats = 1 / (1 + (size_T[text_N] - 1) * agreed_T[text_N])
    return weight_N


def agreements_of(text_N: Ints, label_N: Ints, size_C: Ints) -> Floats:
    """How far the labels of each text [T] agree beyond chance, 0 to 1, of all rows of these texts.

    A text has an agreement r of AGREEMENTS; given it, its labels are Dirichlet-multinomial about the shares of all
    labels, with r for the correlation of two of them. How often each r occurs among texts is what makes the labels
    likeliest (Laird, JASA 73, 1978, by expectation and maximisation), and a text's own is the mean of r given its
    labels. `size_C`: how many rows have each label.
    """
    logs_TR = _log_likelihoods(text_N, label_N, size_C / size_C.sum())
    likely_TR = np.exp(logs_TR - logs_TR.max(axis=1, keepdims=True))
    likely_PR, pattern_T, times_P = np.unique(likely_TR, axis=0, return_inverse=True, return_counts=True)
    share_R = np.full(len(AGREEMENTS), 1 / len(AGREEMENTS))
    for _ in range(_ROUNDS):
        before = share_R
        given_PR = _given(likely_PR, share_R)
        share_R = times_P @ given_PR / times_P.sum()
        if float(np.abs(share_R - before).max()) < _STILL:
            break
    found: Floats = (_given(likely_PR, share_R) @ AGREEMENTS)[pattern_T.ravel()]
    return found


def _given(likely_PR: Floats, share_R: Floats) -> Floats:
    both_PR = likely_PR * share_R
    found: Floats = both_PR / both_PR.sum(axis=1, keepdims=True)
    return found


def _log_likelihoods(text_N: Ints, label_N: Ints, share_C: Floats) -> Floats:
    """Of the labels of each text with each agreement, but for what is the same with all of them, [T, R]."""
    from scipy.special import gammaln

    size_T = np.bincount(text_N).astype(np.float64)
    cell_K, count_K = np.unique(text_N * len(share_C) + label_N, return_counts=True)
    text_K, share_K = cell_K // len(share_C), share_C[cell_K % len(share_C)]

    def summed(value_K: NDArray[np.float64]) -> Floats:
        found: Floats = np.bincount(text_K, weights=value_K).astype(np.float64)
        return found

    columns = []
    for agreed in AGREEMENTS:
        if agreed == 0:  # one by one
            columns.append(summed(count_K * np.log(share_K)))
        elif agreed == 1:  # one label for all
            columns.append(np.where(np.bincount(text_K) == 1, summed(np.log(share_K)), -np.inf))
        else:
            held = (1 - agreed) / agreed
            rising_K = gammaln(count_K + held * share_K) - gammaln(held * share_K)
            columns.append(summed(rising_K) - (gammaln(size_T + held) - gammaln(held)))
    return np.stack(columns, axis=1)


def weights_of_repeats(examples: Sequence[Example], places: Sequence[int]) -> Floats | None:
    """The least that each row [N] counts as a copy, or as one of a text of any of these fields beside others."""
    return least_of(weights_of_copies(examples), *(weights_of_copies(examples, place) for place in places))


def least_of(*weights: Floats | None) -> Floats | None:
    """The least that each row [N] counts by any of these; None for all alike."""
    given = [weight_N for weight_N in weights if weight_N is not None]
    return np.minimum.reduce(given) if given else None
