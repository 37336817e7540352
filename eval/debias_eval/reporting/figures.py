"""Geometry of the report's comparisons: forest plot, in-distribution against shifted accuracy, reliability.

Numbers in, positions in percent of the plot out (y growing downwards); the template draws them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import expit, logit

from debias_eval.comparing.compare import Comparison, Difference
from debias_eval.reading.collection import Pairing
from debias_eval.reporting.charts import Point, Tick, percent, placed, span, ticks
from debias_eval.results.files import Bin
from debias_eval.results.runs import Method, same_data, training_data
from debias_eval.results.summary import Row, points, pooled_runs
from debias_eval.scores.robustness import effective_robustness, fitted_line

MEASURES = {
    "accuracy": "all examples",
    "conflicting": "shortcut wrong",
    "worst_group": "worst group",
    "gap": "gap (less is better)",
    "consistency": "whole clusters",
    "adjusted": "groups alike",
    "balanced": "labels alike",
    "counterfactual_gap": "counterfactual gap (less is better)",
}
Known = tuple[Method, str, float, float]  # a run by its method and name: accuracy at home, and where it is shifted
IN_TABLES = ("adjusted", "balanced")  # shown beside the numbers; the forest would be no clearer for them
LEVELS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


def stars(p: float | None) -> str:
    """`*`, `**`, `***` for an adjusted p below 0.05, 0.01, 0.001; nothing without a test."""
    return next((mark for level, mark in LEVELS if p is not None and p < level), "")


def p_text(p: float | None) -> str:
    """A p-value in words, as short as is honest."""
    return "not tested" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def signed(share: float) -> str:
    """A difference in points that shows its sign."""
    text = points(share)
    return text if text[0] == "−" or text == "0.0" else f"+{text}"


@dataclass(frozen=True)
class Mark:
    """A difference with its interval, placed on the forest's axis; `clear` as the comparison says."""

    method: str
    style: int
    at: float
    low: float
    high: float
    text: str
    range: str
    stars: str
    p: str
    clear: bool


@dataclass(frozen=True)
class Forest:
    """Differences to `reference`: suites, each with (measure in words, one mark for each compared method)."""

    reference: str
    methods: tuple[tuple[str, int], ...]
    suites: tuple[tuple[str, tuple[tuple[str, tuple[Mark, ...]], ...]], ...]
    ticks: tuple[Tick, ...]
    zero: float


def forest(comparisons: Sequence[Comparison], methods: Sequence[Method], order: Sequence[str]) -> Forest | None:
    """Every difference of every comparison on one axis that holds zero, suites in `order`; None without any."""
    known = [(pair.second, one) for pair in comparisons for one in pair.differences if one.measure not in IN_TABLES]
    if not known:
        return None
    style = {method.name: method.style for method in methods}
    ends = [value for _, one in known for value in (one.low, one.high, one.difference)]
    axis = ticks(*span([*ends, 0.0]), about=6)
    suites = tuple(
        (suite, tuple(_measures([pair for pair in known if pair[1].suite == suite], style, axis)))
        for suite in sorted({one.suite for _, one in known}, key=order.index)
    )
    names = tuple((pair.second, style.get(pair.second, 0)) for pair in comparisons)
    tick_marks = placed(axis, flip=False, scale=100)
    return Forest(comparisons[0].first, names, suites, tick_marks, percent(0.0, axis))


def _measures(
    known: Sequence[tuple[str, Difference]], style: dict[str, int], axis: Sequence[float]
) -> list[tuple[str, tuple[Mark, ...]]]:
    names = sorted({one.measure for _, one in known}, key=lambda name: [*MEASURES, name].index(name))
    return [
        (
            MEASURES.get(name, name),
            tuple(_mark(method, style.get(method, 0), one, axis) for method, one in known if one.measure == name),
        )
        for name in names
    ]


def _mark(method: str, style: int, one: Difference, axis: Sequence[float]) -> Mark:
    at, low, high = (percent(value, axis) for value in (one.difference, one.low, one.high))
    p = one.p if one.p_holm is None else one.p_holm
    interval = f"[{points(one.low)}, {points(one.high)}]"
    mark = stars(one.p_holm)
    return Mark(method, style, at, low, high, signed(one.difference), interval, mark, p_text(p), one.clear)


@dataclass(frozen=True)
class Spot:
    """One run in a scatter panel."""

    run: str
    style: int
    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Panel:
    """A shifted suite against its in-distribution one; `diagonal` is x = y.

    `line` goes through the baselines on the data of the first trained method that is none.
    """

    x_name: str
    y_name: str
    spots: tuple[Spot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    line: str
    diagonal: str
    above: tuple[tuple[str, int, str], ...]


def scatter(methods: Sequence[Method], pairings: Sequence[Pairing]) -> list[Panel]:
    """A panel for each (in-distribution, shifted) pair of suites that some run was judged on."""
    pairs = dict.fromkeys((pairing.id_suite, shifted) for pairing in pairings for shifted in pairing.ood_suites)
    panels = [_panel(methods, id_suite, shifted) for id_suite, shifted in pairs]
    return [panel for panel in panels if panel is not None]


def _panel(methods: Sequence[Method], id_suite: str, shifted: str) -> Panel | None:
    known = [
        (method, run.name, run.results[id_suite].accuracy, run.results[shifted].accuracy)
        for method in methods
        for run in pooled_runs(method, id_suite)
        if run in pooled_runs(method, shifted)  # as tables have it: what was judged otherwise is left out
    ]
    if not known:
        return None
    xs, ys = [x for _, _, x, _ in known], [y for _, _, _, y in known]
    x_axis, y_axis = ticks(*_roomy(xs), about=3), ticks(*_roomy(ys), about=3)
    own, lines = _baselines(known)
    return Panel(
        x_name=id_suite,
        y_name=shifted,
        spots=tuple(
            Spot(name, method.style, percent(x, x_axis), 100 - percent(y, y_axis), f"{points(x)} %, {points(y)} %")
            for method, name, x, y in known
        ),
        x_ticks=placed(x_axis, flip=False, scale=100),
        y_ticks=placed(y_axis, flip=True, scale=100),
        line=_line(own, x_axis, y_axis),
        diagonal=_path([(x, x) for x in _steps(x_axis)], x_axis, y_axis),
        above=tuple(_above(methods, known, lines)),
    )


def _baselines(known: Sequence[Known]) -> tuple[list[Point], dict[str, list[Point]]]:
    """The plain runs that the panel's line goes through, and of each method those on its own data.

    Plain runs on other data (without the cue, say) are on another line. What has no settings, such as a model that was
    only judged, is measured by the panel's.
    """
    methods = {method.name: method for method, *_ in known}
    data = {name: training_data(method.runs[0]) for name, method in methods.items()}
    others = [data[name] for name, method in methods.items() if not method.is_baseline]
    shown: dict[str, Any] = next((one for one in [*others, *data.values()] if one), {})
    plain = [(data[method.name] or shown, (x, y)) for method, _, x, y in known if method.is_baseline]
    lines = {name: [point for other, point in plain if same_data(other, mine or shown)] for name, mine in data.items()}
    return [point for other, point in plain if same_data(other, shown)], lines


def _roomy(values: Sequence[float]) -> Point:
    """The values' range and a tenth more, at least four points, so that noise does not look like a trend."""
    low, high = min(values), max(values)
    room = max(0.1 * (high - low), 0.02 - (high - low) / 2)
    return max(0.0, low - room), min(1.0, high + room)


def _steps(axis: Sequence[float], count: int = 40) -> list[float]:
    return [axis[0] + (axis[-1] - axis[0]) * i / count for i in range(count + 1)]


def _line(baselines: Sequence[Point], x_axis: Sequence[float], y_axis: Sequence[float]) -> str:
    fitted = fitted_line(baselines)
    if fitted is None:
        return ""
    slope, intercept = fitted
    inside = [min(max(x, 1e-3), 1 - 1e-3) for x in _steps(x_axis)]
    return _path([(x, float(expit(intercept + slope * logit(x)))) for x in inside], x_axis, y_axis)


def _path(curve: Sequence[Point], x_axis: Sequence[float], y_axis: Sequence[float]) -> str:
    seen = [(x, y) for x, y in curve if y_axis[0] <= y <= y_axis[-1]]
    return " ".join(f"{percent(x, x_axis)},{round(100 - percent(y, y_axis), 2)}" for x, y in seen)


def _above(
    methods: Sequence[Method], known: Sequence[Known], lines: Mapping[str, list[Point]]
) -> list[tuple[str, int, str]]:
    """Effective robustness of each other method, the mean over its runs."""
    found = []
    for method in (one for one in methods if not one.is_baseline):
        values = [effective_robustness(x, y, lines[method.name]) for other, _, x, y in known if other == method]
        sure = [value for value in values if value is not None]
        if sure:
            found.append((method.name, method.style, signed(sum(sure) / len(sure))))
    return found


@dataclass(frozen=True)
class Reliability:
    """A suite's reliability diagram: for each method (name, style, calibration error, path, marks of x, y, radius)."""

    suite: str
    lines: tuple[tuple[str, int, float, str, tuple[tuple[float, float, float], ...]], ...]


def reliability(suite: str, rows: Sequence[Row]) -> Reliability | None:
    """Accuracy over confidence, the seeds of a method pooled; None where no result holds its bins."""
    lines = []
    for row in rows:
        bins = pooled([result.reliability for result in row.results])
        if bins:
            total = sum(n for n, _, _ in bins)
            spots = tuple(
                (round(100 * x, 2), round(100 - 100 * y, 2), round(1.5 + 7 * (n / total) ** 0.5, 2)) for n, x, y in bins
            )
            path = " ".join(f"{x},{y}" for x, y, _ in spots)
            lines.append((row.method.name, row.method.style, row.ece, path, spots))
    return Reliability(suite, tuple(lines)) if lines else None


def pooled(bins_of_runs: Sequence[Sequence[Bin]]) -> list[tuple[int, float, float]]:
    """(n, mean confidence, accuracy) of each bin that holds any example, over all runs, in order of confidence."""
    sums: dict[float, list[float]] = {}
    for one in (one for bins in bins_of_runs for one in bins):
        if one.n and one.confidence is not None and one.accuracy is not None:
            total = sums.setdefault(one.low, [0, 0.0, 0.0])
            total[0] += one.n
            total[1] += one.n * one.confidence
            total[2] += one.n * one.accuracy
    return [(int(n), confidence / n, right / n) for _, (n, confidence, right) in sorted(sums.items())]
