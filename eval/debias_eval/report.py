"""Several runs side by side: one self-contained HTML page, and the same rows as a table for the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.table import Table
from rich.text import Text

from debias.errors import InputError
from debias_eval.charts import Chart, curve_chart
from debias_eval.results import write_whole
from debias_eval.runs import Method, Run, differing_settings, group_runs, read_runs
from debias_eval.summary import Estimate, Row, points, suites_of, table
from debias_eval.verdict import verdict

CURVES = (
    ("loss", "Training loss", "mean over the batch, as logged"),
    ("cosine", "Cosine of the two gradients", "main against bias: 1 means they point the same way"),
    ("removed_share", "Removed share", "|main - update| / |main|: how much of the gradient the rule changed"),
)
FLOOR = "always the most frequent label"


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """One HTML page on `runs` (it needs nothing but itself), written whole to `out`; returns `out`.

    A piece that a run lacks is named on the page. InputError for a folder that is no run and for a damaged file.
    """
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out}: is a folder, expected the name of an HTML file")
    write_whole(out, render(read_runs(runs)).encode())
    return out


def render(runs: Sequence[Run]) -> str:
    """The page as text; everything that comes from a run is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "pct": _percent}
    return environment.get_template("report.html.j2").render(**_page(runs))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _page(runs: Sequence[Run]) -> dict[str, Any]:
    methods = group_runs(runs)
    rows = table(methods)
    described = {name: result.description for run in runs for name, result in run.results.items()}
    return {
        "verdict": verdict(rows),
        "methods": methods,
        "suites": [_suite(name, described[name], rows, methods) for name in suites_of(methods)],
        "charts": _charts(methods),
        "unlogged": [title for key, title, _ in CURVES if curve_chart(methods, key, title, "") is None],
        "several_seeds": any(method.seeds > 1 for method in methods),
        "run": _what_was_run(methods),
        "missing": [(run.name, note) for run in runs for note in run.notes],
        "floor": FLOOR,
    }


def _suite(name: str, description: str, rows: Sequence[Row], methods: Sequence[Method]) -> dict[str, Any]:
    mine = [row for row in rows if row.suite == name]
    judged = [method for method in methods if any(run.results for run in method.runs)]
    return {
        "name": name,
        "description": description,
        "rows": mine,
        "absent": [method.name for method in judged if method not in [row.method for row in mine]],
        "majority": mine[0].majority,
        "guess": mine[0].guess,
        "groups": sorted({group for row in mine for group in row.groups}),
        "gap": [row for row in mine if row.aligned and row.conflicting],
        "limited": any(row.limited for row in mine),
    }


def _charts(methods: Sequence[Method]) -> list[Chart]:
    charts = [curve_chart(methods, key, title, note) for key, title, note in CURVES]
    return [chart for chart in charts if chart is not None]


def _what_was_run(methods: Sequence[Method]) -> dict[str, Any]:
    runs = [run for method in methods for run in method.runs]
    keys = differing_settings(runs)
    shared = next((run.settings for run in runs if run.config), {})
    common = {key: value for key, value in shared.items() if key not in keys}
    return {
        "keys": keys,
        "settings": [(method, [_setting(method.runs[0], key) for key in keys]) for method in methods],
        "common": yaml.safe_dump(common, sort_keys=True, allow_unicode=True) if common else "",
        "facts": [(run, method, _facts(run)) for method in methods for run in method.runs],
        "versions": _versions(runs),
    }


def _setting(run: Run, key: str) -> str:
    return _plain(run.settings.get(key, "not set")) if run.config else "unknown"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(one) for one in value)
    return "none" if value is None else str(value)


def _facts(run: Run) -> dict[str, str]:
    info = run.info
    acts_on = info.get("acts_on")
    acts_on = acts_on if isinstance(acts_on, Mapping) else {}
    return {
        "Seed": _plain(run.seed) if run.seed is not None else "unknown",
        "Status": _plain(info.get("status", "unknown")),
        "Steps": _count(info.get("steps")),
        "Examples": _count(info.get("train_examples")),
        "Time": duration(info.get("seconds")),
        "Gradients": _plain(info.get("gradients", "unknown")),
        "Rule acts on": f"{_count(acts_on.get('tensors'))} tensors, {_count(acts_on.get('elements'))} values"
        if acts_on
        else "unknown",
        "Trainable": _count(info.get("trainable_parameters")),
        "Commit": _plain(info.get("commit") or "unknown")[:12],
    }


def _count(value: Any) -> str:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:,}" if known else "unknown"


def duration(seconds: Any) -> str:
    """`75` as `1 min 15 s`; anything that is no number as `unknown`."""
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < 1e9:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _versions(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(who, versions): a line for the runs that agree."""
    who: dict[str, list[str]] = {}
    for run in runs:
        who.setdefault(_version_text(run.info.get("versions")), []).append(run.name)
    return [("all runs" if len(who) == 1 else ", ".join(names), text) for text, names in who.items()]


def _version_text(versions: Any) -> str:
    if not isinstance(versions, Mapping) or not versions:
        return "unknown"
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def terminal_table(runs: Sequence[Path]) -> Table:
    """The rows of the report as a rich table: suites by runs, each number with its interval, the floor under them."""
    rows = table(group_runs(read_runs(runs)))
    several = any(row.accuracy.seeds > 1 for row in rows)
    caption = "[ ] 95 % interval" + (", or minimum and maximum over seeds" if several else "; one seed each")
    result = Table(caption=Text(caption), caption_justify="left")
    for name in ("suite", "method"):
        result.add_column(name, overflow="fold")
    for name in ("examples", "accuracy %", "shortcut right %", "shortcut wrong %", "gap", "worst group %"):
        result.add_column(name, justify="right")
    for suite in dict.fromkeys(row.suite for row in rows):
        mine = [row for row in rows if row.suite == suite]
        for row in mine:
            result.add_row(*(_safe(cell) for cell in _cells(row)))
        if mine[0].majority is not None:
            result.add_row(_safe(suite), Text(FLOOR, style="dim"), "", points(mine[0].majority))
        result.add_section()
    return result


def _cells(row: Row) -> list[str]:
    worst = f"{points(row.worst.value)} {row.worst_name}" if row.worst else "–"
    estimates = (row.accuracy, row.aligned, row.conflicting, row.gap)
    return [row.suite, row.method.name, row.examples, *(_cell(one) for one in estimates), worst]


def _cell(estimate: Estimate | None) -> str:
    return estimate.text() if estimate else "–"


def _safe(text: str) -> Text:
    """Text for a terminal: no markup, no escape sequences from a folder's name."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))
