"""Examples on which two runs disagree: how many, and a few of them drawn at random."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from debias.errors import InputError
from debias_eval.results.files import Prediction, chosen_predictions, predictions_of, predictions_path, unlike
from debias_eval.results.runs import Method, Run
from debias_eval.scores.intervals import Bools, Ints

SHOWN = 3  # in each direction
LONGEST = 600  # characters of a text
SEED = 0


@dataclass(frozen=True)
class Flip:
    """One example: its texts, what is right, and what both runs answered with which probability."""

    id: str
    group: str
    texts: tuple[str, ...]
    gold: str
    first: tuple[str, float]
    second: tuple[str, float]


@dataclass(frozen=True)
class Flips:
    """A suite under two runs: four counts, and examples that only the second or only the first got right."""

    suite: str
    both: int
    neither: int
    fixed: int
    broken: int
    examples: tuple[tuple[str, tuple[Flip, ...]], ...]


@dataclass(frozen=True)
class FlipPage:
    """Two runs, their suites, and why a suite is not here."""

    first: str
    second: str
    suites: tuple[Flips, ...]
    left_out: tuple[str, ...]


def flip_page(methods: Sequence[Method]) -> FlipPage | None:
    """The first method's run against one of the second with the same seed; None without two methods to compare.

    InputError for a damaged predictions file.
    """
    if len(methods) < 2:
        return None
    first, second = _same_seed(methods[0], methods[1])
    suites, left_out = [], []
    for name in (name for name in first.results if name in second.results):
        reason = _unlike(first, second, name)
        if reason:
            left_out.append(f"{name} {reason}")
        else:
            suites.append(_flips(first, second, name))
    suites.sort(key=lambda one: (-(one.fixed + one.broken) / max(1, _total(one)), one.suite))
    return FlipPage(first.name, second.name, tuple(suites), tuple(left_out)) if suites or left_out else None


def _same_seed(first: Method, second: Method) -> tuple[Run, Run]:
    for one in first.runs:
        for other in second.runs:
            if one.seed == other.seed and one.results.keys() & other.results.keys():
                return one, other
    return first.runs[0], second.runs[0]


def _unlike(first: Run, second: Run, suite: str) -> str:
    if not all(predictions_path(run.path, suite).is_file() for run in (first, second)):
        return "has no predictions file in one of the two runs"
    return "was not judged on the same examples" if unlike([run.results[suite] for run in (first, second)]) else ""


def _total(one: Flips) -> int:
    return one.both + one.neither + one.fixed + one.broken


def _flips(first: Run, second: Run, suite: str) -> Flips:
    sides = [_right(run, suite) for run in (first, second)]
    if len(sides[0]) != len(sides[1]):
        raise InputError(f"suite {suite}: {len(sides[0])} and {len(sides[1])} predictions of the same examples")
    one_N, other_N = sides
    fixed, broken = np.flatnonzero(~one_N & other_N), np.flatnonzero(one_N & ~other_N)
    drawn = [_drawn(places, suite) for places in (fixed, broken)]
    wanted = {place for places in drawn for place in places}
    ones, others = (chosen_predictions(predictions_path(run.path, suite), wanted) for run in (first, second))
    shown = [tuple(_flip(ones[place], others[place]) for place in places) for places in drawn]
    examples = ((second.name, shown[0]), (first.name, shown[1]))
    both, neither = int((one_N & other_N).sum()), int((~one_N & ~other_N).sum())
    return Flips(suite, both, neither, len(fixed), len(broken), examples)


def _right(run: Run, suite: str) -> Bools:
    lines = predictions_of(predictions_path(run.path, suite), run.results[suite])
    return np.fromiter((line.prediction == line.label for line in lines), dtype=np.bool_)


def _drawn(places: Ints, suite: str) -> list[int]:
    """A seeded random sample, so that neither the best nor the worst cases are picked."""
    chosen = random.Random(f"{SEED} {suite}").sample(range(len(places)), min(SHOWN, len(places)))
    return [int(places[at]) for at in sorted(chosen)]


def _flip(one: Prediction, other: Prediction) -> Flip:
    return Flip(
        id=one.id,
        group=one.group or "",
        texts=tuple(text if len(text) <= LONGEST else f"{text[:LONGEST]} …" for text in one.texts),
        gold=one.label,
        first=(one.prediction, one.probabilities[one.prediction]),
        second=(other.prediction, other.probabilities[other.prediction]),
    )
