"""The curves of `debias bench growth` as a picture: both axes logarithmic, so that proportion is a line of slope 1."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, EDGE = 260, 200, 36
COLOURS = {"plain": "#777777", "single_pass": "#0a6ebd"}


def picture_of(result: Mapping[str, Any]) -> str:
    """An SVG with a panel for each axis: CPU milliseconds of a step, points as measured and the fit as a line."""
    panels = [_panel(name, found, index) for index, (name, found) in enumerate(result["axes"].items())]
    width = WIDTH * len(panels)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}" font-family="sans-serif"'
    body = "\n".join(line for panel in panels for line in panel)
    return f'{head} font-size="11">\n<rect width="{width}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'


def _panel(name: str, found: Mapping[str, Any], index: int) -> Iterator[str]:
    sizes = found["sizes"]
    values = [1e3 * value for way in COLOURS for value in found[way]["seconds"]]
    left = WIDTH * index + EDGE
    across, up = _scale(sizes, left, left + WIDTH - EDGE - 14), _scale(values, HEIGHT - EDGE, 28)
    yield f'<text x="{left}" y="16">CPU ms a step against {name}</text>'
    for at in sizes:
        yield f'<text x="{across(at):.1f}" y="{HEIGHT - EDGE + 16}" text-anchor="middle">{at}</text>'
    for value in (min(values), max(values)):
        yield f'<text x="{left - 8}" y="{up(value) + 4:.1f}" text-anchor="end">{value:.0f}</text>'
    for row, (way, colour) in enumerate(COLOURS.items()):
        fit = found[way]["fits"]["seconds"]
        points = [(across(n), up(1e3 * (fit["a"] + fit["b"] * n ** fit["p"]))) for n in _between(sizes)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}"/>'
        for n, seconds in zip(sizes, found[way]["seconds"], strict=True):
            yield f'<circle cx="{across(n):.1f}" cy="{up(1e3 * seconds):.1f}" r="3" fill="{colour}"/>'
        yield f'<text x="{left + 8}" y="{36 + 14 * row}" fill="{colour}">{way}: n^{fit["p"]:.2f}</text>'


def _scale(values: Sequence[float], low: float, high: float) -> Any:
    """Where a value lies between two places, by its logarithm."""
    first, last = math.log(min(values)), math.log(max(values))
    span = (last - first) or 1.0
    return lambda value: low + (high - low) * (math.log(value) - first) / span


def _between(sizes: Sequence[float]) -> list[float]:
    first, last = math.log(sizes[0]), math.log(sizes[-1])
    return [math.exp(first + (last - first) * step / 24) for step in range(25)]
