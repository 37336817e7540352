"""Which columns of a file are text and label: by their names where these leave no doubt, else by what is in the rows.

What stays in doubt is asked for.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from debias.config.words import words_in
from debias.data.rows import NumberedRow, is_missing
from debias.errors import InputError

PAIRS = (
    *(("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2")),
    *(("claim", "evidence"), ("question", "sentence"), ("question", "passage"), ("text_a", "text_b")),
)
SINGLE = ("text", "sentence", "comment_text", "comment", "review", "content", "tweet", "document")
LABEL = ("label", "gold_label", "labels", "class", "category", "target", "is_duplicate", "sentiment", "toxicity")
ROWS = 20_000  # that are looked at
MOST_VALUES = 20  # of a column that is taken for a label or a group by its values
TEXT_WORDS = 4  # on average, of a column that is taken for text
GROUPS = (
    *("group", "groups", "group_id", "subgroup", "domain", "genre", "topic", "identity", "subcase", "heuristic"),
    *("phenomenon", "template", "gender", "dialect", "aligned", "bias"),
)


@dataclass(frozen=True)
class Columns:
    """What a person said of the columns: nothing, where they are to be guessed; `layout`: and of how the file is laid
    out, settings beside `source`.
    """

    text_fields: tuple[str, ...] = ()
    label_field: str | None = None
    layout: Mapping[str, Any] = field(default_factory=dict)


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


def label_of(table: Table, columns: Columns) -> str:
    """The column of the label, as said or guessed; InputError where several could be it, or none."""
    try:
        return _label_by_name(table, columns)
    except InputError:
        found = [name for name in table.header if _is_choice(table, name)]
        named = [name for name in found if name.lower() not in GROUPS]
        if columns.label_field is not None or len(named) != 1:
            raise
        return named[0]


def texts_of(table: Table, columns: Columns, label_field: str) -> tuple[str, ...]:
    """The columns of text, one or two where they are guessed; InputError where that is in doubt."""
    try:
        return _texts_by_name(table, columns, label_field)
    except InputError:
        found = tuple(name for name in table.header if name != label_field and _words(table, name) >= TEXT_WORDS)
        if columns.text_fields or len(found) not in (1, 2):
            raise
        return found


def _label_by_name(table: Table, columns: Columns) -> str:
    if columns.label_field is not None:
        return _known(table, columns.label_field, "--label-field")
    candidates = [name for name in table.header if name.lower() in LABEL]
    if len(candidates) == 1:
        return candidates[0]
    told = f"{' and '.join(candidates)} may be it" if candidates else f"the columns are {', '.join(table.header)}"
    raise InputError(f"{table.name}: which column is the label? {told}; name it with --label-field")


def _texts_by_name(table: Table, columns: Columns, label_field: str) -> tuple[str, ...]:
    if columns.text_fields:
        return tuple(_known(table, field, "--text-field") for field in columns.text_fields)
    lower = {name.lower(): name for name in table.header}
    pairs = [pair for pair in PAIRS if set(pair) <= set(lower)]
    single = [name for name in SINGLE if name in lower]
    others = [name for name in table.header if name != label_field]
    if len(pairs) + len(single) == 1:
        return tuple(lower[name] for name in (pairs[0] if pairs else single))
    if not pairs and not single and len(others) == 1:
        return (others[0],)
    header = ", ".join(table.header)
    raise InputError(f"{table.name}: which columns are text? the columns are {header}; name each with --text-field")


def _known(table: Table, name: str, flag: str) -> str:
    if name in table.header:
        return name
    near = difflib.get_close_matches(name, table.header, n=1)
    hint = f"did you mean {near[0]}? the columns are" if near else "the columns are"
    raise InputError(f"{table.name}: no column {name!r} ({flag}); {hint} {', '.join(table.header)}")


def _is_choice(table: Table, column: str) -> bool:
    """Whether a column has a few values, each of a word or three, that come again and again."""
    values = table.values(column)
    distinct = set(map(str, values))
    few = 2 <= len(distinct) <= MOST_VALUES and len(values) >= 2 * len(distinct)
    return few and max(len(value.split()) for value in distinct) <= 3


def _words(table: Table, column: str) -> float:
    values: Sequence[Any] = table.values(column)
    texts: list[str] = [value for value in values if isinstance(value, str)]
    return sum(map(words_in, texts)) / len(texts) if len(texts) == len(values) > 0 else 0.0
