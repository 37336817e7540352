"""Which columns of a file are text, label and group: by their names where these leave no doubt, else by what is there.

What stays in doubt is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from debias.audit.reading import Columns, label_column, labels_of, text_columns
from debias.config.data import DataSource, has_pictures
from debias.data.rows import NumberedRow, is_missing
from debias.data.sources import rows_of
from debias.errors import InputError

ROWS = 20_000  # that are looked at
MOST_VALUES = 20  # of a column that is taken for a label or a group by its values
TEXT_WORDS = 4  # on average, of a column that is taken for text
GROUPS = (
    *("group", "groups", "group_id", "subgroup", "domain", "genre", "topic", "identity", "subcase", "heuristic"),
    *("phenomenon", "template", "gender", "dialect", "aligned", "bias"),
)
LENGTHS = (64, 128, 256, 512)
TOKENS_A_WORD = 1.5  # of English in the vocabularies of today's models, punctuation counted


@dataclass(frozen=True)
class Table:
    """The first rows of a source: `name` is what messages call it; `whole`: whether these are all that there are."""

    name: str
    header: tuple[str, ...]
    rows: Sequence[NumberedRow]
    classes: Sequence[str] | None
    whole: bool

    def values(self, column: str) -> list[Any]:
        """What stands in a column, without blank cells."""
        return [row[column] for _, row in self.rows if not is_missing(row.get(column))]


def read_table(source: str, label_field: str | None = None) -> Table:
    """The first rows of a file, a pattern or a hub id. InputError for pictures, and for a source without rows."""
    if has_pictures(source):
        raise InputError(f"--data: {source} holds pictures; launch/recipes has runs on those, colored_mnist_edge")
    told = DataSource.model_validate({"source": source})
    where, rows, classes = rows_of(told, label_field or "label", most=ROWS + 1)
    if not rows:
        raise InputError(f"{where}: no rows, it is empty")
    return Table(where, tuple(map(str, rows[0][1])), rows[:ROWS], classes, len(rows) <= ROWS)


def guess_label(table: Table) -> str:
    """The column of the label; InputError where several could be it, or none."""
    try:
        return label_column(table.name, table.header, Columns())
    except InputError:
        found = [name for name in table.header if _is_choice(table, name)]
        named = [name for name in found if name.lower() not in GROUPS]
        if len(named) != 1:
            raise
        return named[0]


def guess_texts(table: Table, label_field: str) -> tuple[str, ...]:
    """The columns of text, one or two; InputError where that is in doubt."""
    try:
        return text_columns(table.name, table.header, Columns(), label_field)
    except InputError:
        found = tuple(name for name in table.header if name != label_field and _words(table, name) >= TEXT_WORDS)
        if len(found) not in (1, 2):
            raise
        return found


def guess_group(table: Table, taken: Sequence[str]) -> str | None:
    """The column of groups: one that is called so, with few values; None where there is none, or several are."""
    named = [name for name in table.header if name.lower() in GROUPS and name not in taken]
    found = [name for name in named if 2 <= len(set(map(str, table.values(name)))) <= 5 * MOST_VALUES]
    return found[0] if len(found) == 1 else None


def labels_in(table: Table, label_field: str) -> tuple[str, ...]:
    """The labels that occur in the rows, in the order of their names; blank cells are none."""
    filled = [(number, row) for number, row in table.rows if not is_missing(row.get(label_field))]
    return labels_of(table.name, label_field, filled, table.classes)


def max_length(table: Table, text_fields: Sequence[str]) -> int:
    """Tokens that hold 95 of 100 rows, by their words, as a power of two."""
    words = sorted(sum(len(str(row.get(field, "")).split()) for field in text_fields) for _, row in table.rows)
    wanted = TOKENS_A_WORD * words[int(0.95 * (len(words) - 1))]
    return next((length for length in LENGTHS if length >= wanted), LENGTHS[-1])


def _is_choice(table: Table, column: str) -> bool:
    """Whether a column has a few values, each of a word or three, that come again and again."""
    values = table.values(column)
    distinct = set(map(str, values))
    few = 2 <= len(distinct) <= MOST_VALUES and len(values) >= 2 * len(distinct)
    return few and max(len(value.split()) for value in distinct) <= 3


def _words(table: Table, column: str) -> float:
    values: Sequence[Any] = table.values(column)
    texts: list[str] = [value for value in values if isinstance(value, str)]
    return sum(len(text.split()) for text in texts) / len(texts) if len(texts) == len(values) > 0 else 0.0


def others(table: Table, used: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """The columns that no setting uses."""
    return [name for name in table.header if name not in used]
