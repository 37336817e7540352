"""Geometry of the report's heat maps: many groups by methods, layers by training steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from debias_eval.reporting.charts import is_number
from debias_eval.results.runs import Method
from debias_eval.results.summary import Estimate, Row, points

MANY_GROUPS = 8  # more bars than that cannot be taken in at a glance
LONGEST_BLOCK = 20
STEPS = 40
BLOCK = tuple[str, tuple[tuple[str, tuple["Cell | None", ...]], ...]]


@dataclass(frozen=True)
class Cell:
    """`tint` is the strength of the colour in percent, `side` what it means: over or under the middle, or neither."""

    text: str
    side: str
    tint: int
    words: str = ""


@dataclass(frozen=True)
class GroupMap:
    """Groups of a suite by methods, in blocks of a common prefix; `middle` is what has no colour."""

    suite: str
    methods: tuple[str, ...]
    middle: float
    middle_name: str
    blocks: tuple[BLOCK, ...]


def group_map(suite: str, rows: Sequence[Row], floor: float | None) -> GroupMap | None:
    """A suite's groups by methods, colour by distance to guessing; None where bars are the better picture."""
    names = sorted({name for row in rows for name in row.groups})
    if len(names) <= MANY_GROUPS:
        return None
    guess = next((row.guess for row in rows if row.guess), None)
    middle = guess if guess is not None else floor if floor is not None else 0.5
    blocks = tuple(
        (
            title,
            tuple((short, tuple(_group_cell(row.groups.get(name), middle) for row in rows)) for short, name in part),
        )
        for title, part in blocks_of(names)
    )
    meaning = "guessing evenly" if guess is not None else "the floor" if floor is not None else "one half"
    return GroupMap(suite, tuple(row.method.name for row in rows), middle, meaning, blocks)


def blocks_of(names: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(common prefix, [(rest, whole name)]): by the part before `=` or the last `/`, long blocks cut up."""
    found: dict[str, list[tuple[str, str]]] = {}
    by_value = all("=" in name for name in names)
    for name in names:
        prefix, _, rest = name.partition("=") if by_value else name.rpartition("/")
        found.setdefault(prefix if rest else "", []).append((rest or name, name))
    if len(found) > len(names) / 2:  # hardly any prefix is shared: titles would be noise
        found = {"": [(name, name) for name in names]}
    return [(title, part) for title, whole in found.items() for part in _cut(whole, alone=len(found) == 1)]


def _cut(whole: list[tuple[str, str]], *, alone: bool) -> list[list[tuple[str, str]]]:
    pieces = ceil(len(whole) / LONGEST_BLOCK)
    if alone:  # three columns are read sooner than one
        pieces = max(pieces, min(3, ceil(len(whole) / 6)))
    size = ceil(len(whole) / pieces)
    return [whole[i : i + size] for i in range(0, len(whole), size)]


def _group_cell(estimate: Estimate | None, middle: float) -> Cell | None:
    if estimate is None:
        return None
    over = estimate.value >= middle
    room = (1 - middle if over else middle) or 1.0
    strength = abs(estimate.value - middle) / room
    return Cell(points(estimate.value), "over" if over else "under", round(100 * min(1.0, strength)), estimate.text())


@dataclass(frozen=True)
class LayerMap:
    """A quantity by layer (from the last, on top, to the first) and step; rows hold the tint of each step."""

    title: str
    method: str
    layers: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    steps: tuple[int, ...]
    low: str
    high: str
    diverging: bool


def layer_maps(methods: Sequence[Method], key: str, title: str, *, diverging: bool) -> list[LayerMap]:
    """One map for each method whose runs logged `key`, the mean over its runs; all on the same scale."""
    tables = [(method, _means(method, key)) for method in methods]
    known = [(method, table) for method, table in tables if table]
    values = [value for _, table in known for layer in table.values() for value in layer.values()]
    if not values:
        return []
    top = max(abs(value) for value in values) or 1.0
    return [_layer_map(title, method.name, table, 1.0 if diverging else top, diverging) for method, table in known]


def _means(method: Method, key: str) -> dict[str, dict[int, float]]:
    """Layer to step to the mean over the method's runs."""
    sums: dict[str, dict[int, list[float]]] = {}
    for run in method.runs:
        for line in run.metrics:
            step, layers = line.get("step"), line.get(key)
            if is_number(step) and isinstance(layers, Mapping):
                for name, value in layers.items():
                    if is_number(value):
                        sums.setdefault(str(name), {}).setdefault(int(step or 0), []).append(float(value))
    return {name: {step: sum(all_) / len(all_) for step, all_ in steps.items()} for name, steps in sums.items()}


def _layer_map(
    title: str, method: str, table: Mapping[str, Mapping[int, float]], top: float, diverging: bool
) -> LayerMap:
    logged = sorted({step for steps in table.values() for step in steps})
    size = ceil(len(logged) / STEPS)
    buckets = [logged[i : i + size] for i in range(0, len(logged), size)]
    layers = tuple(
        (
            name,
            tuple(
                _layer_cell([table[name][step] for step in bucket if step in table[name]], top) for bucket in buckets
            ),
        )
        for name in sorted(table, key=_natural, reverse=True)
    )
    ends = tuple(bucket[-1] for bucket in buckets)
    return LayerMap(
        title, method, layers, ends, f"{-top if diverging else 0:.2g}".replace("-", "−"), f"{top:.2g}", diverging
    )


def _natural(name: str) -> tuple[int, Any, str]:
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def _layer_cell(values: Sequence[float], top: float) -> Cell | None:
    if not values:
        return None
    mean = sum(values) / len(values)
    return Cell(f"{mean:.2f}", "over" if mean >= 0 else "under", round(100 * min(1.0, abs(mean) / top)))
