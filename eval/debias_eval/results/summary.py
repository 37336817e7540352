"""Rows of the report: one method on one suite, one number with its uncertainty."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from debias_eval.results.alike import alike, why_none_of
from debias_eval.results.files import Part, PartialInput, Result
from debias_eval.results.runs import Method, Run
from debias_eval.scores.intervals import over_seeds

# What the results say of how a judge worked that has no say in the numbers, or is a measurement.
MACHINERY = ("batch", "ranks", "deepspeed", "one_pass", "adapter_changes_logits", "max_change", "seconds", "device")


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval: of the examples for one seed, of seeds and examples for several."""

    value: float
    low: float
    high: float
    seeds: int

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
    """One method on one suite; None where the suite has no groups, no gap or no clusters."""

    suite: str
    method: Method
    results: tuple[Result, ...]
    accuracy: Estimate
    balanced: Estimate | None
    adjusted: Estimate | None
    worst: Estimate | None
    worst_name: str
    gap: Estimate | None
    aligned: Estimate | None
    conflicting: Estimate | None
    consistency: Estimate | None
    counterfactual_gap: Estimate | None
    groups: dict[str, Estimate]
    ece: float
    macro_f1: float | None
    majority: float | None
    partial: PartialInput | None
    guess: float | None
    examples: str
    drawn: bool  # a random subset, of one of its runs at least
    apart: dict[str, str]  # runs of the method that are not in these numbers, and why not

    def measure(self, name: str) -> Estimate | None:
        """The estimate behind a comparison's measure: accuracy, balanced, adjusted, conflicting, worst_group, gap,
        consistency or counterfactual_gap.
        """
        found = self.worst if name == "worst_group" else getattr(self, name, None)
        return found if isinstance(found, Estimate) else None


def of_parts(parts: Sequence[Part | None]) -> Estimate | None:
    """Accuracies of several seeds as one estimate; None if any seed lacks it."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return _estimate([part.accuracy for part in known], [part.ci95 for part in known], (0.0, 1.0))


def _estimate(
    values: Sequence[float], intervals: Sequence[tuple[float, float]], bounds: tuple[float, float]
) -> Estimate:
    mean, low, high = over_seeds(values, intervals, bounds)
    # The mean of equal numbers can round past their interval, and a value outside it would be drawn wrong.
    return Estimate(mean, min(low, mean), max(high, mean), seeds=len(values))


def _gap(results: Sequence[Result]) -> Estimate | None:
    gaps = [result.gap for result in results if result.gap is not None]
    if not gaps or len(gaps) < len(results):
        return None
    intervals = [result.gap_ci95 or (gap, gap) for result, gap in zip(results, gaps, strict=True)]
    return _estimate(gaps, intervals, (-1.0, 1.0))


def _moved(results: Sequence[Result]) -> Estimate | None:
    known = [result.counterfactual_gap for result in results if result.counterfactual_gap is not None]
    if not known or len(known) < len(results):
        return None
    return _estimate([one.value for one in known], [one.ci95 for one in known], (0.0, 1.0))


def _worst(results: Sequence[Result]) -> tuple[Estimate | None, str]:
    """The mean over seeds of each seed's own worst group, which need not be the same one."""
    names = [result.worst_group.name if result.worst_group else "" for result in results]
    parts = [result.groups.get(name) for name, result in zip(names, results, strict=True)]
    return of_parts(parts), names[0] if len(set(names)) == 1 else "varies"


def _mean(values: Iterable[float | None]) -> float | None:
    """None if any is missing."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known) / len(known) if known and len(known) == len(listed) else None


def row(method: Method, suite: str) -> Row | None:
    """The method's row for a suite, None if none of its runs was judged on it.

    Results of other rows, or scored in another way, than most of its runs' (of equal many: than the first one's) are no
    further seeds: `apart` names them.
    """
    results, apart = _pooled(method, suite)
    overall = of_parts(list(results))
    if overall is None:
        return None
    worst, worst_name = _worst(results)
    return Row(
        suite=suite,
        method=method,
        results=tuple(results),
        accuracy=overall,
        balanced=of_parts([result.balanced_accuracy for result in results]),
        adjusted=of_parts([result.adjusted_accuracy for result in results]),
        worst=worst,
        worst_name=worst_name,
        gap=_gap(results),
        aligned=of_parts([result.aligned for result in results]),
        conflicting=of_parts([result.conflicting for result in results]),
        consistency=of_parts([result.consistency for result in results]),
        counterfactual_gap=_moved(results),
        groups=_groups(results),
        ece=sum(result.ece for result in results) / len(results),
        macro_f1=_mean(result.macro_f1 for result in results),
        majority=results[0].majority_accuracy,
        partial=next((result.partial_input for result in results if result.partial_input), None),
        guess=1 / len(results[0].labels) if results[0].labels else None,
        examples=examples_text(results),
        drawn=any(map(_drawn, results)),
        apart=apart,
    )


def pooled_runs(method: Method, suite: str) -> list[Run]:
    """The runs of a method whose results on the suite are averaged: those that were judged alike."""
    runs = [run for run in method.runs if suite in run.results]
    kept = next(iter(alike([run.results[suite] for run in runs])), [])
    return [runs[i] for i in kept]


def _pooled(method: Method, suite: str) -> tuple[list[Result], dict[str, str]]:
    """The results that are averaged, and why others are not, by the name of their run."""
    kept = pooled_runs(method, suite)
    pooled = [run.results[suite] for run in kept]
    others = [run for run in method.runs if suite in run.results and run not in kept]
    return pooled, {run.name: why_none_of(run.results[suite], pooled) or "judged otherwise" for run in others}


def _drawn(result: Result) -> bool:
    """Whether its examples are a random sample of the suite's: rows that are left out for overlap are no draw."""
    return result.limited and result.limit is not None and result.limit < (result.available or 0)


def _groups(results: Sequence[Result]) -> dict[str, Estimate]:
    names = sorted({name for result in results for name in result.groups})
    groups = {name: of_parts([result.groups.get(name) for result in results]) for name in names}
    return {name: estimate for name, estimate in groups.items() if estimate is not None}


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


def measured(rows: Sequence[Row], measures: Sequence[str]) -> list[str]:
    """Those of the measures that say something of these rows: some row has it, and it is not accuracy once more.

    Where all labels have as many examples, balanced accuracy is accuracy; so is adjusted accuracy of such groups.
    """
    return [name for name in measures if any(_says_more(row, name) for row in rows)]


def _says_more(row: Row, name: str) -> bool:
    found = row.measure(name)
    if found is None or name not in ("balanced", "adjusted"):
        return found is not None
    return points(found.value) != points(row.accuracy.value)


@dataclass(frozen=True)
class Floor:
    """What a number has to beat to mean anything: its name, its value and how it came about."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    how: str = ""

    def text(self) -> str:
        known = self.low is not None and self.high is not None
        return f"{points(self.value)} {self.range}" if known else points(self.value)

    @property
    def range(self) -> str:
        return "" if self.low is None or self.high is None else Estimate(self.value, self.low, self.high, 1).range


def floors(rows: Sequence[Row]) -> list[Floor]:
    """The floors under a suite's rows: the most frequent label, and a classifier that sees a part of the input."""
    found = []
    majority = next((one.majority for one in rows if one.majority is not None), None)
    if majority is not None:
        found.append(Floor("always the most frequent label", majority))
    partial = next((one.partial for one in rows if one.partial is not None), None)
    if partial is not None:
        seen = " and ".join(partial.fields) or "part of the input"
        found.append(Floor(f"a classifier that sees only the {seen}", partial.accuracy, *partial.ci95, partial.how))
    return found


def floor_notes(rows: Sequence[Row]) -> list[str]:
    """How the floors came about, one note for the suites that agree."""
    how: dict[str, list[str]] = {}
    for suite in dict.fromkeys(one.suite for one in rows):
        for floor in floors([one for one in rows if one.suite == suite]):
            if floor.how:
                how.setdefault(f"{floor.name}: {floor.how}", []).append(suite)
    return [f"Floor of {', '.join(suites)}: {text}." for text, suites in how.items()]


def suite_notes(rows: Sequence[Row], methods: Sequence[Method]) -> list[str]:
    """What a reader of a suite's numbers must know: subsets, training text in the suite, how labels were scored."""
    return [
        *_subset_note(rows),
        *unlike_notes(rows),
        *_absent_note(rows, methods),
        *_overlap_notes(rows),
        *_adapter_notes(rows),
    ]


def unlike_notes(rows: Sequence[Row]) -> list[str]:
    """Which runs of a method are not in a suite's numbers, and which methods' numbers are of other rows or scoring."""
    found = []
    for one in rows:
        for why in dict.fromkeys(one.apart.values()):
            names = ", ".join(name for name, own in one.apart.items() if own == why)
            found.append(f"shows {one.method.name} without {names}, {why}: not pooled.")
    sets = alike([one.results[0] for one in rows])
    first = sets[0] if sets else []
    for others in sets[1:]:
        names, beside = (", ".join(rows[i].method.name for i in one) for one in (others, first))
        most = [rows[i].results[0] for i in first]
        reason = next(filter(None, (why_none_of(rows[i].results[0], most) for i in others)), "judged otherwise")
        found.append(f"has numbers of {names}, {reason}: compare them with none of {beside}.")
    return found


def _subset_note(rows: Sequence[Row]) -> list[str]:
    drawn = subset_text(rows)
    return [f"was judged on a random subset ({drawn}): compare its numbers with no full run."] if drawn else []


def subset_text(rows: Sequence[Row]) -> str:
    """`300 of 9,824 examples` of the methods that were judged on a random subset, by name where others were not; ""
    where none was.
    """
    drawn = [one for one in rows if one.drawn]
    names = f": {', '.join(one.method.name for one in drawn)}" if len(drawn) < len(rows) else ""
    return " / ".join(dict.fromkeys(one.examples for one in drawn)) + f" examples{names}" if drawn else ""


def _absent_note(rows: Sequence[Row], methods: Sequence[Method]) -> list[str]:
    present = [one.method.name for one in rows]
    judged = [method.name for method in methods if any(run.results for run in method.runs)]
    absent = [name for name in judged if name not in present]
    return [f"has no numbers for {', '.join(absent)}."] if absent else []


def _overlap_notes(rows: Sequence[Row]) -> list[str]:
    """One note for the methods that agree."""
    who: dict[str, list[str]] = {}
    for one in rows:
        known = [result.overlap for result in one.results if result.overlap]
        for key, text in (
            ("rows", "whose text is also in the training data"),
            ("chosen_on", "that are validation rows a model was chosen by"),
        ):
            most, excluded = max(((getattr(each, key), each.excluded) for each in known), default=(0, False))
            if most:
                counted = f"has {most:,} example{'s' if most != 1 else ''} {text}"
                done = "left out" if excluded else "counted in"
                who.setdefault(f"{counted}, {done}", []).append(one.method.name)
    return [f"{text}: {', '.join(names)}." for text, names in who.items()]


def _adapter_notes(rows: Sequence[Row]) -> list[str]:
    idle = [
        one.method.name
        for one in rows
        if any(result.judge.get("adapter_changes_logits") is False for result in one.results)
    ]
    return [f"was judged with an adapter that changes no answer's score: {', '.join(idle)}."] if idle else []


def judge_text(judge: Mapping[str, Any]) -> str:
    """How labels were scored, in one line; `not recorded` for results that do not say."""
    told = {key: value for key, value in judge.items() if key not in MACHINERY}
    flat = [
        _short(value) if key == "how" else key if value is True else f"{key} {_short(value)}"
        for key, value in told.items()
        if value not in (None, "", {}, [], False)
    ]
    return ", ".join(flat).replace("_", " ") or "not recorded"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_short(one)}" for key, one in value.items()) + ")"
    if isinstance(value, list | tuple):
        return ", ".join(_short(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
