"""Measures made of the accuracies on parts of the examples, and how sure the examples make a difference in one.

Shapes: P parts, R runs (those of the first method, then those of the second), N examples, K clusters, B replicates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from debias_eval.comparing.answers import Answers, Counts, Part
from debias_eval.scores.intervals import FEW_CLUSTERS, Bools, Floats, Ints, Variance, compact

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
    """A measure over samples of clusters, the variance of the difference, and the least p that there can be.

    The variance is None where a part holds no example: nothing is known of the difference then.
    """

    values_BR: Floats
    of_examples: Variance | None
    least_p: float = 0.0


def sampled(answers: Answers, measure: Measure) -> Sampled:
    """What samples of clusters say of a measure, part by part.

    The variance that a part causes is known as well as the part has clusters, so each has its own degrees of freedom
    (Satterthwaite). Fewer than ten clusters that are each right or wrong as one, as single examples are, show less
    variance than there is, and so do those of a part on which the difference, or one method on them, is the same
    throughout: such a part gets two clusters more, one for each method (Bonett and Price, J. Educ. Behav. Stat. 37,
    2012, add them to the discordant pairs). p is then no less than that of a sign test in which all clusters that
    differ point one way. Clusters of many examples are shares that vary by little: for those t is enough, and a cluster
    that is wholly right is no draw of theirs. A lone part that differs by the same throughout is left as it is.
    """
    sides_P = [_sides_of(answers, part) for part in measure.parts]
    if not all(len(side.moved_K) for side in sides_P):
        return Sampled(measure.of_parts(measure.shares(answers.resampled)), None)
    few_P = np.array([side.says_little for side in sides_P])
    if len(few_P) == 1 and _constant(sides_P[0].moved_K):
        few_P[:] = False
    few = [part for part, is_few in zip(measure.parts, few_P, strict=True) if is_few]
    shares_BRP = measure.shares(answers.guarded(few) if few else answers.resampled)
    values_BR = measure.of_parts(shares_BRP)
    clusters_P = np.array([len(side.moved_K) for side in sides_P])
    variance = _variance(answers.firsts, values_BR, _pulls(answers.firsts, measure, shares_BRP), clusters_P, few_P)
    moved = sum(int((abs(side.moved_K) > SAME).sum()) for side in sides_P)
    return Sampled(values_BR, variance, min(1.0, 2.0 ** (1 - moved)) if few else 0.0)


@dataclass(frozen=True)
class _Sides:
    """How often each method is right in each cluster of a part; `as_one`: in every run all of a cluster or none."""

    first_K: Floats
    second_K: Floats
    as_one: bool

    @property
    def moved_K(self) -> Floats:
        return self.second_K - self.first_K

    @property
    def says_little(self) -> bool:
        """Whether another draw of the clusters may well lie farther off than these lie from each other."""
        alike = _constant(self.first_K) or _constant(self.second_K)
        return _constant(self.moved_K) or (self.as_one and (alike or len(self.moved_K) < FEW_CLUSTERS))


def _constant(values_K: Floats) -> bool:
    return float(np.ptp(values_K)) < SAME


def _sides_of(answers: Answers, part: Part) -> _Sides:
    mask_N, firsts = answers.within(part), answers.firsts
    share_RK: Floats | Bools = answers.right_RN[:, mask_N]
    as_one = answers.cluster_N is None
    if answers.cluster_N is not None:
        index_N, clusters = compact(answers.cluster_N[mask_N])
        right_RK = np.stack([np.bincount(index_N, weights=right_N, minlength=clusters) for right_N in share_RK])
        size_K = np.bincount(index_N, minlength=clusters)
        share_RK, as_one = right_RK / size_K, bool(((right_RK == 0) | (right_RK == size_K)).all())
    return _Sides(share_RK[:firsts].mean(axis=0), share_RK[firsts:].mean(axis=0), as_one)


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
