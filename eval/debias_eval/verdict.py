"""The report's first sentences: what was measured, in plain words, and never more than that."""

from collections.abc import Sequence
from dataclasses import dataclass

from debias_eval.summary import Estimate, Row, comparable, points


@dataclass(frozen=True)
class Verdict:
    """`headline` is about the first suite, `findings` are about the others, `claim` says what the seeds allow."""

    headline: str
    claim: str
    findings: tuple[str, ...]


def verdict(rows: Sequence[Row]) -> Verdict:
    """Words for a table of rows; the number of seeds and the overlap of the intervals are always part of them."""
    if not rows:
        return Verdict("No run here has been evaluated yet.", "Judge one with: debias eval RUN --suite NAME", ())
    by_suite = [[one for one in rows if one.suite == suite] for suite in dict.fromkeys(one.suite for one in rows)]
    findings = [_finding(group) for group in by_suite]
    return Verdict(findings[0], _claim(rows), tuple(findings[1:]))


def _claim(rows: Sequence[Row]) -> str:
    fewest = min(one.accuracy.seeds for one in rows)
    if len({one.method.name for one in rows}) == 1:
        return f"One method, {_seeds(fewest)}: there is nothing here to compare it with."
    if fewest == 1:
        return (
            "No claim that one method is better can be made: there is a number here that comes from one seed, and "
            "another seed can move it by more than its interval shows (which counts test examples, not training)."
        )
    return f"At least {fewest} seeds a number. The ranges show how far they reached; no significance test was made."


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _measure(rows: Sequence[Row]) -> tuple[str, list[Estimate]]:
    """The suite's telling number: accuracy where the shortcut fails if all rows have it, else accuracy."""
    conflicting = [one.conflicting for one in rows]
    if all(estimate is not None for estimate in conflicting):
        return "where the shortcut gives a wrong answer", [one for one in conflicting if one is not None]
    return "on all examples", [one.accuracy for one in rows]


def _finding(rows: Sequence[Row]) -> str:
    where, estimates = _measure(rows)
    opening = f"On {rows[0].suite}, {where},"
    subset = f" Judged on a subset ({rows[0].examples} examples)." if any(one.limited for one in rows) else ""
    if len(rows) == 1:
        only = estimates[0]
        return f"{opening} {rows[0].method.name} is right on {only.words()}, {only.spread} {only.range}.{subset}"
    if not comparable(rows):
        listed = ", ".join(f"{one.method.name} on {e.words()}" for one, e in zip(rows, estimates, strict=True))
        return f"{opening} {listed}: not compared, because they were not judged on the same examples.{subset}"
    return f"{opening} {_comparison(rows, estimates)}{subset}"


def _comparison(rows: Sequence[Row], estimates: Sequence[Estimate]) -> str:
    """The first method (plain fine-tuning where there is one) against the other, or against the best of the others."""
    best = max(range(1, len(rows)), key=lambda i: estimates[i].value)
    which = f" (best of {len(rows) - 1}, picked after the fact)" if len(rows) > 2 else ""
    mine, other = estimates[best], estimates[0]
    return (
        f"{rows[best].method.name}{which} is right on {mine.words()} and {rows[0].method.name} on {other.words()}: "
        f"{_difference(mine.value - other.value)}, and {_overlap(mine, other)}."
    )


def _difference(difference: float) -> str:
    size = points(abs(difference))
    return "no difference" if size == "0.0" else f"{size} points {'more' if difference > 0 else 'less'}"


def _overlap(first: Estimate, second: Estimate) -> str:
    overlapping = first.low <= second.high and second.low <= first.high
    if first.seeds == second.seeds == 1:
        return f"their 95\u00a0% intervals {'overlap' if overlapping else 'do not overlap'} (1\u00a0seed each)"
    if min(first.seeds, second.seeds) == 1:
        return f"{_seeds(first.seeds)} against {_seeds(second.seeds)}, which is too few to compare"
    relation = "overlap" if overlapping else "do not overlap"
    return f"their ranges over seeds {relation} ({first.seeds} and {second.seeds} seeds)"
