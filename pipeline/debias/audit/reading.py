"""A file of a person, or a source that configs accept, as examples: which columns are text and label, and what labels.

What cannot be told from the header without a doubt is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from debias.audit.guessing import ROWS, Columns, Table, label_of, texts_of
from debias.audit.labels import column_of
from debias.config.data import DataConfig, DataSource, has_pictures
from debias.config.reading import parse
from debias.data import Example, load_examples
from debias.data.sources import rows_of
from debias.errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Examples with what their fields and labels are called; `name` is what a reader knows the data by, `layout` what
    was said of how it is laid out, `about_labels` what somebody should know of the labels, a line each.
    """

    name: str
    fields: tuple[str, ...]
    label_field: str
    labels: tuple[str, ...]
    examples: Sequence[Example]
    layout: Mapping[str, Any] = field(default_factory=dict)
    about_labels: tuple[str, ...] = ()


def read_dataset(
    name: str, columns: Columns, *, labels: Sequence[str] = (), limit: int | None = None, split: str = "train"
) -> Dataset:
    """The data of this name. `labels`: those that it may have, else all that occur; `limit`: a random part of it.

    InputError, in one line, for a column that is not there (with the nearest), a column that has to be named, fewer
    than two labels, labels that are no labels, an empty source, and all that is wrong with a row.
    """
    if has_pictures(name):
        raise InputError(f"{name}: holds pictures, and an audit reads words")
    source = parse(DataSource, {"source": name, "limit": limit, "split": split, **columns.layout}, name)
    where, rows, classes = rows_of(source, columns.label_field or "label")
    if not rows:
        raise InputError(f"{where}: it is empty, expected rows with a text and a label")
    table = Table(where, tuple(map(str, rows[0][1])), rows[:ROWS], classes, len(rows) <= ROWS)
    label_field = label_of(table, columns)
    if label_field != (columns.label_field or "label"):
        where, rows, classes = rows_of(source, label_field)
    fields = texts_of(table, columns, label_field)
    column = None if labels else column_of(where, label_field, [row.get(label_field) for _, row in rows], classes)
    found = tuple(labels) if column is None else column.labels
    data = DataConfig(train=source, text_fields=fields, label_field=label_field, labels=found)
    examples = load_examples(source, data, base=Path.cwd())
    about = (*column.about_marks(), *column.about_twins()) if column else ()
    return Dataset(name, fields, label_field, found, examples, columns.layout, about)


def read_like(data: Dataset, name: str) -> Dataset:
    """Other data with the fields, labels and layout of this, such as a test set."""
    return read_dataset(name, Columns(data.fields, data.label_field, data.layout), labels=data.labels)
