"""The report's numbers as tables: for a terminal, in Markdown and in LaTeX, all from the same cells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from debias_eval.comparing.compare import Comparison, seeds_words
from debias_eval.reporting.figures import MEASURES, p_text, signed, stars
from debias_eval.reporting.latex_text import latex_text
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import Method, read_runs
from debias_eval.results.summary import (
    Estimate,
    Row,
    floor_notes,
    floors,
    measured,
    points,
    suite_notes,
    table,
    unlike_notes,
)

Marks = Mapping[tuple[str, str, str], str]
FLAT = "–"
PAGE_LINES = 36  # of a LaTeX table, with its notes
COLUMNS = {
    "accuracy": "Accuracy",
    "balanced": "Labels alike",
    "adjusted": "Groups alike",
    "worst_group": "Worst group",
    "conflicting": "Shortcut wrong",
    "gap": "Gap",
    "consistency": "Whole clusters right",
    "counterfactual_gap": "Counterfactual gap",
}
LESS_KNOWN = ("balanced", "adjusted", "counterfactual_gap")  # columns that a terminal has where they say something


@dataclass(frozen=True)
class Cell:
    """A number or a name; `mark` is set as a superscript where the format has one, `name` is text from outside."""

    text: str
    mark: str = ""
    name: bool = False


@dataclass(frozen=True)
class Grid:
    """A table without a format: blocks of rows (one for each suite), and notes under it."""

    title: str
    header: tuple[str, ...]
    blocks: tuple[tuple[tuple[Cell, ...], ...], ...]
    notes: tuple[str, ...] = ()


def marks_of(comparisons: Sequence[Comparison]) -> Marks:
    """Stars by (suite, method, measure), on the method that is compared with the reference."""
    return {
        (one.suite, pair.second, one.measure): stars(one.p_holm) for pair in comparisons for one in pair.differences
    }


def interval_note(rows: Sequence[Row]) -> str:
    """What the brackets are."""
    trained = [row for row in rows if not row.method.only_judged]
    judged = list(dict.fromkeys(row.method.name for row in rows if row.method.only_judged))
    if not trained:
        return "Brackets: 95 % interval of the test examples (only judged: nothing was trained)."
    several = max(row.accuracy.seeds for row in trained) > 1
    over = "of the mean over training seeds (Student's t), with the test examples' own added in"
    note = f"Brackets: 95 % interval {over if several else 'of the test examples (one training seed)'}."
    if several and (alone := _of_one_seed(trained)):
        note += f" Of one training seed, whose interval is of the test examples alone: {alone}."
    if not judged:
        return note
    theirs = " (interval of the test examples)" if several else ""
    return f"{note} Only judged, not trained: {', '.join(judged)}{theirs}."


def _of_one_seed(rows: Sequence[Row]) -> str:
    """Methods of one seed, with the suites where others of their rows have several."""
    found = []
    for name in dict.fromkeys(row.method.name for row in rows):
        own = [row for row in rows if row.method.name == name]
        alone = [row.suite for row in own if row.accuracy.seeds == 1]
        if alone:
            found.append(name if len(alone) == len(own) else f"{name} on {' and '.join(alone)}")
    return ", ".join(found)


def alike_note(rows: Sequence[Row]) -> list[str]:
    """What columns mean that not everybody knows, where a table has them."""
    shown = measured(rows, ("worst_group", *LESS_KNOWN))
    words = {
        "worst_group": "Worst group: picked by its own result, of which neither the number nor its interval knows; "
        "of many groups that are nearly the same both lie too low.",
        "balanced": "Labels alike: balanced accuracy, the mean of the labels' accuracies.",
        "adjusted": "Groups alike: the mean of the groups' accuracies.",
        "counterfactual_gap": "Counterfactual gap: how much probability moves between examples of a cluster that "
        "differ in nothing that matters (less is better).",
    }
    return [words[key] for key in shown]


def result_grid(rows: Sequence[Row], methods: Sequence[Method], comparisons: Sequence[Comparison] = ()) -> Grid:
    """Suites by methods with intervals, significance marks and floors."""
    marks = marks_of(comparisons)
    used = measured(rows, list(COLUMNS))
    blocks = []
    for suite in dict.fromkeys(one.suite for one in rows):
        mine = [one for one in rows if one.suite == suite]
        lines = [_line(one, used, marks) for one in mine]
        blank = (Cell(""),) * len(used)
        lines += [
            (Cell(suite, name=True), Cell(floor.name, name=True), Cell(""), Cell(""), Cell(floor.text()), *blank)
            for floor in floors(mine)
        ]
        blocks.append(tuple(lines))
    header = ("Suite", "Method", "Seeds", "Examples", *(COLUMNS[key] for key in used), "ECE")
    return Grid("Results: accuracy in percent", header, tuple(blocks), tuple(_notes(rows, methods, comparisons)))


def _line(row: Row, keys: Sequence[str], marks: Marks) -> tuple[Cell, ...]:
    numbers = [_number(row.measure(key), marks.get((row.suite, row.method.name, key), "")) for key in keys]
    return (
        Cell(row.suite, name=True),
        Cell(row.method.name, name=True),
        Cell(FLAT if row.method.only_judged else str(row.accuracy.seeds)),
        Cell(row.examples),
        *numbers,
        Cell(points(row.ece)),
    )


def _number(estimate: Estimate | None, mark: str) -> Cell:
    return Cell(estimate.text(), mark) if estimate else Cell(FLAT)


def _notes(rows: Sequence[Row], methods: Sequence[Method], comparisons: Sequence[Comparison]) -> list[str]:
    notes = [interval_note(rows), *alike_note(rows)]
    if comparisons:
        notes.append(significance_note(comparisons))
    for suite in dict.fromkeys(one.suite for one in rows):
        mine = [one for one in rows if one.suite == suite]
        notes += [f"{suite} {note}" for note in suite_notes(mine, methods)]
    return [*notes, *floor_notes(rows)]


def significance_note(comparisons: Sequence[Comparison]) -> str:
    """What the stars mean, and what they are adjusted for."""
    levels = "* p < 0.05, ** p < 0.01, *** p < 0.001"
    over = "suites" if len(comparisons) == 1 else "suites and methods"
    return (
        f"{levels} for the difference to {comparisons[0].first}, adjusted over {over} (Holm): the measures that the "
        "verdict is about as one family, every other measure as a family of its own."
    )


def comparison_grid(pair: Comparison) -> Grid:
    """One comparison, of which there is a difference: each with its interval and adjusted p."""
    tests = list(dict.fromkeys(one.test for one in pair.differences))
    lines = tuple(
        (
            Cell(one.suite, name=True),
            Cell(MEASURES.get(one.measure, one.measure)),
            Cell(signed(one.difference), stars(one.p_holm)),
            Cell(f"[{points(one.low)}, {points(one.high)}]"),
            Cell(p_text(one.p_holm)),
            Cell(f"{one.n:,}"),
            *([Cell(one.test)] if len(tests) > 1 else []),
        )
        for one in pair.differences
    )
    header = ("Suite", "Measure", "Difference", "95 % interval", "Adjusted p", "Examples", "Test")[: len(lines[0])]
    title = f"{pair.second} minus {pair.first}, in points ({seeds_words((pair.seeds[1], pair.seeds[0]))})"
    notes = [f"Test of all differences: {tests[0]}."] if len(tests) == 1 else []
    return Grid(title, header, (lines,), (*notes, *pair.objections))


def terminal_table(runs: Sequence[Path]) -> Table:
    """The rows of the report as a rich table: suites by runs, each number with its interval, the floors under them."""
    rows = table(group_runs(read_runs(runs)))
    caption = " ".join([interval_note(rows), *alike_note(rows), *_unlike_notes(rows)])
    result = Table(caption=Text(caption), caption_justify="left")
    for name in ("suite", "method"):
        result.add_column(name, overflow="fold")
    alike = measured(rows, LESS_KNOWN)
    heads = ("examples", "accuracy %", "shortcut right %", "shortcut wrong %", "gap", "worst group %")
    for name in (*heads, *(f"{COLUMNS[key].lower()} %" for key in alike)):
        result.add_column(name, justify="right")
    for suite in dict.fromkeys(row.suite for row in rows):
        mine = [row for row in rows if row.suite == suite]
        for row in mine:
            result.add_row(*(_safe(cell) for cell in _terminal_cells(row, alike)))
        for floor in floors(mine):
            result.add_row(_safe(suite), Text(printable(floor.name), style="dim"), "", floor.text())
        result.add_section()
    return result


def _unlike_notes(rows: Sequence[Row]) -> list[str]:
    suites = dict.fromkeys(row.suite for row in rows)
    return [f"{suite} {note}" for suite in suites for note in unlike_notes([row for row in rows if row.suite == suite])]


def _terminal_cells(row: Row, alike: Sequence[str]) -> list[str]:
    worst = f"{points(row.worst.value)} {row.worst_name}" if row.worst else FLAT
    estimates = (row.accuracy, row.aligned, row.conflicting, row.gap)
    means = [points(one.value) if (one := row.measure(name)) else FLAT for name in alike]
    cells = [one.text() if one else FLAT for one in estimates]
    return [row.suite, row.method.name, row.examples, *cells, worst, *means]


def printable(text: str) -> str:
    """Without escape sequences."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _safe(text: str) -> Text:
    """Text for a terminal: no markup, no escape sequences from a folder's name."""
    return Text(printable(text))


def markdown(grids: Sequence[Grid]) -> str:
    """Tables in GitHub's Markdown; names are escaped, so that nothing in them is markup."""
    return "\n".join(_markdown_grid(grid) for grid in grids)


def _markdown_grid(grid: Grid) -> str:
    numbers = ["---" if i < 2 else "--:" for i in range(len(grid.header))]
    lines = [f"**{markdown_text(grid.title)}**", "", _pipe(grid.header), _pipe(numbers)]
    width = len(grid.header)
    lines += [
        _pipe([_markdown_cell(cell) for cell in line] + [""] * (width - len(line)))
        for block in grid.blocks
        for line in block
    ]
    notes = [f"- {markdown_text(note)}" for note in grid.notes]
    return "\n".join([*lines, "", *notes, ""])


def _pipe(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_cell(cell: Cell) -> str:
    return (markdown_text(cell.text) if cell.name else cell.text) + cell.mark.replace("*", "\\*")


def markdown_text(text: str) -> str:
    """Text on one line in which no character is markup."""
    entities = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
    return "".join(entities.get(c, f"\\{c}" if c in "\\`*_{}[]#|~$!" else c) for c in one_line(text))


def one_line(text: str) -> str:
    """Control characters and line ends as spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def latex(grids: Sequence[Grid]) -> str:
    """Tables for `\\usepackage{booktabs,graphicx}` and `\\usepackage[T1]{fontenc}`, with notes under them.

    What is wider than the line shrinks to it; what is longer than a page becomes several tables.
    """
    head = "% needs \\usepackage{booktabs,graphicx} and \\usepackage[T1]{fontenc}\n"
    return head + "\n".join(_latex_grid(part) for grid in grids for part in _pages(grid))


def _pages(grid: Grid) -> Iterator[Grid]:
    """The blocks in as many tables as keep each on a page; the notes come under the last."""
    parts: list[list[tuple[tuple[Cell, ...], ...]]] = [[]]
    for block in grid.blocks:
        if parts[-1] and sum(map(len, [*parts[-1], block])) > PAGE_LINES:
            parts.append([])
        parts[-1].append(block)
    for number, blocks in enumerate(parts, start=1):
        title = f"{grid.title} ({number} of {len(parts)})" if len(parts) > 1 else grid.title
        yield Grid(title, grid.header, tuple(blocks), grid.notes if number == len(parts) else ())


def _latex_grid(grid: Grid) -> str:
    width = len(grid.header)
    body = [f"\\midrule\n{_latex_lines(block, width)}" for block in grid.blocks if block]
    return "\n".join([
        "\\begin{table}", "\\centering\\footnotesize\\setlength{\\tabcolsep}{4pt}",
        f"\\caption{{{latex_text(grid.title)}}}",
        "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
        f"\\begin{{tabular}}{{ll{'r' * (width - 2)}}}", "\\toprule",
        " & ".join(map(latex_text, grid.header)) + " \\\\", *body, "\\bottomrule", "\\end{tabular}}",
        *(f"\\par\\footnotesize {latex_text(note)}" for note in grid.notes), "\\end{table}", "",
    ])  # fmt: skip


def _latex_lines(block: Sequence[Sequence[Cell]], width: int) -> str:
    found = []
    for above, line in zip([(Cell(""),), *block], block, strict=False):
        # A suite is named once in its block.
        first = Cell("") if line[0] == above[0] else line[0]
        found.append(" & ".join(_latex_cells([first, *line[1:], *[Cell("")] * (width - len(line))])) + " \\\\")
    return "\n".join(found)


def _latex_cells(line: Sequence[Cell]) -> Iterator[str]:
    """One entry for each cell; a name runs on over the empty cells after it."""
    at = 0
    while at < len(line):
        cell, end = line[at], at + 1
        while at > 0 and cell.name and end < len(line) and not line[end].text:
            end += 1
        text = latex_text(cell.text) + (f"$^{{{cell.mark}}}$" if cell.mark else "")
        yield text if end == at + 1 else f"\\multicolumn{{{end - at}}}{{l}}{{{text}}}"
        at = end
