"""Measures made of the accuracies on parts of the examples, and how sure the examples make a difference in one.

Shapes: P parts, R runs (those of the first method, then those of the second), N examples, K clusters, B replicates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from debias_eval.comparing.answers import Answers, Counts
from debias_eval.scores.intervals import FEW_CLUSTERS, Bools, Floats, Ints, Variance, compact

Part = Sequence[str | None] | None
SAME = 1e-9  # shares are means of zeros and ones


@dataclass(frozen=True)
class Measure:
    """`parts`: the groups that each part is made of (None: all examples). `of_parts`: `[..., P]` -> `[...]`.

    `weights`: `[B, R, P]` -> `[R, P]`, how much of each part the measure of a run is.
    """

    parts: tuple[Part, ...]
    of_parts: Callable[[Floats], Floats]
    weights: Callable[[Floats], Floats]

    def shares(self, counts: Counts) -> Floats:
        """Accuracies `[B, R, P]`; NaN where a replicate holds none of a part."""
        return np.stack([counts.share(part) for part in self.parts], axis=-1)


def share_of(part: Part) -> Measure:
    """Accuracy over one part."""
    return Measure((part,), lambda shares: np.asarray(shares[..., 0]), lambda shares: np.ones(shares.shape[1:]))


def gap_between(first: Sequence[str], second: Sequence[str]) -> Measure:
    """Accuracy over the first groups minus that over the second."""
    return Measure(
        (first, second),
        lambda shares: np.asarray(shares[..., 0] - shares[..., 1]),
        lambda shares: np.broadcast_to([1.0, -1.0], shares.shape[1:]),
    )


def worst_of(groups: Sequence[str]) -> Measure:
    """Each run's accuracy on its own worst group, which may be another one in another sample."""
    return Measure(_each(groups), lambda shares: np.asarray(np.nanmin(shares, axis=-1)), _how_often_worst)


def mean_of(groups: Sequence[str | None]) -> Measure:
    """The mean of the accuracies on the groups; a replicate without one has one less."""
    return Measure(
        _each(groups),
        lambda shares: np.asarray(np.nanmean(shares, axis=-1)),
        lambda shares: np.full(shares.shape[1:], 1 / shares.shape[-1]),
    )


def _each(groups: Sequence[str | None]) -> tuple[Part, ...]:
    return tuple((name,) for name in groups)


def _how_often_worst(shares_BRP: Floats) -> Floats:
    worst_BR = np.where(np.isnan(shares_BRP), np.inf, shares_BRP).argmin(axis=-1)
    return np.stack([(worst_BR == part).mean(axis=0) for part in range(shares_BRP.shape[-1])], axis=-1)


@dataclass(frozen=True)
class Sampled:
    """A measure over samples of clusters, the variance of the difference, and the least p that there can be."""

    values_BR: Floats
    of_examples: Variance
    least_p: float = 0.0


def sampled(answers: Answers, measure: Measure) -> Sampled:
    """What samples of clusters say of a measure, part by part.

    The variance that a part causes is known as well as the part has clusters, so each has its own degrees of freedom
    (Satterthwaite). A part of fewer than ten clusters shows less variance than there is, and so does one on which a
    method, or the difference, is the same throughout: it gets two clusters more, one for each method (Bonett and Price,
    J. Educ. Behav. Stat. 37, 2012, add them to the discordant pairs). p is then no less than that of a sign test in
    which all clusters that differ point one way. A lone part that differs by the same throughout is left as it is.
    """
    sides_PK = [_shares_of(answers, part) for part in measure.parts]
    few_P = np.array([_says_little(*sides) for sides in sides_PK])
    if len(few_P) == 1 and np.ptp(sides_PK[0][1] - sides_PK[0][0]) < SAME:
        few_P[:] = False
    if not few_P.any():
        shares_BRP = measure.shares(answers.resampled)
    else:
        counted, parts = _by_part(answers, measure.parts)
        shares_BRP = replace(measure, parts=parts).shares(counted.guarded([str(i) for i in np.flatnonzero(few_P)]))
    values_BR = measure.of_parts(shares_BRP)
    clusters_P = np.array([len(first_K) for first_K, _ in sides_PK])
    variance = _variance(answers.firsts, values_BR, _pulls(answers.firsts, measure, shares_BRP), clusters_P, few_P)
    moved = sum(int((abs(second_K - first_K) > SAME).sum()) for first_K, second_K in sides_PK)
    return Sampled(values_BR, variance, min(1.0, 2.0 ** (1 - moved)) if few_P.any() else 0.0)


def _shares_of(answers: Answers, part: Part) -> tuple[Floats, Floats]:
    """How often each method is right in each cluster of a part, two times `[K]`."""
    mask_N = answers.within(part)
    sides = [side_SN[:, mask_N].mean(axis=0) for side_SN in (answers.first_SN, answers.second_SN)]
    if answers.cluster_N is None:
        return sides[0], sides[1]
    index_N, _ = compact(answers.cluster_N[mask_N])
    size_K = np.bincount(index_N)
    return np.bincount(index_N, weights=sides[0]) / size_K, np.bincount(index_N, weights=sides[1]) / size_K


def _says_little(first_K: Floats, second_K: Floats) -> bool:
    return len(first_K) < FEW_CLUSTERS or any(
        float(np.ptp(one)) < SAME for one in (first_K, second_K, second_K - first_K)
    )


def _by_part(answers: Answers, parts: Sequence[Part]) -> tuple[Answers, tuple[Part, ...]]:
    """The same answers with the parts as groups, called 0, 1, ..., and what each part is then."""
    groups: list[str | None] = [None] * len(answers.groups)
    for i, part in enumerate(parts):
        for n in np.flatnonzero(answers.within(part)):
            groups[n] = str(i)
    return replace(answers, groups=tuple(groups)), tuple((str(i),) for i in range(len(parts)))


def _pulls(firsts: int, measure: Measure, shares_BRP: Floats) -> Floats:
    """What each part adds to the difference between the methods in each sample, `[B, P]`."""
    seconds = shares_BRP.shape[1] - firsts
    side_R = np.array([-1 / firsts] * firsts + [1 / seconds] * seconds)
    return np.asarray((shares_BRP * measure.weights(shares_BRP) * side_R[:, None]).sum(axis=1))


def _variance(firsts: int, values_BR: Floats, pulls_BP: Floats, clusters_P: Ints, few_P: Bools) -> Variance:
    """The variance over samples, times K / (K - 1) for the K clusters of each part, and its degrees of freedom."""
    part_P = np.nanvar(pulls_BP, axis=0, ddof=1)
    drawn_P = np.maximum(clusters_P + 2 * few_P, 2)
    whole = float(np.nanvar(values_BR[:, firsts:].mean(axis=1) - values_BR[:, :firsts].mean(axis=1), ddof=1))
    known_P = part_P * drawn_P / (drawn_P - 1)
    freedom_P = np.maximum(clusters_P - 1, 1)
    squares = float((known_P**2 / freedom_P).sum())
    freedom = float(known_P.sum() ** 2 / squares) if squares else float(freedom_P.min())
    variance = whole + float((part_P / (drawn_P - 1)).sum())
    return Variance(variance, variance, freedom)
