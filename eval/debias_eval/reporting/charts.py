"""Geometry of the report's curves: numbers in, positions in percent out; the template draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

from debias_eval.results.runs import Method

BEYOND = 1e30  # a diverged value would flatten every other curve to a line, and NaN is not below it
MAX_POINTS = 60  # more is noise on a plot 400 pixels wide
MARKERS = 6

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One run's curve: `path` for a polyline and a few `markers`, both in percent of the plot, y growing downwards."""

    run: str
    style: int
    path: str
    markers: tuple[Point, ...]


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis, in percent from the left or from the top."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes; `mean_of` is how many logged values each point averages at most."""

    title: str
    note: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    mean_of: int


def curve_chart(methods: Sequence[Method], key: str, title: str, note: str) -> Chart | None:
    """The logged value `key` over training steps, every run of every method; None if no run logged it."""
    raw = [(run.name, method.style, logged(run.metrics, key)) for method in methods for run in method.runs]
    found = [(name, style, points) for name, style, points in raw if points]
    if not found:
        return None
    mean_of = max(ceil(len(points) / MAX_POINTS) for _, _, points in found)
    drawn = [(name, style, bucket_means(points, mean_of)) for name, style, points in found]
    x_ticks = ticks(*span([x for _, _, points in drawn for x, _ in points]))
    y_ticks = ticks(*span([y for _, _, points in drawn for _, y in points]))
    return Chart(
        title=title,
        note=note,
        lines=tuple(_line(name, style, points, x_ticks, y_ticks) for name, style, points in drawn),
        x_ticks=placed(x_ticks, flip=False),
        y_ticks=placed(y_ticks, flip=True),
        mean_of=mean_of,
    )


def logged(metrics: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """(step, value) in order of steps; lines that lack either, or hold no finite number, are passed over."""
    pairs: list[tuple[Any, Any]] = [(line.get("step"), line.get(key)) for line in metrics]
    return sorted((float(x), float(y)) for x, y in pairs if is_number(x) and is_number(y))


def is_number(value: Any) -> bool:
    """True for a number that can be drawn: finite, of a size that is no sign of divergence, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < BEYOND


def bucket_means(points: Sequence[Point], size: int) -> list[Point]:
    """Means of `size` consecutive points (the last bucket may be smaller)."""
    buckets = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in buckets]


def span(values: Sequence[float]) -> Point:
    """Smallest and largest value, with room around them if they are the same."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    room = size * 0.05 or 1.0
    # A span of a few rounding errors has no round numbers inside: it is a flat line.
    return (low, high) if high - low > 1e-9 * size else (low - room, high + room)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that enclose `low` to `high`, ascending."""
    raw = (high - low) / about
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def placed(values: Sequence[float], *, flip: bool, scale: float = 1) -> tuple[Tick, ...]:
    """Labelled positions of the values on their own axis; labels are `scale` times the values."""
    return tuple(
        Tick(100 - at if flip else at, f"{value * scale:g}".replace("-", "−"))
        for value in values
        for at in [percent(value, values)]
    )


def percent(value: float, axis: Sequence[float]) -> float:
    """Where a value lies between the ends of an axis, in percent."""
    return round(100 * (value - axis[0]) / (axis[-1] - axis[0]), 2)


def _line(run: str, style: int, points: Sequence[Point], x_axis: Sequence[float], y_axis: Sequence[float]) -> Line:
    spots = [(percent(x, x_axis), round(100 - percent(y, y_axis), 2)) for x, y in points]
    every = max(1, ceil(len(spots) / MARKERS))
    # Each style starts its markers elsewhere, so that curves lying on each other stay apart.
    markers = spots[(style * every // 4) % every :: every]
    return Line(run, style, " ".join(f"{x},{y}" for x, y in spots), tuple(markers))
