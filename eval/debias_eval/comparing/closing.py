"""`debias compare SWEEP --floor A --ceiling B`: how much of the gap between two methods each other method closes."""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from debias.errors import InputError
from debias_eval.comparing.costs import Cost, cost_notes, costs_of
from debias_eval.comparing.objections import about_suite, about_training
from debias_eval.comparing.roles import methods_and_roles
from debias_eval.results.files import Result, part_of
from debias_eval.results.runs import Method
from debias_eval.scores.closing import Closed, gap_closed

# What a suite may have besides its groups.
PARTS = ("conflicting", "worst_group", "aligned", "adjusted", "balanced", "all")


@dataclass(frozen=True)
class Closing:
    """One method on one group of one suite: the mean accuracies over the seeds that count, and what it closes."""

    suite: str
    group: str
    method: str
    n: int
    floor: float
    ceiling: float
    value: float
    closed: Closed


@dataclass(frozen=True)
class Closings:
    """All methods on all suites, what each cost, and what a reader may object."""

    floor: str
    ceiling: str
    rows: tuple[Closing, ...]
    costs: tuple[Cost, ...]
    objections: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: each row with the fields of `closed` among its own."""
        whole = asdict(self)
        whole["rows"] = [
            {**{key: value for key, value in row.items() if key != "closed"}, **row["closed"]} for row in whole["rows"]
        ]
        return whole


def closings_in(
    folders: Sequence[Path], floor: str, ceiling: str, group: str | None = None, *, arms: bool = False
) -> Closings:
    """What every method in the folders closes of the gap; `group` by name, else the suite's conflicting or worst group.

    Where there is no other method the ceiling stands in the rows itself: its gap is what there is to say. With `arms`
    methods are called by their runs' folder, as the arms of a study are.

    InputError in one line for unknown names, and where the three were judged on no suite in common.
    """
    low, high, others = methods_and_roles(folders, floor, ceiling, arms=arms)
    judged = others or [high]
    suites = _common_suites(low, high, judged)
    rows: list[Closing] = []
    objections = [*about_training(low, high), *(one for method in others for one in about_training(low, method))]
    for suite in suites:
        for method in judged:
            apart, also = about_suite(suite, low, high, method)
            objections += [*([apart] if apart else []), *also]
            if apart or not method.results(suite):
                continue
            if row := _row(suite, low, high, method, group):
                rows.append(row)
            else:
                objections.append(f"suite {suite}: left out, not every run has the group {group!r} there")
    if group is not None and not rows:
        _refuse_group(group, suites, low, high, judged)
    costs = costs_of([low, high, *others])
    objections += cost_notes(costs)
    return Closings(low.name, high.name, tuple(rows), tuple(costs), tuple(dict.fromkeys(objections)))


def _common_suites(floor: Method, ceiling: Method, others: Sequence[Method]) -> list[str]:
    judged = [{suite for run in method.runs for suite in run.results} for method in (floor, ceiling)]
    found = sorted(judged[0] & judged[1])
    if not found:
        lists = [", ".join(sorted(one)) or "no suite" for one in judged]
        raise InputError(
            f"no gap to measure: the floor {floor.name} was judged on {lists[0]}, the ceiling {ceiling.name} on "
            f"{lists[1]}; run `debias eval RUN --suite NAME`"
        )
    shared = [suite for suite in found if any(method.results(suite) for method in others)]
    if not shared:
        raise InputError(
            f"floor and ceiling were judged on {', '.join(found)}, {others[0].name} was not; "
            "run `debias eval RUN --suite NAME`"
        )
    return shared


def _row(suite: str, floor: Method, ceiling: Method, method: Method, group: str | None) -> Closing | None:
    """None where some run lacks the group."""
    sides = [{_seed(run.seed, run.name): run.results[suite] for run in one.runs if suite in run.results} for one in
             (floor, ceiling, method)]  # fmt: skip
    name = group or default_group([result for side in sides for result in side.values()])
    parts = [{seed: part_of(result, name) for seed, result in side.items()} for side in sides]
    values = [{seed: part.accuracy for seed, part in side.items() if part is not None} for side in parts]
    if any(len(known) < len(side) for known, side in zip(values, sides, strict=True)):
        return None
    closed = gap_closed(*values)
    counted = _counted(values, closed)
    some = next(part for part in parts[0].values() if part is not None)
    return Closing(suite, name, method.name, some.n, *counted, closed=closed)


def _counted(values: Sequence[dict[str, float]], closed: Closed) -> tuple[float, float, float]:
    """The means over the seeds that the ratio was made of."""
    shared = set(values[0]) & set(values[1]) & set(values[2])
    means = []
    for side, used in zip(values, closed.seeds, strict=True):
        kept = [value for seed, value in side.items() if len(side) == used or seed in shared]
        means.append(sum(kept) / len(kept))
    return means[0], means[1], means[2]


def _seed(seed: Any, name: str) -> str:
    """A run that recorded no seed is nobody's pair."""
    return f"run {name}" if seed is None else str(seed)


def default_group(results: Sequence[Result]) -> str:
    """The group where the gap is, if nobody names one: the first of these that all results have."""
    return next(name for name in ("conflicting", "worst_group", "all") if all(part_of(one, name) for one in results))


def _refuse_group(group: str, suites: Sequence[str], *roles: Any) -> None:
    methods = [*roles[:2], *roles[2]]
    results = [one for method in methods for suite in suites for one in method.results(suite)]
    known = sorted(
        {name for one in results for name in one.groups} | {p for p in PARTS if any(part_of(r, p) for r in results)}
    )
    if group in known:
        return
    near = difflib.get_close_matches(group, known, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known[:8])}"
    raise InputError(f"--group {group!r} is no group of {', '.join(suites)}; {meant}")
