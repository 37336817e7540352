"""Methods by testbeds as tables and as a page: what each closes of each gap, and beside it what it cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from debias_eval.comparing.testbeds import Difference, Effect, Harm, Testbed, differing, in_order
from debias_eval.reporting.closing import grid_tables
from debias_eval.reporting.figures import signed
from debias_eval.reporting.report import environment, write_page
from debias_eval.reporting.tables import FLAT, Cell, Grid, markdown
from debias_eval.results.summary import points
from debias_eval.scores.intervals import Interval

AXIS = (-0.5, 1.5)  # of what is closed; beyond it a mark lies at the edge
ENOUGH = 5  # seeds, for a claim
CAPTION = (
    "Closed = (method - floor) / (ceiling - floor): 0 is the floor, 1 the ceiling. Clean: method - floor in points. "
    "Brackets: 95 % interval over seeds on these test examples (Fieller's of what is closed, Student's t of the "
    "difference), each for itself and not adjusted for how many methods there are. CPU: seconds over the floor's of "
    "the same seeds, bias models and runs before the run included; in brackets the least and the most of the seeds. "
    "Methods in the order of what they close on the first testbed."
)


@dataclass(frozen=True)
class Number:
    """A number as it is written, what stands behind it, and its mark [low, at, high] in percent of the axis."""

    text: str
    range: str = ""
    mark: tuple[float, float, float] | None = None
    clear: bool = False

    @property
    def whole(self) -> str:
        return f"{self.text} {self.range}".strip()


@dataclass(frozen=True)
class Entry:
    """One method on one testbed: what it closes, what it loses, its cost, its seeds."""

    closed: Number
    clean: Number
    cost: Number
    seeds: str


@dataclass(frozen=True)
class Line:
    """One method: whether it was told groups, and an entry of each testbed, None where it has no run."""

    arm: str
    called: str
    told: str
    entries: tuple[Entry | None, ...]
    role: bool


def lines_of(beds: Sequence[Testbed]) -> list[Line]:
    """Every method of the testbeds, in their order on the page."""
    found = []
    for arm in in_order(beds):
        effects = [one.effects.get(arm) for one in beds]
        some = next(effect for effect in effects if effect)
        roles = {role for one in beds for role in (one.bed.floor, one.bed.ceiling)}
        entries = tuple(_entry(one, effect) if effect else None for one, effect in zip(beds, effects, strict=True))
        found.append(Line(arm, some.called, "groups" if some.groups else "", entries, arm in roles))
    return found


def _entry(bed: Testbed, effect: Effect) -> Entry:
    role = {bed.bed.floor: "floor", bed.bed.ceiling: "ceiling"}.get(effect.arm)
    if role is not None:
        at = FLAT if effect.accuracy is None else points(effect.accuracy)
        closed = Number(role, f"({at} %)")
    else:
        closed = _closed(effect)
    is_floor = role == "floor"
    return Entry(
        closed,
        Number(FLAT) if is_floor else _points(effect.clean),
        Number(FLAT) if is_floor else _cost(effect),
        str(effect.seeds),
    )


def _closed(effect: Effect) -> Number:
    closed = effect.closed
    if closed is None:
        return Number(FLAT, "" if effect.accuracy is None else f"({points(effect.accuracy)} %)")
    if closed.closed is None:
        return Number("no gap to close")
    low, high = closed.interval or (closed.closed, closed.closed)
    mark = (_place(low), _place(closed.closed), _place(high))
    return Number(f"{closed.closed:.2f}", _range(closed.interval, 1, 2), mark, clear=is_clear(effect))


def is_clear(effect: Effect) -> bool:
    """Whether the interval of what it closes lies above 0, over as many seeds as a claim takes."""
    closed = effect.closed
    return bool(closed and closed.interval and closed.interval[0] > 0 and min(closed.seeds) >= ENOUGH)


def _place(share: float) -> float:
    low, high = AXIS
    return round(100 * (min(max(share, low), high) - low) / (high - low), 2)


def _points(found: Difference | None) -> Number:
    return Number(FLAT) if found is None else Number(signed(found.value), _range(found.interval, 100, 1))


def _cost(effect: Effect) -> Number:
    cost = effect.cost
    if cost is None or cost.cpu_over_floor is None:
        return Number(FLAT)
    return Number(f"{cost.cpu_over_floor:.2f}", _range(cost.cpu_range if effect.seeds > 1 else None, 1, 2))


def _range(interval: Interval | None, times: float, digits: int) -> str:
    return "" if interval is None else f"[{times * interval[0]:.{digits}f}, {times * interval[1]:.{digits}f}]"


def heads_of(bed: Testbed) -> tuple[str, str, str, str]:
    """What the columns of a testbed are called."""
    suite, group = bed.bed.clean or ("", "")
    clean = group if suite == bed.bed.suite else suite if group == "all" else f"{suite}/{group}"
    return "closed", f"clean ({clean})" if clean else "clean", "CPU", "seeds"


def findings(beds: Sequence[Testbed]) -> list[str]:
    """A sentence for each testbed: how many methods surely close some of the gap there, and which one most of it."""
    told = []
    for one in beds:
        others = [effect for arm, effect in one.effects.items() if arm not in (one.bed.floor, one.bed.ceiling)]
        rated = [effect for effect in others if effect.closed and effect.closed.closed is not None]
        clear = sum(map(is_clear, rated))
        if not rated:
            told.append(f"{one.bed.name}: no method has a number yet.")
            continue
        most = max(rated, key=lambda effect: (effect.closed and effect.closed.closed) or 0.0)
        assert most.closed is not None
        share = _closed(most).whole
        told.append(
            f"{one.bed.name}: of {len(rated)} methods {clear} close some of the gap, by an interval above 0 over "
            f"{ENOUGH} seeds or more; {most.arm} closes most, {share} ({most.seeds} seed{'s' * (most.seeds != 1)})."
        )
    return told


def notes_of(beds: Sequence[Testbed]) -> list[str]:
    """What the numbers are, why some are not there, and where one name is not one method."""
    notes = [CAPTION]
    for one in beds:
        gap = next((e.closed for e in one.effects.values() if e.closed), None)
        if gap:
            notes.append(
                f"{one.bed.name}: suite {one.bed.suite}, group {one.group}; floor {one.bed.floor}, ceiling "
                f"{one.bed.ceiling}, the gap {points(gap.gap)} points {_range(gap.gap_interval, 100, 1)}".rstrip()
            )
        notes += [*one.notes, *_why(one)]
        if one.missing:
            notes.append(f"{one.bed.name}: no run is kept of {', '.join(one.missing)}")
    for arm in in_order(beds):
        if keys := differing(beds, arm):
            notes.append(f"{arm} is not the same on all testbeds: {', '.join(keys)}")
    return notes


def _why(bed: Testbed) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for arm, effect in bed.effects.items():
        if arm not in (bed.bed.floor, bed.bed.ceiling) and effect.closed and effect.closed.why:
            reasons.setdefault(effect.closed.why, []).append(arm)
        if arm != bed.bed.floor and effect.clean and effect.clean.why:
            reasons.setdefault(f"clean: {effect.clean.why}", []).append(arm)
    for harm in bed.harms:
        for found in (harm.on_group, harm.on_clean):
            if found and found.why:
                reasons.setdefault(f"on the ceiling's data: {found.why}", []).append(harm.arm)
    return [f"{bed.bed.name}, {', '.join(arms)}: {why}" for why, arms in reasons.items()]


def grids_of(beds: Sequence[Testbed]) -> list[Grid]:
    """The table of methods by testbeds; then what methods do to data without a shortcut, if any was trained on it."""
    header = ["method", "told"]
    for one in beds:
        header += [f"{one.bed.name}: {head}" for head in heads_of(one)]
    rows = tuple(_cells(line) for line in lines_of(beds))
    grids = [Grid("Methods by testbeds", tuple(header), (rows,), tuple(notes_of(beds)))]
    harms = [(one, harm) for one in beds for harm in one.harms]
    if harms:
        told = "Trained on the ceiling's data, in which no shortcut gives the label away: minus plain training there."
        heads = ("testbed", "method", "group of the gap", "clean", "seeds")
        grids.append(Grid("Without a shortcut", heads, (tuple(_harm(one, harm) for one, harm in harms),), (told,)))
    return grids


def _cells(line: Line) -> tuple[Cell, ...]:
    cells = [Cell(line.arm, name=True), Cell(line.told)]
    for entry in line.entries:
        texts = [entry.closed.whole, entry.clean.whole, entry.cost.whole, entry.seeds] if entry else [FLAT] * 4
        cells += [Cell(text) for text in texts]
    return tuple(cells)


def _harm(bed: Testbed, harm: Harm) -> tuple[Cell, ...]:
    numbers = [_points(harm.on_group).whole, _points(harm.on_clean).whole, str(harm.on_group.seeds)]
    return (Cell(bed.bed.name, name=True), Cell(harm.arm, name=True), *(Cell(text) for text in numbers))


def markdown_of(beds: Sequence[Testbed]) -> str:
    """The tables in GitHub's Markdown."""
    return markdown(grids_of(beds))


def tables_of(beds: Sequence[Testbed]) -> list[Any]:
    """The tables for a terminal, and the lines under them."""
    return grid_tables(grids_of(beds))


def as_dict(beds: Sequence[Testbed]) -> dict[str, Any]:
    """For JSON: no path of this machine."""
    found = [asdict(one) for one in beds]
    for one in found:
        one["bed"].pop("folder")
    return {"testbeds": found, "order": in_order(beds)}


def write_testbeds(beds: Sequence[Testbed], out: Path) -> Path:
    """One HTML page that needs nothing but itself, written whole; returns `out`. InputError where it cannot be."""
    return write_page(out, "an HTML file", lambda: render_testbeds(beds))


def render_testbeds(beds: Sequence[Testbed]) -> str:
    """The page as text; everything that comes from a study is escaped."""
    zero, one = (_place(share) for share in (0.0, 1.0))
    return (
        environment()
        .get_template("testbeds.html.j2")
        .render(
            beds=beds,
            heads=[heads_of(bed) for bed in beds],
            lines=lines_of(beds),
            findings=findings(beds),
            notes=notes_of(beds),
            harms=[(bed.bed.name, harm.arm, _harm(bed, harm)[2:]) for bed in beds for harm in bed.harms],
            zero=zero,
            one=one,
        )
    )
