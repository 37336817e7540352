"""Rows of the report: one method on one suite, one number with its uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

from debias_eval.results import Part, Result
from debias_eval.runs import Method


@dataclass(frozen=True)
class Estimate:
    """A share with its spread: the 95 % interval of one seed, or minimum and maximum over several."""

    value: float
    low: float
    high: float
    seeds: int

    @property
    def spread(self) -> str:
        return "95 % interval" if self.seeds == 1 else f"range of {self.seeds} seeds"

    @property
    def range(self) -> str:
        return f"[{points(self.low)}{'–' if self.low >= 0 else ' to '}{points(self.high)}]"

    def text(self) -> str:
        return f"{points(self.value)} {self.range}"

    def words(self) -> str:
        return f"{points(self.value)}\u00a0%"


def points(share: float) -> str:
    """A share in percent (or a difference in percentage points) with one decimal; never a minus zero."""
    text = f"{100 * share:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


@dataclass(frozen=True)
class Row:
    """One method on one suite; None where the suite has no groups or no gap."""

    suite: str
    method: Method
    accuracy: Estimate
    worst: Estimate | None
    worst_name: str
    gap: Estimate | None
    aligned: Estimate | None
    conflicting: Estimate | None
    groups: dict[str, Estimate]
    ece: float
    majority: float | None
    guess: float | None
    examples: str
    limited: bool
    digest: frozenset[str | None]


def of_parts(parts: Sequence[Part | None]) -> Estimate | None:
    """Accuracies of several seeds as one estimate; None if any seed lacks it."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    if len(known) == 1:
        return Estimate(known[0].accuracy, *known[0].ci95, seeds=1)
    return _of_seeds([part.accuracy for part in known])


def _of_seeds(values: Sequence[float]) -> Estimate:
    # The mean of equal numbers can round past them, and a value outside its own range would be drawn wrong.
    mean = min(max(sum(values) / len(values), min(values)), max(values))
    return Estimate(mean, min(values), max(values), seeds=len(values))


def _gap(results: Sequence[Result]) -> Estimate | None:
    known = [result for result in results if result.gap is not None]
    if not known or len(known) < len(results):
        return None
    if len(known) == 1:
        low, high = known[0].gap_ci95 or (known[0].gap, known[0].gap)
        return Estimate(known[0].gap or 0.0, low or 0.0, high or 0.0, seeds=1)
    return _of_seeds([result.gap or 0.0 for result in known])


def _worst(results: Sequence[Result]) -> tuple[Estimate | None, str]:
    """The mean over seeds of each seed's own worst group, which need not be the same one."""
    names = [result.worst_group.name if result.worst_group else "" for result in results]
    parts = [result.groups.get(name) for name, result in zip(names, results, strict=True)]
    return of_parts(parts), names[0] if len(set(names)) == 1 else "varies"


def row(method: Method, suite: str) -> Row | None:
    """The method's row for a suite, None if none of its runs was judged on it."""
    results = method.results(suite)
    overall = of_parts(list(results))
    if overall is None:
        return None
    worst, worst_name = _worst(results)
    names = sorted({name for result in results for name in result.groups})
    groups = {name: of_parts([result.groups.get(name) for result in results]) for name in names}
    return Row(
        suite=suite,
        method=method,
        accuracy=overall,
        worst=worst,
        worst_name=worst_name,
        gap=_gap(results),
        aligned=of_parts([result.aligned for result in results]),
        conflicting=of_parts([result.conflicting for result in results]),
        groups={name: estimate for name, estimate in groups.items() if estimate is not None},
        ece=sum(result.ece for result in results) / len(results),
        majority=results[0].majority_accuracy,
        guess=1 / len(results[0].labels) if results[0].labels else None,
        examples=examples_text(results),
        limited=any(result.limited for result in results),
        digest=frozenset(result.examples_sha256 for result in results),
    )


def examples_text(results: Sequence[Result]) -> str:
    """`9,824`, or `300 of 9,824` for a subset, or the span when seeds were judged on different numbers."""
    texts = dict.fromkeys(f"{one.n:,} of {one.available:,}" if one.limited else f"{one.n:,}" for one in results)
    return " / ".join(texts)


def suites_of(methods: Sequence[Method]) -> list[str]:
    """Suites that any run was judged on: those with a planted cue first, then those with a gap, then by name."""
    seen = {name: result for method in methods for run in method.runs for name, result in run.results.items()}
    return sorted(seen, key=lambda name: (not _planted(seen[name]), seen[name].conflicting is None, name))


def _planted(result: Result) -> bool:
    return "bias-conflicting" in result.groups


def table(methods: Sequence[Method]) -> list[Row]:
    """All rows, suite by suite, methods in their order."""
    rows = [row(method, suite) for suite in suites_of(methods) for method in methods]
    return [one for one in rows if one is not None]


def comparable(rows: Sequence[Row]) -> bool:
    """True if every row was judged on the same, known examples."""
    digests = frozenset().union(*(one.digest for one in rows))
    return len(digests) == 1 and None not in digests
