"""The answers of two methods to the same examples, side by side, and what resampling their clusters gives.

Shapes: N examples, R runs (those of the first method, then those of the second), G groups, K clusters, B replicates.
"""

import hashlib
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from debias.errors import InputError
from debias_eval.results.files import Prediction, predictions_of, predictions_path
from debias_eval.results.runs import Run
from debias_eval.scores.counterfactual import gaps, told_once
from debias_eval.scores.intervals import (
    PAIRED_REPLICATES,
    Bools,
    Floats,
    Ints,
    cluster_bootstrap,
    cluster_index,
    compact,
)
from debias_eval.scores.scoring import real_clusters

Part = Sequence[str | None] | None  # the groups that a part is made of; None: all examples

# A dense table of this size is still worth searching for equal clusters.
_DENSE = 4_000_000


@dataclass(frozen=True)
class Answers:
    """`right_RN` says which answers are right; the first `firsts` rows are the first method's runs.

    With `same_seeds` the second method's runs have the first's seeds, in the same order. `cluster_N` numbers the
    clusters 0..K-1, or is None where every example stands for itself. `labels` are the right ones. `moved_RK`: how far
    each run's scores move within each cluster of an invariant suite, where nothing that matters does.
    """

    right_RN: Bools
    firsts: int
    groups: tuple[str | None, ...]
    cluster_N: Ints | None
    labels: tuple[str, ...] = ()
    aligned: tuple[str, ...] = ()
    conflicting: tuple[str, ...] = ()
    same_seeds: bool = False
    moved_RK: Floats | None = None

    @property
    def first_SN(self) -> Bools:
        return self.right_RN[: self.firsts]

    @property
    def second_SN(self) -> Bools:
        return self.right_RN[self.firsts :]

    @cached_property
    def names(self) -> tuple[str | None, ...]:
        """The groups, sorted; None, for examples without one, comes last if there are any."""
        named = sorted({name for name in self.groups if name is not None})
        return (*named, None) if None in self.groups else tuple(named)

    @cached_property
    def whole_RK(self) -> Bools:
        """Which clusters of at least two examples are right throughout, `[R, K']`."""
        assert self.cluster_N is not None
        size_K = np.bincount(self.cluster_N)
        right_RK = np.stack([np.bincount(self.cluster_N, weights=right_N) for right_N in self.right_RN])
        return np.asarray(right_RK == size_K)[:, size_K > 1]

    def independent(self, names: Sequence[str | None] | None = None) -> int:
        """How many clusters, or examples where there are none, the named groups (all by default) reach into."""
        mask_N = self.within(names)
        return int(mask_N.sum()) if self.cluster_N is None else compact(self.cluster_N[mask_N])[1]

    def within(self, names: Sequence[str | None] | None) -> Bools:
        """`[N]`: the examples of the named groups, all by default."""
        if names is None:
            return np.ones(len(self.groups), dtype=bool)
        wanted = {*names} - {None}
        return np.isin(self._group_N, [i for i, name in enumerate(self.names) if name in wanted])

    @cached_property
    def _group_N(self) -> Ints:
        """Each example's place in `names`: many parts ask for many examples."""
        where = {name: i for i, name in enumerate(self.names)}
        return np.array([where[name] for name in self.groups], dtype=np.int64)

    @cached_property
    def by_label(self) -> "Answers":
        """The same with the examples of each label as a group."""
        return replace(self, groups=self.labels, aligned=(), conflicting=())

    @cached_property
    def whole(self) -> "Counts":
        """Right answers and examples of each group, nothing resampled."""
        sums_KC = self._sums_KC()
        return self._counts(np.asarray(sums_KC.sum(axis=0)).reshape(1, -1))

    @cached_property
    def resampled(self) -> "Counts":
        """The same for samples of whole clusters drawn with replacement, the same ones for every run."""
        return self._drawn(self._sums_KC())

    def guarded(self, parts: Sequence[Part]) -> "Counts":
        """As `resampled`, with two clusters more in each of the parts, of its mean size; parts share no group.

        One is right with the first method alone, one with the second alone, in every run: a part of few examples, or of
        clusters that are all alike, says too little of how far another draw of them would lie.
        """
        groups = [self.names if part is None else tuple(name for name in self.names if name in part) for part in parts]
        key = tuple(sorted(groups, key=repr))
        if key not in self._guarded:
            more = np.zeros((2 * len(key), len(self.right_RN) + 1, len(self.names)))
            for i, part in enumerate(key):
                group, first, second = self.names.index(part[0]), 2 * i, 2 * i + 1
                whole = None if part == self.names else part
                size = self.within(whole).sum() / self.independent(whole)
                more[first : second + 1, -1, group] = size
                more[first, : self.firsts, group] = size
                more[second, self.firsts : -1, group] = size
            more_KC = sparse.csr_matrix(more.reshape(2 * len(key), -1))
            self._guarded[key] = self._drawn(sparse.vstack([self._sums_KC(), more_KC], format="csr"))
        return self._guarded[key]

    @cached_property
    def _guarded(self) -> dict[tuple[tuple[str | None, ...], ...], "Counts"]:
        """By the groups of each part: gap, worst group and their mean mostly guard the same ones."""
        return {}

    def _drawn(self, sums_KC: sparse.csr_matrix) -> "Counts":
        dense = sums_KC.shape[0] * sums_KC.shape[1] <= _DENSE
        return self._counts(cluster_bootstrap(sums_KC.toarray() if dense else sums_KC, PAIRED_REPLICATES))

    def _sums_KC(self) -> sparse.csr_matrix:
        """Right answers of each cluster by run and group, then its examples by group, `[K, R * G + G]`."""
        runs, n = self.right_RN.shape
        group_N, groups = self._group_N, len(self.names)
        cluster_N = np.arange(n) if self.cluster_N is None else self.cluster_N
        run_E, right_E = np.nonzero(self.right_RN)
        rows = np.concatenate([cluster_N[right_E], cluster_N])
        columns = np.concatenate([run_E * groups + group_N[right_E], runs * groups + group_N])
        shape = (int(cluster_N.max()) + 1, (runs + 1) * groups)
        return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)

    def _counts(self, sums_BC: Floats) -> "Counts":
        by_group = sums_BC.reshape(len(sums_BC), len(self.right_RN) + 1, len(self.names))
        return Counts(self.names, by_group[:, :-1], by_group[:, -1])


@dataclass(frozen=True)
class Counts:
    """Right answers `[B, R, G]` and examples `[B, G]` of each group."""

    names: tuple[str | None, ...]
    right_BRG: Floats
    size_BG: Floats

    def share(self, names: Sequence[str | None] | None = None) -> Floats:
        """Accuracy over the named groups together (all by default), `[B, R]`; NaN where a replicate holds none."""
        mask_G = np.array([names is None or name in names for name in self.names])
        right_BR, size_B = self.right_BRG[..., mask_G].sum(-1), self.size_BG[:, mask_G].sum(-1)
        return _ratio(right_BR, size_B[:, None])


def _ratio(right: Floats, size: Floats) -> Floats:
    return np.divide(right, size, out=np.full(np.broadcast_shapes(right.shape, size.shape), np.nan), where=size > 0)


def read_answers(first: Sequence[Run], second: Sequence[Run], suite: str) -> Answers:
    """The predictions of all runs on a suite, checked to be of the same examples; InputError if they are not."""
    shared = _seeds_of_all([*first, *second])
    first, second = (sorted(side, key=lambda run: _seeds(run, shared)) for side in (first, second))
    runs = [*first, *second]
    result = runs[0].results[suite]
    known, gap = _Known(), result.gap_groups
    invariant = all(run.results[suite].counterfactual_gap is not None for run in runs)
    read = [known.read(runs[0], suite, invariant), *(known.of(run, suite, invariant) for run in runs[1:])]
    moved = [moved_K for _, moved_K in read if moved_K is not None and len(moved_K)]
    return Answers(
        right_RN=np.stack([right_N for right_N, _ in read]),
        firsts=len(first),
        groups=tuple(known.groups),
        labels=tuple(known.labels),
        cluster_N=real_clusters(known.clusters) if result.clusters is not None else None,
        aligned=gap.aligned if gap else (),
        conflicting=gap.conflicting if gap else (),
        same_seeds=_are_pairs(first, second),
        moved_RK=np.stack(moved) if moved else None,
    )


def _seeds_of_all(runs: Sequence[Run]) -> list[str]:
    """Those seeds of the data that every run has: an arm whose data has no cue has no seed of the cue either."""
    return sorted(set.intersection(*(set(run.data_seeds) for run in runs)))


def _seeds(run: Run, shared: Sequence[str]) -> str:
    """All that a seed decides on both sides: batches and fresh weights, and which rows the data has."""
    return repr([run.seed, *(run.data_seeds[key] for key in shared)])


def _are_pairs(first: Sequence[Run], second: Sequence[Run]) -> bool:
    """True if each seed was given to one run of each method; a run that recorded none is no half of a pair.

    Nor is one whose data has other seeds than those of its own side.
    """
    shared = _seeds_of_all([*first, *second])
    seeds = [[_seeds(run, shared) for run in side] for side in (first, second)]
    known = all(run.seed is not None for run in (*first, *second))
    known = known and all(len({tuple(run.data_seeds) for run in side}) == 1 for side in (first, second))
    return known and seeds[0] == seeds[1] and len(set(seeds[0])) == len(seeds[0]) > 1


class _Known:
    """What the first run says of the examples; of each, eight bytes are kept beside label, group and cluster."""

    def __init__(self) -> None:
        self.groups: list[str | None] = []
        self.clusters: list[str | None] = []
        self.labels: list[str] = []
        self.texts: list[tuple[str, ...]] = []  # of an invariant suite
        self.digest_N: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    def read(self, run: Run, suite: str, invariant: bool) -> tuple[Bools, Floats | None]:
        """As `of`, of the first run."""
        same: dict[str | None, str | None] = {}  # one text in the place of as many as there are examples
        told, digests = _Told(), array("Q")
        for line in _lines(run, suite):
            told.add(line, invariant)
            digests.append(_digest(line))
            self.groups.append(same.setdefault(line.group, line.group))
            self.clusters.append(same.setdefault(line.cluster, line.cluster))
            self.labels.append(sys.intern(line.label))
            if invariant:
                self.texts.append(line.texts)
        self.digest_N = np.frombuffer(digests, dtype=np.uint64)
        return told.right_N, self._moved(told, invariant)

    def of(self, run: Run, suite: str, invariant: bool) -> tuple[Bools, Floats | None]:
        """Which answers of a run are right, and of an invariant suite how far scores move within each of its clusters.

        InputError where its examples are others.
        """
        told, path = _Told(), predictions_path(run.path, suite)
        for row, line in enumerate(_lines(run, suite)):
            if row < len(self.digest_N) and _digest(line) != self.digest_N[row]:
                raise InputError(
                    f"{path}, line {row + 1}: example {line.id!r} is not the one that another run has there; run"
                    " `debias eval` again"
                )
            told.add(line, invariant)
        if len(told.rights) != len(self.digest_N):
            raise InputError(f"{path}: {len(told.rights)} examples, another run has {len(self.digest_N)}")
        return told.right_N, self._moved(told, invariant)

    def _moved(self, told: "_Told", invariant: bool) -> Floats | None:
        if not invariant:
            return None
        gold_N = np.array([told.names.index(label) for label in self.labels])
        p_NC = np.frombuffer(told.p, dtype=np.float64).reshape(-1, len(told.names))
        once_N = told_once(self.clusters, self.texts)
        return gaps(p_NC[once_N], gold_N[once_N], cluster_index(self.clusters)[once_N])


class _Told:
    """A run's answers as they are read; of an invariant suite the probability of each label, too."""

    def __init__(self) -> None:
        self.rights, self.p, self.names = array("b"), array("d"), list[str]()

    def add(self, line: Prediction, invariant: bool) -> None:
        self.rights.append(line.label == line.prediction)
        if invariant:
            self.names = self.names or list(line.probabilities)
            self.p.extend(line.probabilities[name] for name in self.names)

    @property
    def right_N(self) -> Bools:
        return np.frombuffer(self.rights, dtype=np.bool_)


def _lines(run: Run, suite: str) -> Iterator[Prediction]:
    return predictions_of(predictions_path(run.path, suite), run.results[suite])


def _digest(line: Prediction) -> int:
    told = repr((line.id, line.label, line.group, line.cluster)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")
