"""Gaps closed as tables, for a terminal and in Markdown."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from debias_eval.comparing.closing import Closing, Closings
from debias_eval.comparing.costs import Cost
from debias_eval.reporting.tables import FLAT, Cell, Grid, markdown, printable
from debias_eval.results.summary import points
from debias_eval.scores.intervals import Interval

HEADER = ("suite", "method", "group", "n", "floor %", "ceiling %", "method %", "gap", "closed", "bootstrap", "seeds")
LISTED = 4  # rows that a note names; of more it says how many
COSTS = ("method", "seconds", "of the floor's", "CPU seconds", "of the floor's", "examples seen", "before the run")
BRACKETS = "Brackets: 95 % interval over seeds, on these test examples: of the gap in points (Student's t)"
CAPTION = (
    f"closed = (method - floor) / (ceiling - floor), 1 is all of it. {BRACKETS}, of what is closed Fieller's; "
    "bootstrap: the same by drawing seeds."
)


def closing_grids(found: Closings) -> list[Grid]:
    """What is closed, suite by suite, with every objection under it; then what it cost."""
    suites = list(dict.fromkeys(row.suite for row in found.rows))
    blocks = tuple(tuple(_line(row, found) for row in found.rows if row.suite == suite) for suite in suites)
    alone = all(row.method == found.ceiling for row in found.rows)
    title = f"{'Gap' if alone else 'Gap closed,'} from {found.floor} to {found.ceiling}"
    caption = f"There is no method beside these two: the gap is ceiling - floor. {BRACKETS}." if alone else CAPTION
    notes = (caption, *_notes(found), *found.objections)
    costs = tuple(_cost(one) for one in found.costs)
    told = "Seconds of everything: the bias model, runs before the run and earlier attempts. Means over runs."
    return [Grid(title, HEADER, blocks, notes), Grid("Cost of a run", COSTS, (costs,), (told,))]


def closing_markdown(found: Closings) -> str:
    """Both tables in GitHub's Markdown."""
    return markdown(closing_grids(found))


def closing_tables(found: Closings) -> list[Table]:
    """Both as rich tables; names are plain text, no markup."""
    return grid_tables(closing_grids(found))


def grid_tables(grids: Sequence[Grid]) -> list[Table]:
    """Tables for a terminal, without their notes; names are plain text, no markup."""
    tables = []
    for grid in grids:
        table = Table(title=Text(printable(grid.title)), title_justify="left")
        for i, name in enumerate(grid.header):
            table.add_column(name, justify="left" if i < 2 else "right", overflow="fold")
        for block in grid.blocks:
            for line in block:
                table.add_row(*(Text(printable(cell.text)) for cell in line))
            table.add_section()
        tables.append(table)
    return tables


def closing_lines(found: Closings) -> list[str]:
    """What is said under the tables of a terminal: what the numbers are, and what a reader may object."""
    return [line for grid in closing_grids(found) for line in grid.notes]


def _line(row: Closing, among: Closings) -> tuple[Cell, ...]:
    closed = row.closed
    gap = f"{points(closed.gap)}{_range(closed.gap_interval, 100, 1)}"
    seeds = str(closed.seeds[0]) if len(set(closed.seeds)) == 1 else ", ".join(map(str, closed.seeds))
    share = "no gap to close" if closed.closed is None else f"{closed.closed:.2f}{_range(closed.interval, 1, 2)}"
    names = [Cell(name, name=True) for name in (row.suite, row.method, row.group)]
    rates = [Cell(points(value)) for value in (row.floor, row.ceiling, row.value)]
    bootstrap = _range(closed.bootstrap, 1, 2).strip() or FLAT
    if row.method == among.ceiling and closed.closed is not None:  # which closes all of it, surely
        share = bootstrap = FLAT
    return (*names, Cell(f"{row.n:,}"), *rates, Cell(gap), Cell(share), Cell(bootstrap), Cell(seeds))


def _range(interval: Interval | None, times: float, digits: int) -> str:
    return "" if interval is None else f" [{times * interval[0]:.{digits}f}, {times * interval[1]:.{digits}f}]"


def _notes(found: Closings) -> list[str]:
    """Why there is no number or no interval, and how seeds were paired where not all were."""
    notes: dict[str, list[str]] = {}
    for row in found.rows:
        pairing = "" if row.closed.pairing.endswith("paired seeds") else row.closed.pairing
        for text in filter(None, (row.closed.why, pairing)):
            notes.setdefault(text, []).append(f"{row.method} on {row.suite}")
    return [f"{_where(where, len(found.rows))}: {text}" for text, where in notes.items()]


def _where(rows: Sequence[str], of: int) -> str:
    """Which rows, or where the table shows them well enough how many."""
    return ", ".join(rows) if len(rows) <= LISTED else f"{len(rows)} of {of} rows"


def _cost(one: Cost) -> tuple[Cell, ...]:
    seconds, cpu = (FLAT if n is None else f"{n:,.1f}" for n in (one.seconds, one.cpu_seconds))
    over, cpu_over = (FLAT if n is None else f"{n:.2f}" for n in (one.over_floor, one.cpu_over_floor))
    examples, before = (FLAT if n is None else f"{n:,.0f}" for n in (one.examples, one.before))
    return (
        Cell(one.method, name=True),
        Cell(seconds),
        Cell(over),
        Cell(cpu),
        Cell(cpu_over),
        Cell(examples),
        Cell(before),
    )
