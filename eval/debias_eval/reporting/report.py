"""Several runs side by side: one self-contained HTML page, and the same rows as tables for papers and terminals."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from debias.errors import InputError
from debias.runs.whole import write_or_say
from debias_eval.comparing.compare import Comparison, compare
from debias_eval.comparing.flips import SHOWN, flip_page
from debias_eval.reading.collection import pairings
from debias_eval.reporting.charts import Chart, curve_chart, placed
from debias_eval.reporting.figures import forest, reliability, scatter, signed
from debias_eval.reporting.heatmaps import group_map, layer_maps
from debias_eval.reporting.reproduce import what_was_run
from debias_eval.reporting.tables import (
    Grid,
    alike_note,
    comparison_grid,
    interval_note,
    latex,
    markdown,
    marks_of,
    result_grid,
    significance_note,
)
from debias_eval.reporting.verdict import verdict
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import Method, Run, read_runs
from debias_eval.results.summary import Row, floor_notes, floors, measured, points, suite_notes, suites_of, table
from debias_eval.scores.intervals import holm

CURVES = (
    ("loss", "Training loss", "mean over the batch, as logged"),
    ("cosine", "Cosine of the two gradients", "main against bias: 1 means they point the same way"),
    ("removed_share", "Removed share", "|main − update| / |main|: how much of the gradient the rule changed"),
)
LAYERS = (
    ("removed_share_by_layer", "Removed share by layer", False),
    ("cosine_by_layer", "Cosine of the two gradients by layer", True),
)


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """One HTML page on `runs` (it needs nothing but itself), written whole to `out`; returns `out`.

    A piece that a run lacks is named on the page. InputError for a folder that is no run and for a damaged file.
    """
    return write_page(out, "an HTML file", lambda: render(read_runs(runs)))


def write_markdown(runs: Sequence[Path], out: Path) -> Path:
    """The page's tables in GitHub's Markdown, written whole to `out`; returns `out`."""
    return write_page(out, "a Markdown file", lambda: markdown(grids(read_runs(runs))))


def write_latex(runs: Sequence[Path], out: Path) -> Path:
    """The page's tables for LaTeX with booktabs, written whole to `out`; returns `out`."""
    return write_page(out, "a LaTeX file", lambda: latex(grids(read_runs(runs))))


def write_page(out: Path, kind: str, content: Callable[[], str]) -> Path:
    """Write what `content` makes, whole; returns `out`. InputError where it is a folder, or cannot be written."""
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of {kind}")
    write_or_say(out, content().encode("utf-8", errors="replace"))
    return out


def grids(runs: Sequence[Run]) -> list[Grid]:
    """The result table and one table for each comparison."""
    methods = group_runs(runs)
    pairs = comparisons_of(methods)
    results = result_grid(table(methods), methods, pairs)
    return [results, *(comparison_grid(pair) for pair in pairs if pair.differences)]


def comparisons_of(methods: Sequence[Method]) -> list[Comparison]:
    """Each further method against the first, p-values adjusted for the tests of all of them together.

    Where two methods cannot be compared, the reason is the comparison's objection.
    """
    pairs = [_compared(methods[0], other) for other in methods[1:]]
    if len(pairs) < 2:
        return pairs
    families: dict[str, list[tuple[int, int, float]]] = {}
    for i, pair in enumerate(pairs):
        for k, one in enumerate(pair.differences):
            if one.p is not None:
                families.setdefault("primary" if one.primary else one.measure, []).append((i, k, one.p))
    adjusted: dict[tuple[int, int], float] = {}
    for members in families.values():
        joint = holm([p for _, _, p in members])
        adjusted |= {(i, k): p for (i, k, _), p in zip(members, joint, strict=True)}
    return [_with(pair, {k: p for (at, k), p in adjusted.items() if at == i}) for i, pair in enumerate(pairs)]


def _compared(first: Method, second: Method) -> Comparison:
    try:
        return compare(first, second)
    except InputError as error:
        return Comparison(first.name, second.name, (first.trained, second.trained), (), "", (str(error),))


def _with(pair: Comparison, p_holm: Mapping[int, float]) -> Comparison:
    differences = (replace(one, p_holm=p_holm.get(k)) for k, one in enumerate(pair.differences))
    return replace(pair, differences=tuple(differences))


def render(runs: Sequence[Run]) -> str:
    """The page as text; everything that comes from a run is escaped."""
    return environment().get_template("report.html.j2").render(**_page(runs))


def environment() -> Environment:
    """What pages are made with: templates that escape what comes from data, and the ways a number is written."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_readable,
    )
    found.filters |= {"points": points, "pct": _percent, "signed": signed}
    return found


# What turns the reading direction of all that follows, and control characters that HTML has no use for.
_UNREADABLE = re.compile("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f]")


def _readable(value: Any) -> Any:
    return _UNREADABLE.sub("\ufffd", value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


@dataclass(frozen=True)
class Suite:
    """What the page shows of one suite."""

    name: str
    description: str
    rows: Sequence[Row]
    notes: Sequence[str]
    floors: Sequence[Any]
    groups: Sequence[str]
    group_map: Any
    reliability: Any

    @property
    def guess(self) -> float | None:
        return self.rows[0].guess

    @property
    def gap(self) -> list[Row]:
        return [row for row in self.rows if row.aligned and row.conflicting]


def _page(runs: Sequence[Run]) -> dict[str, Any]:
    methods = group_runs(runs)
    rows = table(methods)
    pairs = comparisons_of(methods)
    suites = [_suite(name, rows, methods) for name in suites_of(methods)]
    return {
        "verdict": verdict(rows, pairs),
        "methods": methods,
        "suites": suites,
        "columns": _columns(rows),
        "marks": marks_of(pairs),
        "notes": _notes(rows, pairs, suites),
        "forest": forest(pairs, methods, suites_of(methods)),
        "unit_x": placed((0.0, 0.5, 1.0), flip=False, scale=100),
        "unit_y": placed((0.0, 0.5, 1.0), flip=True, scale=100),
        "panels": scatter(methods, pairings()),
        "flips": flip_page([method for method in methods if any(run.results for run in method.runs)]),
        "flips_shown": SHOWN,
        "charts": _charts(methods),
        "layers": [one for key, title, both in LAYERS for one in layer_maps(methods, key, title, diverging=both)],
        "unlogged": [title for key, title, _ in CURVES if curve_chart(methods, key, title, "") is None],
        "several_seeds": any(method.seeds > 1 for method in methods),
        "run": what_was_run(methods),
        "missing": [(run.name, note) for run in runs for note in run.notes],
    }


def _columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Measures that any row has, with their headings, in the table's order."""
    heads = {
        "accuracy": "Accuracy",
        "balanced": "Labels alike",
        "adjusted": "Groups alike",
        "conflicting": "Shortcut wrong",
        "gap": "Gap",
        "worst_group": "Worst group",
        "consistency": "Clusters right",
        "counterfactual_gap": "Counterfactual gap",
    }
    return [(key, heads[key]) for key in measured(rows, list(heads))]


def _notes(rows: Sequence[Row], pairs: Sequence[Comparison], suites: Sequence[Suite]) -> list[str]:
    if not rows:
        return []
    tested = [significance_note(pairs)] if any(pair.differences for pair in pairs) else []
    of_suites = [f"{suite.name} {note}" for suite in suites for note in suite.notes]
    return [interval_note(rows), *alike_note(rows), *tested, *of_suites, *floor_notes(rows)]


def _suite(name: str, rows: Sequence[Row], methods: Sequence[Method]) -> Suite:
    mine = [row for row in rows if row.suite == name]
    return Suite(
        name=name,
        description=mine[0].results[0].description,
        rows=mine,
        notes=suite_notes(mine, methods),
        floors=floors(mine),
        groups=sorted({group for row in mine for group in row.groups}),
        group_map=group_map(name, mine, mine[0].majority),
        reliability=reliability(name, mine),
    )


def _charts(methods: Sequence[Method]) -> list[Chart]:
    charts = [curve_chart(methods, key, title, note) for key, title, note in CURVES]
    return [chart for chart in charts if chart is not None]
