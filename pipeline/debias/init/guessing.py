"""What the first rows of a file say of a run: groups and labels. `audit.guessing` tells text and label."""

from collections.abc import Mapping, Sequence
from typing import Any

from debias.audit.guessing import GROUPS, MOST_VALUES, ROWS, Table
from debias.audit.labels import LabelColumn, column_of
from debias.config.data import DataSource, has_pictures
from debias.config.reading import parse
from debias.data.sources import rows_of, size_of
from debias.errors import InputError

IDS = ("id", "uid", "guid", "idx", "index", "pairid", "pair_id", "example_id", "row_id")
LABEL_FIELD = "label"  # whose classes are read before anybody knows which column is the label
CHARACTERS = 50_000_000  # of the rows that are read: of texts of 10,000 the first 5,000


def read_table(source: str, label_field: str | None = None, layout: Mapping[str, Any] | None = None) -> Table:
    """The first rows of a file, a pattern or a hub id, and the names of the label's classes.

    InputError for pictures, and for a source without rows.
    """
    if has_pictures(source):
        raise InputError(f"--data: {source} holds pictures; launch/recipes has runs on those, colored_mnist_edge")
    told = parse(DataSource, {"source": source, **(layout or {})}, "--data")
    where, rows, classes = rows_of(told, label_field or LABEL_FIELD, most=ROWS + 1, characters=CHARACTERS)
    if not rows:
        raise InputError(f"{where}: no rows, it is empty")
    whole = len(rows) <= ROWS and sum(size_of(row) for _, row in rows) <= CHARACTERS
    return Table(where, tuple(map(str, rows[0][1])), rows[:ROWS], classes, whole)


def guess_group(table: Table, taken: Sequence[str]) -> str | None:
    """The column of groups: one that is called so, with few values; None where there is none, or several are."""
    named = [name for name in table.header if name.lower() in GROUPS and name not in taken]
    found = [name for name in named if 2 <= len(set(map(str, table.values(name)))) <= 5 * MOST_VALUES]
    return found[0] if len(found) == 1 else None


def guess_id(table: Table, taken: Sequence[str]) -> str | None:
    """The column that names a row: one that is called so, in which no two rows have the same; None without one."""
    named = [name for name in table.header if name.lower() in IDS and name not in taken]
    found = [name for name in named if len(set(map(str, table.values(name)))) == len(table.rows)]
    return "id" if "id" in found else found[0] if len(found) == 1 else None


def labels_in(table: Table, label_field: str) -> LabelColumn:
    """What the rows have for labels; blank cells are none, and are counted."""
    return column_of(table.name, label_field, [row.get(label_field) for _, row in table.rows], table.classes)


def others(table: Table, used: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The columns that no setting uses."""
    return [name for name in table.header if name not in used]
