"""How well what validation says ranks runs by what a suite says of them. The choice itself never looks at a suite."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from debias.errors import InputError
from debias_eval.results.alike import alike, why_none_of
from debias_eval.results.files import part_of
from debias_eval.results.runs import Run
from debias_eval.results.selection import RULES, SelectionRule, finished_runs
from debias_eval.scores.intervals import Interval
from debias_eval.scores.ranks import FEWEST, spearman

DEFAULTS = ("conflicting", "worst_group", "all")


@dataclass(frozen=True)
class Ranking:
    """One rule on all these runs: Spearman's correlation with the group's accuracy, and what its first run reached."""

    rule: SelectionRule
    rho: float | None
    ci95: Interval | None
    first: str
    reached: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "rule": self.rule.name,
            "spearman": self.rho,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "first": self.first,
            "reached": self.reached,
        }


@dataclass(frozen=True)
class Rankings:
    """All rules that validation has a figure for, on the same runs."""

    suite: str
    group: str
    runs: int
    best: float
    mean: float
    rows: tuple[Ranking, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "group": self.group,
            "runs": self.runs,
            "best": self.best,
            "mean": self.mean,
            "rules": [row.as_dict() for row in self.rows],
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }


def rankings_in(folder: Path, rule: str, suite: str, group: str | None = None, arms: Sequence[str] = ()) -> Rankings:
    """`rule`, and the other rules that all its runs have a figure for, against a suite's group, over finished runs.

    `group`: by its own name, or `conflicting`, `aligned`, `worst_group` (of each run its own), `adjusted`, `balanced`
    or `all`; by default the first of DEFAULTS that every run has. `arms`: only runs of these folders below. InputError
    for a rule that looks at no validation, an unknown suite or group, and fewer than FEWEST runs.
    """
    chosen = RULES[rule]
    if chosen.figure is None:
        raise InputError(f"--against-suite ranks by validation, and rule {rule} has no figure of it; use pseudo_groups")
    runs = finished_runs(folder, arms)
    judged = [run for run in runs if suite in run.results]
    if not judged:
        names = sorted({name for run in runs for name in run.results})
        raise InputError(f"--against-suite {suite!r}: no run was judged on it; there is {', '.join(names) or 'none'}")
    ranked = [run for run in judged if chosen.score(run) is not None]
    if len(ranked) < FEWEST:
        raise InputError(
            f"--against-suite: {len(ranked)} runs have {chosen.figure} and a result on {suite}; it takes {FEWEST}"
        )
    name = _group_of(ranked, suite, group)
    truth = [part_of(run.results[suite], name).accuracy for run in ranked]  # type: ignore[union-attr]
    others = [one for one in RULES.values() if one.figure is not None and one is not chosen]
    rules = [chosen, *(one for one in others if all(one.score(run) is not None for run in ranked))]
    return Rankings(
        suite,
        name,
        len(ranked),
        max(truth),
        math.fsum(truth) / len(truth),
        tuple(_ranking(one, ranked, truth) for one in rules),
        tuple(run.name for run in runs if run not in ranked),
        tuple([*_notes(ranked, chosen), *_apart(ranked, suite)]),
    )


def _group_of(runs: Sequence[Run], suite: str, group: str | None) -> str:
    results = [run.results[suite] for run in runs]
    if group is None:
        return next(name for name in DEFAULTS if all(part_of(one, name) for one in results))
    without = next((run.name for run, one in zip(runs, results, strict=True) if part_of(one, group) is None), None)
    if without is not None:
        known = ", ".join(list(results[0].groups)[:8]) or "none of its own"
        raise InputError(f"--group {group!r}: {without} has no such group on {suite}; its groups are {known}")
    return group


def _ranking(rule: SelectionRule, runs: Sequence[Run], truth: Sequence[float]) -> Ranking:
    scores = [score for run in runs if (score := rule.score(run)) is not None]
    found = spearman(scores, truth)
    first = max(range(len(runs)), key=scores.__getitem__)
    rho, interval = (None, None) if found is None else found
    return Ranking(rule, rho, interval, runs[first].name, truth[first])


def _notes(runs: Sequence[Run], rule: SelectionRule) -> list[str]:
    """What a reader has to know before the numbers."""
    found = ["these runs may share a seed or a setting: the intervals take them as independent"]
    guessers = {repr((run.config.get("bias_model"), run.config.get("first_stage"))) for run in runs}
    if rule.name == "pseudo_groups" and len(guessers) > 1:
        found.append(f"the runs have {len(guessers)} different bias models, whose pseudo groups are not the same")
    return found


def _apart(runs: Sequence[Run], suite: str) -> list[str]:
    """Which runs were judged on other rows, or scored otherwise, than most: their ranks are of another scale."""
    results = [run.results[suite] for run in runs]
    first, *rest = alike(results)
    most = [results[i] for i in first]
    whys = [why_none_of(results[one[0]], most) or "judged otherwise" for one in rest]
    names = [", ".join(runs[i].name for i in one) for one in rest]
    return [f"{name}: {why}, and ranked all the same" for name, why in zip(names, whys, strict=True)]


def ranking_table(found: Rankings) -> Table:
    """One row a rule."""
    title = f"{found.runs} runs by validation against {found.suite}, {found.group}"
    under = [f"best run {100 * found.best:.1f} %, mean of all {100 * found.mean:.1f} %", *found.notes]
    if found.left_out:
        under.append(f"without a figure or a result: {', '.join(found.left_out)}")
    table = Table(title=Text(title), caption=Text("\n".join(under)), title_justify="left", caption_justify="left")
    for name in ("rule", "Spearman", "95 % interval", "its first run", "which reached"):
        table.add_column(name, overflow="fold")
    for row in found.rows:
        rho = "all equal" if row.rho is None else f"{row.rho:+.2f}"
        between = "–" if row.ci95 is None else f"{row.ci95[0]:+.2f} to {row.ci95[1]:+.2f}"
        first = "".join(c if c.isprintable() else "?" for c in row.first)
        table.add_row(row.rule.name, rho, between, Text(first), f"{100 * row.reached:.1f} %")
    return table
