"""Which model counts as a method's own: rules by name, of which only `oracle` looks at a suite.

The manner of DomainBed (Gulrajani and Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021): a rule is a part
of a result. Within a run it is the setting `selection`, and run.json tells which checkpoint was kept; here it chooses
among the configurations of a method, by the mean over their seeds of what the kept checkpoints reached.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.table import Table
from rich.text import Text

from debias.config.run import STAGES
from debias.errors import InputError
from debias.runs.data_files import DATA_FILES
from debias.runs.names import CELLS, CONFIG, SUMMARY
from debias.runs.records import append_record
from debias_eval.results.alike import why_apart
from debias_eval.results.chosen import RECORDS, sweep_of
from debias_eval.results.files import Result
from debias_eval.results.grouped import group_runs
from debias_eval.results.runs import Run, flatten, read_runs, unpacked

# Runs whose validation data differ cannot be ranked by it.
VALIDATION_KEYS = ("data.validation", "data.planted", "data.labels", "data.text_fields", "data.label", "data.group")
# Runs whose bias models differ have other pseudo groups.
GUESSED_BY = ("bias_model", "first_stage")


class Candidate(Protocol):
    """One configuration: its name and its runs, one for each seed (`debias_eval.results.runs.Method` is one)."""

    @property
    def name(self) -> str: ...

    @property
    def runs(self) -> tuple[Run, ...]: ...


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


@dataclass(frozen=True)
class SelectionRule:
    """A rule: the validation figure whose mean it takes the largest of, or none; `sees_test` flags it everywhere."""

    name: str
    words: str
    figure: str | None = None
    sees_test: bool = False

    def score(self, run: Run, suite: str | None = None) -> float | None:
        """What the run's kept checkpoint reached, larger is better; None where nothing was measured."""
        if self.sees_test:
            return _of_suite(run, suite)
        return None if self.figure is None else _validated(run, self.figure)


RULES = {
    rule.name: rule
    for rule in (
        SelectionRule("last", "the last step"),
        SelectionRule("validation", "best in-distribution validation accuracy", "eval_accuracy"),
        SelectionRule("worst_class", "best worst-class validation accuracy", "eval_worst_class_accuracy"),
        SelectionRule(
            "pseudo_groups",
            "best mean over validation's pseudo groups (label and bias model's guess)",
            "eval_pseudo_group_accuracy",
        ),
        SelectionRule("oracle", "ORACLE: best on the test suite itself, no fair result", sees_test=True),
    )
}


def rule_of(name: str) -> SelectionRule:
    """The rule of that name; InputError that lists them."""
    if name not in RULES:
        raise InputError(f"rule is {name!r}, not one of {', '.join(RULES)}")
    return RULES[name]


def select(candidates: Sequence[AnyCandidate], rule: str, suite: str | None = None) -> AnyCandidate:
    """The candidate with the largest mean score over its seeds; of equal ones the first.

    `oracle` needs `suite` where runs were judged on several. A candidate that lacks a seed which another has is passed
    over: what fails on a seed must not win by it. InputError where the rule cannot choose: `last` among several, runs
    that were never validated, other validation data, no candidate left.
    """
    chosen = rule_of(rule)
    if not candidates:
        raise InputError("nothing to select from")
    whole = _complete(candidates)
    if not whole:
        raise InputError(f"no configuration has all seeds: {', '.join(one.name for one in candidates)}")
    if len(whole) == 1:
        return whole[0]
    if chosen.figure is None and not chosen.sees_test:
        raise InputError(
            f"rule last cannot choose among {len(whole)} configurations ({whole[0].name}, {whole[1].name}, ...); use"
            " validation, worst_class or pseudo_groups"
        )
    if chosen.sees_test:
        _check_judged_alike([run for one in whole for run in one.runs], suite)
    else:
        _check_same_validation(whole, chosen)
    scores = [mean_score(one, chosen, suite) for one in whole]
    return whole[max(range(len(whole)), key=scores.__getitem__)]


def mean_score(candidate: Candidate, rule: SelectionRule, suite: str | None = None) -> float:
    """The mean of the rule's score over the candidate's runs; InputError for a run that has none."""
    scores = []
    for run in candidate.runs:
        score = rule.score(run, suite)
        if score is None:
            what = f"result on {suite}" if rule.sees_test else f"{rule.figure} in metrics.jsonl"
            cure = "judge it first (`debias eval`)" if rule.sees_test else "set data.validation and eval_strategy"
            cure += ", and name a bias_model" if rule.name == "pseudo_groups" else ""
            raise InputError(f"{run.name} has no {what}: rule {rule.name} cannot rank it; {cure}")
        scores.append(score)
    return math.fsum(scores) / len(scores)


def _complete(candidates: Sequence[AnyCandidate]) -> list[AnyCandidate]:
    seeds = {run.seed for one in candidates for run in one.runs}
    return [one for one in candidates if {run.seed for run in one.runs} == seeds]


def _validated(run: Run, figure: str) -> float | None:
    """The figure of the checkpoint that the run kept: at the selected step, else at the last that was validated.

    A run without its metrics, as a study keeps it, has what its summary says of pseudo groups.
    """
    step = run.info.get("selected_step")
    lines = [line for line in run.metrics if _is_number(line.get(figure))]
    summary = run.info.get(CELLS)
    if not run.metrics and isinstance(summary, dict) and _is_number(summary.get(figure)):
        return float(summary[figure])
    if step is not None:
        lines = [line for line in lines if line.get("step") == step]
    return float(lines[-1][figure]) if lines else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _of_suite(run: Run, suite: str | None) -> float | None:
    result = _result_on(run, suite)
    if result is None:
        return None
    return result.worst_group.accuracy if result.worst_group is not None else result.accuracy


def _result_on(run: Run, suite: str | None) -> Result | None:
    if suite is None and len(run.results) > 1:
        raise InputError(f"{run.name} was judged on {', '.join(run.results)}: say on which the oracle looks (--suite)")
    name = suite if suite is not None else next(iter(run.results), None)
    return run.results.get(name) if name is not None else None


def _check_judged_alike(runs: Sequence[Run], suite: str | None) -> None:
    judged = [(run.name, result) for run in runs if (result := _result_on(run, suite)) is not None]
    for name, result in judged[1:]:
        if why := why_apart(result, judged[0][1]):
            raise InputError(
                f"{name} was {why}, unlike {judged[0][0]}: on {result.suite} an oracle cannot rank them; judge them "
                "alike (`debias eval`)"
            )


def _check_same_validation(candidates: Sequence[Candidate], rule: SelectionRule) -> None:
    keys = (*VALIDATION_KEYS, *(GUESSED_BY if rule.name == "pseudo_groups" else ()))

    def data_of(candidate: Candidate) -> dict[str, Any]:
        wanted = {key.partition(".")[0] for key in keys}
        settings = flatten({key: value for key, value in candidate.runs[0].config.items() if key in wanted})
        return {key: value for key, value in settings.items() if key.startswith(keys)}

    first = data_of(candidates[0])
    for other in candidates[1:]:
        theirs = data_of(other)
        files = [one.runs[0].files("validation") for one in (candidates[0], other)]
        if all(files) and files[0] != files[1]:
            raise InputError(
                f"{candidates[0].name} and {other.name} were validated on other data: files of one name with other "
                f"content ({DATA_FILES} in their run.json)"
            )
        for key in sorted({*first, *theirs}):
            if not key.endswith(".seed") and first.get(key) != theirs.get(key):
                what = "have other pseudo groups" if key.startswith(GUESSED_BY) else "were validated on other data"
                raise InputError(
                    f"{candidates[0].name} and {other.name} {what}: {key} is {first.get(key)!r} and {theirs.get(key)!r}"
                )


@dataclass(frozen=True)
class Choice:
    """What a rule chose of a method: its runs, flagged where the rule saw the test, and their mean score."""

    method: str
    rule: SelectionRule
    suite: str | None
    name: str
    runs: tuple[Run, ...]
    score: float | None
    candidates: int
    passed_over: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "rule": self.rule.name,
            "sees_test": self.rule.sees_test,
            "suite": self.suite,
            "configuration": self.name,
            "runs": [str(run.path) for run in self.runs],
            "mean": self.score,
            "candidates": self.candidates,
            "passed_over": list(self.passed_over),
        }


@dataclass(frozen=True)
class Configuration:
    """A candidate: runs of a folder that differ in their seeds alone."""

    name: str
    runs: tuple[Run, ...]


def choices_in(folder: Path, rule: str, suite: str | None = None, arms: Sequence[str] = ()) -> list[Choice]:
    """One choice for each method below a folder: for each recipe of a sweep, else for what runs call their method.

    Where the grid of a recipe goes over rules or losses, each of these is a method of its own. Of a study's kept runs,
    and where `arms` are named, it is one choice among these arms (the first folder below). Runs that have not finished
    are no candidates. InputError as `select`, and for a folder without runs.
    """
    chosen = rule_of(rule)
    if suite is not None and not chosen.sees_test:
        raise InputError(f"--suite goes with rule oracle: {rule} looks at no suite")
    choices = []
    for method, candidates in _candidates(folder, arms).items():
        best = select(candidates, rule, suite)
        known = chosen.sees_test or all(chosen.score(run) is not None for run in best.runs)
        score = mean_score(best, chosen, suite) if known else None
        suite = suite or (next(iter(best.runs[0].results)) if chosen.sees_test else None)
        over = tuple(one.name for one in candidates if one not in _complete(candidates))
        runs = tuple(flagged(run, suite) for run in best.runs) if chosen.sees_test else best.runs
        choices.append(Choice(method, chosen, suite, best.name, runs, score, len(candidates), over))
    return choices


def flagged(run: Run, suite: str | None) -> Run:
    """The run as tables must show it when it was chosen by the test's own answers."""
    return dataclasses.replace(run, info={**run.info, "selection": f"oracle ({suite})"})


def finished_runs(folder: Path, arms: Sequence[str] = ()) -> list[Run]:
    """The runs below a folder, or in a study's file, that have finished, but for those before a run.

    `arms`: only of these folders below. InputError where there is none.
    """
    folder = unpacked(Path(folder).resolve())
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of runs, and no file of kept ones")
    folders = sorted(path.parent for path in folder.rglob(CONFIG) if (path.parent / SUMMARY).is_file())
    folders = [one for one in folders if STAGES not in one.relative_to(folder).parts]
    runs = [run for run in read_runs(folders) if run.info.get("status") == "finished"] if folders else []
    if not runs:
        raise InputError(f"{folder}: holds no finished run")
    if not arms:
        return runs
    known = list(dict.fromkeys(_arm_of(run, folder) for run in runs))
    if unknown := [arm for arm in arms if arm not in known]:
        raise InputError(f"--arm {unknown[0]!r}: has no finished run in {folder.name}; there are {', '.join(known)}")
    return [run for run in runs if _arm_of(run, folder) in arms]


def _arm_of(run: Run, folder: Path) -> str:
    below = run.path.resolve().relative_to(folder).parts
    if not below:
        raise InputError(f"--arm: {folder} is one run, whose arms would lie below it; give the folder of a study")
    return below[0]


def _candidates(folder: Path, arms: Sequence[str]) -> dict[str, list[Configuration]]:
    runs = finished_runs(folder, arms)
    kept, folder = Path(folder).is_file(), unpacked(Path(folder).resolve())
    if kept or arms:
        of_arm: dict[str, list[Run]] = {}
        for run in runs:
            of_arm.setdefault(_arm_of(run, folder), []).append(run)
        return {folder.name: [Configuration(arm, tuple(own)) for arm, own in of_arm.items()]}
    is_sweep = (folder / RECORDS).is_file()
    methods: dict[str, list[Run]] = {}
    for run in runs:
        below = run.path.resolve().relative_to(folder).parts
        name = below[0] if is_sweep and len(below) > 1 else run.called or run.name
        methods.setdefault(name, []).append(run)
    for recipe, members in list(methods.items()):
        if is_sweep and len({run.formula for run in members}) > 1:
            del methods[recipe]
            for run in members:
                methods.setdefault(f"{recipe}: {run.formula}", []).append(run)
    return {name: _configurations(members, folder) for name, members in methods.items()}


def _configurations(runs: Sequence[Run], folder: Path) -> list[Configuration]:
    named = []
    for group in group_runs(runs):
        parts = [run.path.resolve().relative_to(folder).parts for run in group.runs]
        name = "/".join(parts[0][:-1] if len(parts[0]) > 1 else parts[0])
        named.append(Configuration(name or group.name, group.runs))
    return named


def remember(choices: Sequence[Choice]) -> None:
    """Add the choices to the records of the sweep that the runs lie in, wherever above or below the folder that was
    asked for that is: there every table finds an oracle. Runs of no sweep have no records.
    """
    for choice in choices:
        of_sweep: dict[Path, list[str]] = {}
        for path in (run.path.resolve() for run in choice.runs):
            if (sweep := sweep_of(path)) is not None:
                of_sweep.setdefault(sweep, []).append(str(path.relative_to(sweep)))
        for sweep, below in of_sweep.items():
            append_record(sweep / RECORDS, {"event": "selected", **choice.as_dict(), "runs": below})


def choice_table(choices: Sequence[Choice]) -> Table:
    """One row for each method, with the rule in words; an oracle is flagged in the title and in each row."""
    rule = choices[0].rule
    by = f"chosen by: {rule.words}"
    if rule.figure is not None and any(one.score is None for one in choices):
        by += "; –: the only configuration, without a validation figure, so nothing was chosen"
    table = Table(caption=Text(by), caption_justify="left")
    for name in ("method", "configuration", "rule", "mean over seeds", "seeds", "candidates", "passed over"):
        table.add_column(name, overflow="fold")
    for one in choices:
        mean = "–" if one.score is None else f"{100 * one.score:.1f} %"
        shown = f"{one.rule.name.upper()} on {one.suite}" if one.rule.sees_test else one.rule.name
        seeds = str(len(one.runs))
        cells = (one.method, one.name, shown, mean, seeds, str(one.candidates), ", ".join(one.passed_over) or "–")
        table.add_row(*(Text("".join(c if c.isprintable() else "?" for c in cell)) for cell in cells))
    return table
