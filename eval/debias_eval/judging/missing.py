"""Which results of a sweep's runs are still to be made."""

from collections.abc import Sequence
from pathlib import Path

from debias.errors import InputError
from debias_eval.reading.collection import choose
from debias_eval.results.files import read_result, result_path


class Missing:
    """The suites that were asked for; a result of another version, limit or a damaged file counts as none."""

    def __init__(self, names: Sequence[str], limit: int | None) -> None:
        self.limit = limit
        self.suites = {one.name: one.suite for one in choose(names)}

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
        return (result.version, result.limit) == (suite.version, self.limit)
