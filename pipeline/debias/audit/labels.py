"""The labels of a column: what occurs, what means no label, and which of them are written in several ways."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from debias.config.data import twins
from debias.data.reader import MANY, NO_GOLD_LABEL
from debias.data.rows import is_missing, is_null
from debias.errors import InputError

MOST_LABELS = 100
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


@dataclass(frozen=True)
class LabelColumn:
    """Of a column of `rows` rows: how many have each label, in the order of their names; how many have a mark that
    means no label (`unlabelled`), of those marks which are taken for labels here (`marks`), and how many rows have an
    `empty` cell.
    """

    field: str
    rows: int
    counts: Mapping[str, int]
    unlabelled: Mapping[str, int]
    marks: tuple[str, ...]
    empty: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels as they are written."""
        return tuple(self.counts)

    @property
    def label_map(self) -> dict[str, str]:
        """What makes one of labels that are written in several ways: the most frequent, without spaces around it."""
        found: dict[str, str] = {}
        for alike in twins(self.labels):
            tidy = {label: (self.counts[label], label == label.strip(), label.islower()) for label in alike}
            name = max(alike, key=tidy.__getitem__).strip()
            found |= {label: name for label in alike if label != name}
        return found

    def about_marks(self) -> list[str]:
        """Of cells and marks that mean no label, here or elsewhere: how many rows have them, and what they are taken
        for.
        """
        lines = [
            f"{self.field}: {self._rows(count)} have {value!r}, which means no label, and are left out; where it is a "
            "label, name it in data.labels"
            for value, count in self.unlabelled.items()
        ]
        if self.empty:
            lines.append(f"{self.field}: {self._rows(self.empty)} are empty, have no label for it, and are left out")
        for value in self.marks:
            others = ", ".join(label for label in self.labels if label != value)
            lines.append(
                f"{self.field}: {value!r}, in {self._rows(self.counts[value])}, is taken for a label beside {others}; "
                "where it means no label, take it out of data.labels"
            )
        return lines

    def about_twins(self) -> list[str]:
        """Of labels that are one but for how they are written, a line for each such label."""
        lines = []
        for alike in twins(self.labels):
            told = ", ".join(f"{label!r} ({self.counts[label]:,})" for label in alike)
            wanted = {label: name for label, name in self.label_map.items() if label in alike}
            lines.append(
                f"{self.field}: {told} differ in how they are written alone, and are {len(alike)} labels; to make them "
                f"one: data.label_map: {json.dumps(wanted, ensure_ascii=False)}"
            )
        return lines

    def _rows(self, count: int) -> str:
        return f"{count:,} of {self.rows:,} rows ({100 * count / self.rows:.1f} %)"


def column_of(where: str, field: str, values: Sequence[Any], classes: Sequence[str] | None) -> LabelColumn:
    """What a column of labels holds; an empty cell has none. `classes`: the names behind numbers, if there are any.

    InputError for fewer than two labels, and for more than MOST_LABELS.
    """
    seen = Counter(named(value, classes) for value in values if not is_missing(value))
    counts = {str(label): count for label, count in seen.items()}
    marks = [mark for mark in NO_GOLD_LABEL if mark in counts]
    others = set(counts) - set(marks)
    kept = tuple(mark for mark in marks if classes is None and _is_label(mark, others, counts[mark] / len(values)))
    unlabelled = {mark: counts.pop(mark) for mark in marks if mark not in kept}
    empty = len(values) - seen.total()
    if len(counts) > MOST_LABELS:
        some = ", ".join(repr(label) for label in sorted(counts, key=lambda label: -counts[label])[:3])
        raise InputError(
            f"{where}: {field} has {len(counts)} values ({some}, ...), expected at most {MOST_LABELS} labels; "
            "name another with --label-field"
        )
    if len(counts) < 2:
        told = f"is {next(iter(counts))!r} in every row" if counts else "is empty"
        but = f" but {empty} that are empty" if empty and counts else ""
        but += "".join(f" but {count} with {mark!r}, which means no label" for mark, count in unlabelled.items())
        raise InputError(f"{where}: {field} {told}{but}: with fewer than two labels nothing can give one away")
    return LabelColumn(field, len(values), {label: counts[label] for label in sorted(counts)}, unlabelled, kept, empty)


def _is_label(mark: str, others: set[str], share: float) -> bool:
    """Whether -1 or - is a label beside these others: the low end of a scale, as minus is beside plus and -1 beside 1.

    Beside words, and beside the numbers 0 to k of classes, it means no label, as in SNLI. Beside 0 and 1 it may be
    either: no label where few rows have it, as of a pair of classes; else the low end of three.
    """
    if mark == "-":
        return "+" in others
    if not others or not all(map(_NUMBER.fullmatch, others)):
        return False
    values = set(map(float, others))
    if min(values) < 0 or len(values) == 1:
        return True
    return max(values) == 1 and (values != {0.0, 1.0} or share > MANY)


def named(value: Any, classes: Sequence[str] | None) -> str | None:
    """The label of a cell: of a number its name among the `classes`; None of null and NaN."""
    if classes and isinstance(value, int) and 0 <= value < len(classes):
        return classes[value]
    return None if is_null(value) else str(value)
