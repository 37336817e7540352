"""The differences between two methods' answers to the same examples, measure by measure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from debias_eval.comparing.answers import Answers
from debias_eval.comparing.measures import Measure, gap_between, mean_of, sampled, share_of, worst_of
from debias_eval.scores.intervals import (
    PAIRED_REPLICATES,
    Bools,
    Floats,
    Paired,
    cluster_bootstrap,
    mcnemar,
    paired_newcombe,
    two_level,
)

LEVEL = 0.05
MCNEMAR = "exact McNemar"


@dataclass(frozen=True)
class Difference:
    """`second - first` in one measure on one suite; shares, not percent.

    `primary` marks the measure that the verdict is about: accuracy where the shortcut fails if the suite has such
    groups, else accuracy. `p_holm` is adjusted over the suites: the primary measures as one family, every other measure
    as a family of its own. `clusters` counts what is independent; None where every example is.
    """

    suite: str
    measure: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float | None
    p_holm: float | None
    test: str
    n: int
    clusters: int | None
    note: str = ""
    primary: bool = False

    @property
    def clear(self) -> bool:
        """True if the interval leaves out 0 and the adjusted p is below 5 %."""
        return self.p_holm is not None and self.p_holm < LEVEL and not self.low <= 0 <= self.high


def differences_of(answers: Answers, with_consistency: bool) -> list[Difference]:
    """The differences in every measure that the examples have; suite, note and adjusted p are still to come."""
    found = [_of_share(answers, "accuracy", None)]
    if answers.aligned and answers.conflicting:
        found.append(_of_share(answers, "conflicting", answers.conflicting))
        sides = (answers.aligned, answers.conflicting)
        found.append(_of_counts(answers, "gap", gap_between(*sides), [name for side in sides for name in side]))
    named = [name for name in answers.names if name is not None]
    if named:
        found.append(_of_counts(answers, "worst_group", worst_of(named), named))
    if _unequal(answers.groups, named):
        found.append(_of_counts(answers, "adjusted", mean_of(named), named))
    if _unequal(answers.labels, answers.by_label.names):
        found.append(_of_counts(answers.by_label, "balanced", mean_of(answers.by_label.names), None))
    if with_consistency and answers.cluster_N is not None and answers.whole_RK.shape[1]:
        found.append(_of_consistency(answers))
    if answers.moved_RK is not None:
        found.append(_of_moved(answers, answers.moved_RK))
    primary = "conflicting" if len(found) > 1 and found[1].measure == "conflicting" else "accuracy"
    return [replace(one, primary=one.measure == primary) for one in found]


def _unequal(of_N: Sequence[str | None], names: Sequence[str | None]) -> bool:
    """Whether the named parts differ in size or leave examples out, so that their mean is not accuracy once more."""
    sizes = Counter(of_N)
    return len(names) > 0 and (len({sizes[name] for name in names}) > 1 or None in sizes)


def _of_share(answers: Answers, measure: str, groups: Sequence[str] | None) -> Difference:
    """Accuracy over some groups: McNemar's test for one seed each of independent examples, else the bootstrap."""
    within_N = answers.within(groups)
    if len(answers.right_RN) == 2 and answers.cluster_N is None and within_N.any():
        first_N, second_N = answers.right_RN[:, within_N]
        paired = _of_one_seed(first_N, second_N)
        return _difference(answers, measure, paired, (first_N.mean(), second_N.mean()), groups)
    return _of_counts(answers, measure, share_of(groups), groups)


def _of_one_seed(first_N: Bools, second_N: Bools) -> Paired:
    table = [float((one & two).sum()) for one, two in _cells(first_N, second_N)]
    low, high = paired_newcombe(*table)
    difference = float(second_N.mean() - first_N.mean())
    return Paired(difference, min(low, difference), max(high, difference), mcnemar(first_N, second_N), MCNEMAR)


def _cells(first_N: Bools, second_N: Bools) -> Iterable[tuple[Bools, Bools]]:
    return ((first_N, second_N), (first_N, ~second_N), (~first_N, second_N), (~first_N, ~second_N))


def _of_counts(answers: Answers, name: str, measure: Measure, groups: Sequence[str | None] | None) -> Difference:
    """Any measure of right answers by group, by resampling clusters (each example one where there are none)."""
    values_R, drawn = measure.of_parts(measure.shares(answers.whole))[0], sampled(answers, measure)
    firsts = answers.firsts
    paired = two_level(
        values_R[:firsts],
        values_R[firsts:],
        drawn.values_BR[:, :firsts],
        drawn.values_BR[:, firsts:],
        answers.independent(groups),
        most=2.0 if name == "gap" else 1.0,
        same_seeds=answers.same_seeds,
        of_examples=drawn.of_examples,
    )
    paired = replace(paired, p=max(paired.p, drawn.least_p))
    if answers.cluster_N is None:
        paired = replace(paired, test=paired.test.replace("clusters", "examples"))
    return _difference(answers, name, paired, (values_R[:firsts].mean(), values_R[firsts:].mean()), groups)


def _of_consistency(answers: Answers) -> Difference:
    """Clusters that are right throughout are counted as examples are: one cluster, one observation."""
    clusters = answers.whole_RK.shape[1]
    each = Answers(answers.whole_RK, answers.firsts, (None,) * clusters, None, same_seeds=answers.same_seeds)
    one = _of_share(each, "consistency", None)
    test = f"{one.test} over clusters" if one.test == MCNEMAR else one.test.replace("examples", "clusters")
    return replace(one, test=test, clusters=clusters)


def _of_moved(answers: Answers, moved_RK: Floats) -> Difference:
    """The counterfactual gap: a mean over clusters, which are resampled, the same ones for every run."""
    firsts, clusters = answers.firsts, moved_RK.shape[1]
    means_BR = cluster_bootstrap(moved_RK.T, PAIRED_REPLICATES) / clusters
    first_S, second_S = moved_RK[:firsts].mean(axis=1), moved_RK[firsts:].mean(axis=1)
    drawn = (means_BR[:, :firsts], means_BR[:, firsts:])
    paired = two_level(first_S, second_S, *drawn, clusters, same_seeds=answers.same_seeds)
    one = _difference(answers, "counterfactual_gap", paired, (first_S.mean(), second_S.mean()), None)
    return replace(one, clusters=clusters)


def _difference(
    answers: Answers, measure: str, paired: Paired, means: tuple[float, float], groups: Sequence[str | None] | None
) -> Difference:
    return Difference(
        suite="",
        measure=measure,
        first=float(means[0]),
        second=float(means[1]),
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        p=paired.p,
        p_holm=None,
        test=paired.test,
        n=int(answers.within(groups).sum()),
        clusters=None if answers.cluster_N is None else answers.independent(groups),
    )
