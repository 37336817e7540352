"""A study: methods by name (its arms) on one testbed over seeds, and a file that keeps every finished run.

    name: planted_sst2
    recipe: minilm_biased_sst2_erm      # the testbed, and what all arms share with `settings`
    settings: {max_steps: 300}
    seeds: 5                            # or a list
    new_data: true                      # a seed also draws the planted shortcut and the subset
    suites: [biased_sst2, sst2]
    floor: erm
    ceiling: oracle
    clean: sst2                         # where a method should lose nothing: a suite, or suite/group
    arms:
      erm: {}
      oracle: {data.planted_bias: null}
      logit_correction: {bias_model: {name: first_learned}, loss: {name: logit_correction}}

Runs lie in OUT/ARM/default/seedN; finished and judged ones are added to the file of kept runs beside the study's own
(`planted_sst2.jsonl`), and are not made again, here or on another machine.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from debias.config.data import Strict
from debias.config.places import find_recipe
from debias.config.reading import parse, read_yaml
from debias.errors import InputError
from debias.runs.kept import SUFFIX, keep, kept, result_of, told_of, unpack
from debias.sweep.grid import NOT_TO_SET, PlannedRun, changed_inputs, plan_sweep, safe_name

OfItsRows = Callable[[str, Mapping[str, Any]], bool]
ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.+-]{0,60}$")]


class Study(Strict):
    """The file of a study, as above."""

    name: ArmName
    recipe: str = Field(min_length=1)
    settings: dict[str, Any] = Field({})
    arms: dict[ArmName, dict[str, Any]] = Field(min_length=1)
    seeds: int | tuple[int, ...] = Field(5)
    new_data: bool = False
    suites: tuple[str, ...] = Field((), description="as `debias eval --suite` takes them, files beside the study too")
    limit: int | None = Field(None, ge=1)
    floor: str | None = None
    ceiling: str | None = None
    group: str | None = None
    clean: str | None = Field(None, min_length=1)

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, value: int | tuple[int, ...]) -> tuple[int, ...]:
        seeds = tuple(range(value)) if isinstance(value, int) else value
        if not 1 <= len(seeds) <= 10_000 or len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError(f"expected a number of seeds such as 5, or a list of different ones, got {value!r}")
        return seeds

    @model_validator(mode="after")
    def _names_fit(self) -> "Study":
        for key in ("floor", "ceiling"):
            if (arm := getattr(self, key)) is not None and arm not in self.arms:
                raise ValueError(f"{key} is {arm!r}, no arm of the study; the arms are {', '.join(self.arms)}")
        if (self.floor is None) != (self.ceiling is None):
            raise ValueError("floor and ceiling go together: give both, or none")
        for where, settings in {"settings": self.settings, **self.arms}.items():
            if own := [key for key in settings if key.split(".")[0] in NOT_TO_SET]:
                raise ValueError(f"{where}: {own[0]} is the study's own; remove it")
        return self


def read_study(path: Path) -> Study:
    """InputError in one line that names the field."""
    return parse(Study, read_yaml(path), str(path))


def kept_beside(path: Path) -> Path:
    """Where the finished runs of a study's file are kept."""
    return path.with_suffix(SUFFIX)


def suites_of(study: Study, path: Path) -> tuple[str, ...]:
    """The study's suites as `debias eval --suite` takes them; one that is a file beside the study's is found there."""
    beside = {name: path.parent / name for name in study.suites}
    return tuple(str(file) if file.is_file() else name for name, file in beside.items())


def plan_study(study: Study, path: Path, out: Path, arms: Sequence[str] = ()) -> list[PlannedRun]:
    """Every run of the study, or of some arms, in the order to make them: the seed changes slowest.

    `path`: the study's file; a recipe that lies beside it is found there. InputError for an arm that is none.
    """
    if unknown := [arm for arm in arms if arm not in study.arms]:
        raise InputError(f"--arm {unknown[0]!r}: the arms of {path} are {', '.join(study.arms)}")
    beside = path.parent / study.recipe
    recipe = find_recipe(beside if beside.is_file() else Path(study.recipe))
    planned: list[PlannedRun] = []
    for seed in study.seeds:  # type: ignore[union-attr]
        for arm in arms or study.arms:
            changes = _overrides(study.settings, study.arms[arm])
            (run,) = plan_sweep([recipe], [seed], [changes], out, new_data=study.new_data)
            planned.append(_renamed(run, len(planned), arm, out))
    return planned


def _overrides(shared: Mapping[str, Any], own: Mapping[str, Any]) -> tuple[str, ...]:
    """As on the command line. An arm's own settings come last, and a block of its own is all that is in that block."""
    kept = {key: value for key, value in shared.items() if not any(f"{key}.".startswith(f"{one}.") for one in own)}
    return tuple(f"{key}={json.dumps(value)}" for key, value in [*kept.items(), *own.items()])


def _renamed(run: PlannedRun, index: int, arm: str, out: Path) -> PlannedRun:
    name = f"{safe_name(arm)}/default/seed{run.seed}"
    return PlannedRun(index, run.recipe, name, run.overrides, run.seed, out.absolute() / name, run.settings)


def _is_of(record: Mapping[str, Any], run: PlannedRun) -> bool:
    """Whether a kept run of that name has the planned run's settings, and read the data that lies here, if any does."""
    if record.get("digest") != run.digest:
        return False
    return changed_inputs(told_of(record), run) is None


class Keeper:
    """The file of kept runs of one study: what it holds already, and one more."""

    def __init__(
        self, path: Path, suites: Mapping[str, int], limit: int | None, of_its_rows: OfItsRows = lambda *_: True
    ) -> None:
        """`suites`: what each is called in results, to its version. `of_its_rows`: whether a result of that suite is
        of the rows that it has now.
        """
        self.path, self.suites, self.limit, self.of_its_rows = path, suites, limit, of_its_rows
        self._held = {record["run"]: record for record in kept(path)}

    def holds(self, run: PlannedRun) -> bool:
        """Whether this very run was made and judged on all suites, as they are now."""
        record = self._held.get(run.name)
        if record is None or not _is_of(record, run):
            return False
        results = {name: result_of(record, name) for name in self.suites}
        return all(
            (results[name].get("version"), results[name].get("limit")) == (version, self.limit)
            for name, version in self.suites.items()
        ) and self._rows_are_same(record)

    def _rows_are_same(self, record: Mapping[str, Any]) -> bool:
        """Of all suites that it was judged on."""
        results = {name: result_of(record, name) for name in self.suites}
        return all(self.of_its_rows(name, result) for name, result in results.items() if result)

    def add(self, run: PlannedRun) -> None:
        """Keep the finished run; a second time changes nothing."""
        if not self.holds(run):
            keep(self.path, run.folder, run.name, digest=run.digest, seed=run.seed)
            self._held = {record["run"]: record for record in kept(self.path)}

    def unpack(self, runs: Sequence[PlannedRun], into: Path) -> list[str]:
        """Lay what is kept of these runs below `into`; the names of what is not of them.

        That is of an arm that is gone, or of settings or rows that have changed since: no result of the study as it is
        now.
        """
        now = {run.name: run for run in runs}
        held = [(name, record) for name, record in self._held.items() if name in now and _is_of(record, now[name])]
        own = [name for name, record in held if self._rows_are_same(record)]
        unpack(self.path, into, own)
        return [name for name in self._held if name not in own]
