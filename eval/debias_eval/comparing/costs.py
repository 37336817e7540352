"""What the methods cost beside the floor: seconds of everything, and the examples seen in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from debias_eval.comparing.objections import examples_before, examples_seen
from debias_eval.results.runs import Method, Run
from debias_eval.scores.intervals import Interval

CLOCKS = ("seconds", "cpu_seconds")  # of run.json
CLOSE = 1.1  # seconds of one machine vary by so much from run to run


@dataclass(frozen=True)
class Cost:
    """Means over a method's runs; None where a run did not record it.

    `seconds` by the clock, and `cpu_seconds` of the first rank's process: of run.json, which holds the runs before the
    run, its bias model and earlier attempts. `examples`: seen in training, and `before` in the runs before the run.
    `over_floor`, `cpu_over_floor`: over the floor's, of the seeds that both have, where they have any: runs of one seed
    are made side by side, and a busy machine is slow for both. `cpu_range`: the least and the most of these seeds.
    `machines`: on which.
    """

    method: str
    seconds: float | None
    over_floor: float | None
    cpu_seconds: float | None
    cpu_over_floor: float | None
    examples: float | None
    before: float | None
    machines: tuple[str, ...]
    cpu_range: tuple[float, float] | None = None


def costs_of(methods: Sequence[Method]) -> list[Cost]:
    """The cost of each method; the first is the floor."""
    return [_cost(methods[0], method) for method in methods]


def _cost(floor: Method, method: Method) -> Cost:
    (wall, over, _), (cpu, cpu_over, cpu_range) = (_on_a_clock(floor, method, name) for name in CLOCKS)
    return Cost(
        *(method.name, wall, over, cpu, cpu_over),
        _mean([examples_seen(run) for run in method.runs]),
        _mean([examples_before(run) for run in method.runs]),
        tuple(sorted({_machine(run) for run in method.runs})),
        cpu_range,
    )


def _on_a_clock(floor: Method, method: Method, name: str) -> tuple[float | None, float | None, Interval | None]:
    """The mean of the method's seconds, its ratio to the floor's, and the least and most of that over shared seeds."""
    mean = _mean([_seconds(run, name) for run in method.runs])
    sides = [{run.seed: _seconds(run, name) for run in one.runs if run.seed is not None} for one in (floor, method)]
    pairs = [(sides[0][seed], sides[1][seed]) for seed in sides[0] if seed in sides[1]]
    known = [(low, own) for low, own in pairs if low is not None and own is not None]
    if not known or len(known) < len(pairs):
        first = _mean([_seconds(run, name) for run in floor.runs])
        return mean, mean / first if mean is not None and first else None, None
    ratios = [own / low for low, own in known]
    return mean, sum(own for _, own in known) / sum(low for low, _ in known), (min(ratios), max(ratios))


def cost_notes(costs: Sequence[Cost]) -> list[str]:
    """What keeps seconds from being equal, or from being known."""
    notes = []
    for one in costs:
        if one.seconds is None:
            notes.append(f"unknown cost: a run of {one.method} has no seconds in its run.json")
        elif one.over_floor is not None and not 1 / CLOSE <= one.over_floor <= CLOSE:
            notes.append(f"unequal cost: {one.method} took {one.over_floor:.2f} times the floor's seconds")
    if len({one.machines for one in costs}) > 1:
        words = "; ".join(f"{one.method}: {', '.join(one.machines)}" for one in costs)
        notes.append(f"seconds of different machines are not to be compared: {words}")
    return notes


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _seconds(run: Run, name: str) -> float | None:
    seconds: Any = run.info.get(name)
    real = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < float("inf")
    return float(seconds) if real else None


def _machine(run: Run) -> str:
    machine = run.info.get("machine")
    if not isinstance(machine, dict):
        return "unknown"
    return f"{machine.get('world_size', 1)} x {machine.get('device', 'unknown')}"
