"""From a row to an example: each value is checked, and what is wrong is said with file and row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from debias.config.data import DataConfig, DataSource
from debias.data.examples import NO_LABEL, Example
from debias.data.rows import is_missing, is_null
from debias.data.shards import Origin
from debias.errors import InputError

NO_GOLD_LABEL = ("-1", "-1.0", "-")  # a column of -1 and 1 with one empty cell is one of floats elsewhere
MANY = 0.05  # of the rows without a gold label: SNLI has up to 2 %, and where it is more, it may be a label


@dataclass(frozen=True)
class Reader:
    """Turns rows into examples; `classes` are the names behind integer labels."""

    origin: Origin
    split: str
    data: DataConfig
    classes: Sequence[str] | None
    bias_column: str | None
    p_columns: tuple[str, ...]
    pictures: bool  # not asked of `data` for each row, which reads a name

    def example(self, number: int, row: Mapping[str, Any]) -> Example | None:
        """The row as an example; None if it has no gold label: an empty cell, -1 or "-"."""
        data, where = self.data, self.origin.row(number)
        texts = self._texts(row, where)
        label = self._label(_column(row, data.label_field, "label_field", where), where)
        weight = None if self.bias_column is None else _weight(row, self.bias_column, where)
        if label is None:
            return None
        group = None if data.group_field is None else _column(row, data.group_field, "group_field", where)
        return Example(
            id=self._id(number, row),
            texts=texts,
            label=label,
            group=None if is_missing(group) else str(group),
            bias_weight=weight,
            bias_p=_distribution(row, self.p_columns, where) if self.p_columns else None,
            image=row["image"] if self.pictures else None,
        )

    def told(self, source: DataSource) -> Any:
        """All that says what is made of a row, beside the row."""
        data = self.data
        fields = (data.text_fields, data.label_field, data.id_field, data.group_field, self.bias_column, self.p_columns)
        labels = (data.labels, sorted(data.label_map.items()), self.classes)
        return fields, labels, (self.split, source.name, source.delimiter, source.quotes)

    def unlabelled(self, number: int, row: Mapping[str, Any]) -> Example:
        """The row as an example, whatever it says of labels, groups and weights."""
        return Example(self._id(number, row), self._texts(row, self.origin.row(number)), NO_LABEL)

    def _texts(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        return tuple(_text(row, field, where) for field in self.data.text_fields)

    def columns(self, number: int, row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """What the row holds under these names, None for an empty cell; InputError for a column that it lacks."""
        where = self.origin.row(number)
        values = {name: _column(row, name, "column", where) for name in names}
        return {name: None if is_missing(value) else value for name, value in values.items()}

    def _id(self, number: int, row: Mapping[str, Any]) -> str:
        given = row.get(self.data.id_field) if self.data.id_field else None
        return f"{self.split}-{number}" if is_missing(given) else str(given)

    def _label(self, value: Any, where: str) -> int | None:
        labels, label_map = self.data.labels, self.data.label_map
        raw = name = str(value)
        if is_null(value):  # label_map alone can say what it stands for: a label "None" is one that was written
            return labels.index(label_map[raw]) if raw in label_map else None
        if self.classes and isinstance(value, int) and 0 <= value < len(self.classes):
            name = self.classes[value]
        label = label_map.get(raw) or label_map.get(name, name)
        if label in labels:
            return labels.index(label)
        if raw in NO_GOLD_LABEL or is_missing(value):
            return None
        known = f"labels {list(labels)}" + (f" and label_map {dict(label_map)}" if label_map else "")
        seen = repr(value) if name == raw else f"{value!r} ({name})"
        raise InputError(f"{where}: label {seen} is not in {known}; data.label_map says which label a value stands for")


def _column(row: Mapping[str, Any], name: str, setting: str, where: str) -> Any:
    if name not in row:
        raise InputError(
            f"{where}: no column {name!r} ({setting}); the columns are {', '.join(map(str, row)) or 'none'}"
        )
    return row[name]


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = _column(row, field, "text_fields", where)
    if not isinstance(value, str):
        raise InputError(f"{where}: {field} is {value!r}, expected text")
    if not value.strip():
        raise InputError(f"{where}: {field} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {field} holds half of a character at {error.start} ({value[error.start]!r})"
        ) from None
    return value


def _weight(row: Mapping[str, Any], column: str, where: str) -> float:
    value = _column(row, column, "bias_weight.column", where)
    weight = _number(value)
    if not math.isfinite(weight) or weight < 0:
        raise InputError(f"{where}: {column} is {value!r}, expected a finite number that is not negative")
    return weight


def _distribution(row: Mapping[str, Any], columns: Sequence[str], where: str) -> tuple[float, ...]:
    """The probabilities in these columns, which sum to 1 but for the rounding of who wrote them."""
    found = tuple(_probability(row, column, where) for column in columns)
    if abs(sum(found) - 1) > 1e-3:
        raise InputError(f"{where}: {', '.join(columns)} are {list(found)}, which sum to {sum(found):.4g}, expected 1")
    return found


def _probability(row: Mapping[str, Any], column: str, where: str) -> float:
    value = _column(row, column, "bias_model.columns", where)
    p = _number(value)
    if not 0 <= p <= 1:
        raise InputError(f"{where}: {column} is {value!r}, expected a probability in [0, 1]")
    return p


def _number(value: Any) -> float:
    """NaN for what is no number; yes and no are none."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
