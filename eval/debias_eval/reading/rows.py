"""A suite's rows before they are read as examples: those that belong to it, with label and group made from numbers."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from debias.config.data import DataConfig
from debias.data.rows import NumberedRow, is_missing, is_null
from debias.errors import InputError
from debias_eval.reading.suite import GroupColumns, Suite

log = logging.getLogger(__name__)
NONE, SEVERAL = "none", "several"


class Rows:
    """The suite's own rules on raw rows, `config` being how this source of them is read.

    In order: rows outside `keep` and, with `skip_empty`, rows without text are left out; `label_threshold` makes a
    label of a number; `group_columns` make a group of several columns; a row that lacks the group which earlier rows
    have belongs to none.
    """

    def __init__(self, suite: Suite, config: DataConfig) -> None:
        self.suite = suite
        self.config = config
        self.seen: Counter[str] = Counter()

    def __call__(self, rows: Iterable[NumberedRow]) -> Iterator[NumberedRow]:
        """The rows that are left, changed; InputError for a value that does not fit and for kept values not found."""
        grouped, empty = False, 0
        for number, row in rows:
            if not self._kept(row, number):
                continue
            if self.suite.skip_empty and any(is_missing(row.get(field)) for field in self.config.text_fields):
                empty += 1
                continue
            changed = self._with_group(self._with_label(row, number), number, grouped)
            grouped = grouped or self.config.group_field in changed
            yield number, changed
        if empty:
            log.info("suite %s: left out %d rows without text", self.suite.name, empty)
        self._check_kept()

    def _kept(self, row: Mapping[str, Any], number: int) -> bool:
        keep = self.suite.keep
        if keep is None:
            return True
        named = {"id": self.config.id_field, "group": self.config.group_field}.get(keep.field) or keep.field
        cell = self._column(row, named, number, "keep")
        value = "" if is_null(cell) else str(cell)  # as an empty cell: nobody wrote "None"
        self.seen[value] += 1
        return value in keep.values

    def _check_kept(self) -> None:
        keep = self.suite.keep
        if keep is None:
            return
        for value in keep.values:
            if value not in self.seen:
                found = ", ".join(repr(name) for name, _ in self.seen.most_common(8))
                raise InputError(f"suite {self.suite.name}: keep names {keep.field} {value!r}; the data has {found}")

    def _with_label(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        threshold, field = self.suite.label_threshold, self.config.label_field
        if threshold is None:
            return row
        value = self._number(self._column(row, field, number, "label_field"), field, number)
        return {**row, field: self.suite.labels[int(value >= threshold)]}

    def _with_group(self, row: dict[str, Any], number: int, grouped: bool) -> dict[str, Any]:
        field, rule = self.config.group_field, self.suite.group_columns
        if field is None:
            return row
        if rule is not None:
            return {**row, field: self._mentioned(rule, row, number)}
        return {**row, field: None} if grouped and field not in row else row

    def _mentioned(self, rule: GroupColumns, row: Mapping[str, Any], number: int) -> str:
        values = {name: self._column(row, name, number, "group_columns") for name in rule.names}
        found = [
            name
            for name, value in values.items()
            if not is_missing(value) and self._number(value, name, number) >= rule.at_least
        ]
        return found[0] if len(found) == 1 else SEVERAL if found else NONE

    def _column(self, row: Mapping[str, Any], name: str, number: int, setting: str) -> Any:
        if name not in row:
            where = f"suite {self.suite.name}: row {number}"
            raise InputError(f"{where}: no column {name!r} ({setting}); the columns are {', '.join(row)}")
        return row[name]

    def _number(self, value: Any, name: str, number: int) -> float:
        try:
            read = float(value)
        except (TypeError, ValueError):
            read = math.nan
        if math.isnan(read):
            raise InputError(f"suite {self.suite.name}: row {number}: {name} is {value!r}, expected a number")
        return read
