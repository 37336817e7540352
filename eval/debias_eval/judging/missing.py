"""Which results of a sweep's runs are still to be made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from debias.errors import InputError
from debias_eval.reading.collection import choose
from debias_eval.reading.examples import suite_examples
from debias_eval.reading.suite import Suite, available_suites
from debias_eval.results.alike import SCORING, scoring
from debias_eval.results.files import examples_sha256, gold_sha256, read_result, result_path

SEED = 0  # of a random subset, as `debias eval` draws it where nobody says another
READ = {"suite_file", "overlap", "examples_sha256", "gold_sha256", "limit_seed", "judge"}


class Missing:
    """The suites that were asked for; a result of another version, limit or a damaged file counts as none.

    So does one of another random subset (`--seed`) or scored in another way (`--normalize`, `--calibrate`, by a
    harness) than `debias eval` does where nobody says so; one of other rows than a suite of somebody's own has now, for
    nobody changes its version with its file; and one of a suite of somebody's own that has a built-in suite's name,
    where that one was asked for, or the reverse.
    """

    def __init__(self, names: Sequence[str], limit: int | None) -> None:
        self.limit = limit
        self.suites = {one.name: one.suite for one in choose(names)}
        self._digests: dict[str, tuple[str, str] | None] = {}

    def missing(self, run: Path) -> list[str]:
        """Names or files of suites, as `debias eval --suite` takes them."""
        return [name for name in self.suites if not self._has(run, name)]

    def options(self) -> list[str]:
        """Further arguments of `debias eval`."""
        return [] if self.limit is None else ["--limit", str(self.limit)]

    def _has(self, run: Path, name: str) -> bool:
        suite = self.suites[name]
        try:
            result = read_result(result_path(run, suite.name))
        except InputError:
            return False
        if (result.version, result.limit) != (suite.version, self.limit):
            return False
        return self._of_its_rows(name, result.model_dump(include=READ))

    def of_its_rows(self, suite: str, result: Mapping[str, Any]) -> bool:
        """Whether a result, as its file has it, is of the rows that the suite of that name has now, and scored as these
        runs are; also where the rows cannot be told: of a built-in suite, of rows that are not here, of results that
        leave out a run's own.
        """
        return all(self._of_its_rows(name, result) for name, one in self.suites.items() if one.name == suite)

    def _of_its_rows(self, name: str, result: Mapping[str, Any]) -> bool:
        suite, overlap = self.suites[name], result.get("overlap")
        if not _is_of(suite, result) or result.get("limit_seed") not in (None, SEED):
            return False
        if scoring(result.get("judge")) != SCORING:
            return False
        excluded = isinstance(overlap, Mapping) and overlap.get("excluded")
        if suite.file is None or excluded:
            return True
        now = self._rows(name)
        return now is None or (now[0] == result.get("examples_sha256") and result.get("gold_sha256") in (None, now[1]))

    def _rows(self, name: str) -> tuple[str, str] | None:
        """Digests of the suite's rows as they are now, and of what is known of them; None where they are not here."""
        if name not in self._digests:
            suite = self.suites[name]
            try:
                examples = suite_examples(suite, self.limit)
                self._digests[name] = examples_sha256(examples), gold_sha256(examples, suite.labels)
            except InputError:
                self._digests[name] = None
        return self._digests[name]


def _is_of(suite: Suite, result: Mapping[str, Any]) -> bool:
    """Whether a result of this name is of a suite of this kind, built in or somebody's own; by their names alone where
    a result of an older version does not say.
    """
    own = result.get("suite_file") is not None or suite.name not in available_suites()
    return own == (suite.file is not None)
