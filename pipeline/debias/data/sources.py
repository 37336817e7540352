"""From a data source to examples: the generator, a local file, or a hub id; every row is checked.

Rows without a gold label (-1 or "-", as SNLI has them, or an empty cell) are dropped and counted in the log, with a
warning where they are many, unless `label_map` or `labels` gives that value a meaning.
"""

import logging
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from debias.config.data import DataConfig, DataSource
from debias.data.examples import Example, labels_of
from debias.data.files import kind_of, parquet_classes
from debias.data.generator import generate
from debias.data.grammar import PHENOMENA
from debias.data.images import image_rows
from debias.data.reader import MANY, NO_GOLD_LABEL, Reader
from debias.data.rows import Layout, NumberedRow
from debias.data.shards import Origin, files_there, is_pattern, resolve_files, resolve_path
from debias.data.store import Notes, key_of
from debias.data.tables import Examples, keep_examples
from debias.errors import InputError

log = logging.getLogger(__name__)

GENERATED_SIZE = 3000


def load_examples(
    source: DataSource,
    data: DataConfig,
    *,
    base: Path | None = None,
    bias_column: str | None = None,
    p_columns: Sequence[str] = (),
    require_every_label: bool = False,
) -> list[Example]:
    """The examples of a source in its order, labels as indices into `data.labels`.

    `base` is the folder relative paths are looked up in first; `bias_column` fills `Example.bias_weight`, and
    `p_columns`, one for each label, `Example.bias_p`. Raises
    InputError (file and row, value seen, what would be right); with `require_every_label` also for an absent class.
    """
    read = load_with_columns(source, data, (), base=base, bias_column=bias_column, p_columns=p_columns)
    kept = [example for example, _ in read]
    if require_every_label:
        _check_every_label(kept, data.labels, source.source)
    return kept


def load_with_columns(
    source: DataSource,
    data: DataConfig,
    columns: Sequence[str],
    *,
    base: Path | None = None,
    bias_column: str | None = None,
    p_columns: Sequence[str] = (),
    through: Callable[[Iterable[NumberedRow]], Iterable[NumberedRow]] = iter,
) -> list[tuple[Example, dict[str, Any]]]:
    """As `load_examples`, each example beside the values of these other columns of its row.

    The rows go `through` a function first, which may leave some out and change others.
    """
    origin, rows, classes = _open(source, data, base)
    rows = through(rows)
    reader = Reader(origin, source.split, data, classes, bias_column, tuple(p_columns), data.pictures)
    read = [(reader.example(number, row), reader.columns(number, row, columns)) for number, row in rows]
    gold = [(example, extra) for example, extra in read if example is not None]
    _say_what_was_dropped(origin.name, len(read), len(gold))
    kept = _subset(len(gold), source, origin.name)
    return gold if kept is None else [gold[index] for index in kept]


def _examples_alone(read: Iterable[tuple[Example, dict[str, Any]]]) -> Iterator[Example]:
    return (example for example, _ in read)


@dataclass(frozen=True)
class Underway:
    """What becomes of rows on their way into a kept table; `told` says all of it, for the table's key.

    Rows go `through` a function as in `load_with_columns`; examples, each beside the values of `columns` of its row, go
    through `then`.
    """

    told: Any = None
    through: Callable[[Iterable[NumberedRow]], Iterable[NumberedRow]] = iter
    columns: Sequence[str] = ()
    then: Callable[[Iterable[tuple[Example, dict[str, Any]]]], Iterator[Example]] = _examples_alone


def kept_examples(
    source: DataSource,
    data: DataConfig,
    *,
    base: Path | None = None,
    bias_column: str | None = None,
    p_columns: Sequence[str] = (),
    require_every_label: bool = False,
    underway: Underway | None = None,
) -> Examples:
    """As `load_examples`, of texts alone: read and checked once for the same content and settings, and kept."""
    way = underway or Underway()
    opened = [_open(source, data, base, lazily=True)]
    origin, _, classes = opened[0]
    stamps = origin.stamps()

    def reader_of(origin: Origin) -> Reader:
        return Reader(origin, source.split, data, classes, bias_column, tuple(p_columns), pictures=False)

    def make(notes: Notes) -> Iterator[Example]:
        origin, rows, _ = opened.pop() if opened else _open(source, data, base, lazily=True)
        notes |= {"read": 0, "gold": 0}
        yield from way.then(_counted(reader_of(origin), way.through(rows), way.columns, notes))
        if not notes["gold"]:
            _say_what_was_dropped(origin.name, notes["read"], 0)
        if origin.stamps() != stamps:
            raise InputError(f"{origin.name}: has changed while it was read; start again")

    told = reader_of(origin).told(source), *([] if way.told is None else [way.told])
    examples = keep_examples(key_of("rows", origin.content(), *told), make)
    _say_what_was_dropped(origin.name, examples.table.notes["read"], examples.table.notes["gold"])
    kept = _subset(len(examples), source, origin.name)
    if kept is not None:
        examples = examples.take(np.array(kept, dtype=np.int64))
    if require_every_label:
        _check_every_label(examples, data.labels, source.source)
    return examples


def _counted(
    reader: Reader, rows: Iterable[NumberedRow], columns: Sequence[str], notes: Notes
) -> Iterator[tuple[Example, dict[str, Any]]]:
    """Those of the rows that have a gold label, and in `notes` how many were read and have one."""
    for number, row in rows:
        notes["read"] += 1
        example, extra = reader.example(number, row), reader.columns(number, row, columns)
        if example is not None:
            notes["gold"] += 1
            yield example, extra


def _say_what_was_dropped(where: str, read: int, gold: int) -> None:
    """In the log; InputError where nothing is left."""
    if gold < read:
        share = 1 - gold / read
        hint = "; where -1, - or an empty cell is a label, name it in labels, or say in label_map what it stands for"
        told = (where, read - gold, read, 100 * share, hint if share > MANY else "")
        log.log(
            logging.WARNING if share > MANY else logging.INFO,
            "%s: dropped %d of %d rows without a gold label (%.1f %%)%s",
            *told,
        )
    if not gold:
        raise InputError(f"{where}: no examples" + (", all rows lack a gold label" if read else ", it is empty"))


def rows_of(
    source: DataSource, label_field: str, *, most: int | None = None, characters: int | None = None
) -> tuple[str, list[NumberedRow], Sequence[str] | None]:
    """The rows of a source as they stand, what to call it, and the names behind integer labels if it has any.

    `most`: only so many, from the first on, up to the one with which they hold more `characters`. `source.limit` is not
    heeded, but where rows are made. InputError as in `load_examples`.
    """
    data = DataConfig.model_validate({"train": source, "label_field": label_field})
    origin, rows, classes = _open(source, data, None)
    return origin.name, list(_first(rows, most, characters)), classes


def _first(rows: Iterable[NumberedRow], most: int | None, characters: int | None) -> Iterator[NumberedRow]:
    held = 0
    for number, row in islice(rows, most):
        yield number, row
        held += size_of(row)
        if characters is not None and held > characters:
            return


def size_of(row: Mapping[str, Any]) -> int:
    """The characters of a row's texts."""
    return sum(len(value) for value in row.values() if isinstance(value, str))


def unlabelled(source: DataSource, data: DataConfig, *, id_field: str | None = None) -> Iterator[tuple[int, Example]]:
    """The rows of a source with their numbers, one after another and none held: texts and an id, no label asked for.

    `id_field`: a column that must be there; else that of `data`, where there is one. InputError as in `load_examples`.
    """
    if id_field is not None:
        data = data.model_copy(update={"id_field": id_field})
    origin, rows, _ = _open(source, data, None)
    reader = Reader(origin, "row", data, None, None, (), pictures=False)
    for number, row in rows:
        if id_field is not None:
            reader.columns(number, row, (id_field,))
        yield number, reader.unlabelled(number, row)


def _open(
    source: DataSource, data: DataConfig, base: Path | None, *, lazily: bool = False
) -> tuple[Origin, Iterable[NumberedRow], Sequence[str] | None]:
    """The source by its name, its rows, and the class names behind integer labels if it has any.

    With `lazily` generated rows are made when the first is asked for: perhaps never, where they are kept.
    """
    if source.source == "generated":
        _refuse_name(source)
        chosen = source.phenomena or tuple(PHENOMENA)
        made = (source.split, source.limit or GENERATED_SIZE, source.seed, chosen)
        return (
            Origin(f"generated[{source.split}]", made=made),
            _generated(*made) if lazily else enumerate(generate(*made), start=1),
            None,
        )
    found = files_there(source.source, base)
    if data.pictures:
        _refuse_name(source)
        path = resolve_path(source.source, base)
        return Origin(str(path)), image_rows(path), None
    if kind_of(source.source) or is_pattern(source.source) or (found and not found[0].is_dir()):
        files = resolve_files(source.source, base)
        name = str(files[0]) if len(files) == 1 else f"{source.source} ({len(files)} files)"
        origin = Origin(name, files, _layout(source, data))
        return origin, origin.rows(), _classes(files, data.label_field)
    return _open_hub(source, data, found[0] if found else None)


def _generated(split: str, size: int, seed: int, phenomena: Sequence[str]) -> Iterator[NumberedRow]:
    yield from enumerate(generate(split, size, seed, phenomena), start=1)


def _layout(source: DataSource, data: DataConfig) -> Layout:
    return Layout(source.delimiter, source.quotes, source.name, (data.label_field, partial(_is_label, data)))


def _is_label(data: DataConfig, text: str) -> bool:
    """Whether a cell could be a label: one that is known, none, or a number."""
    known = {*data.labels, *data.label_map, *NO_GOLD_LABEL}
    return text in known or re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _classes(files: Sequence[Path], column: str) -> list[str] | None:
    """What the Parquet files say of the label's classes; InputError where two say otherwise."""
    told = {file: parquet_classes(file, column) for file in files if kind_of(file.name) == ".parquet"}
    if not told:
        return None
    first, known = next(iter(told.items()))
    for file, classes in told.items():
        if classes != known:
            raise InputError(f"{file}: the classes of {column!r} are {classes}, in {first} they are {known}")
    return known


def _refuse_name(source: DataSource) -> None:
    for key in ("name", "delimiter", "quotes"):
        if (value := getattr(source, key)) is not None:
            goes = "a hub dataset or a workbook" if key == "name" else "a .csv or .tsv file"
            raise InputError(f"{source.source}: {key} is {value!r}, which goes with {goes}; remove it")


def _open_hub(
    source: DataSource, data: DataConfig, folder: Path | None
) -> tuple[Origin, Iterable[NumberedRow], Sequence[str] | None]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(str(folder or source.source), source.name, split=source.split)
    except Exception as error:  # the library raises its own, the hub's, and those of every file format
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"{source.source}: neither a file here nor a dataset that can be loaded (split {source.split!r}): "
            f"{type(error).__name__}: {reason}; without a connection, give a local file or a dataset already in the "
            "Hugging Face cache"
        ) from None
    classes = getattr(dataset.features.get(data.label_field), "names", None)
    # Without a fingerprint nobody could say what it was: it is then another one each time.
    made = getattr(dataset, "_fingerprint", None) or secrets.token_hex(16)
    return Origin(f"{source.source}[{source.split}]", made=made), enumerate(dataset, start=1), classes


def _subset(size: int, source: DataSource, where: str) -> list[int] | None:
    """The places of those that the source's limit keeps; None for all."""
    if source.limit is None or source.source == "generated":
        return None
    if source.limit >= size:
        log.info("%s: limit is %d, all %d examples are used", where, source.limit, size)
        return None
    return sorted(Random(f"limit/{source.seed}").sample(range(size), source.limit))


def _check_every_label(examples: Sequence[Example], labels: Sequence[str], where: str) -> None:
    present = set(labels_of(examples).tolist())
    missing = [name for index, name in enumerate(labels) if index not in present]
    if missing:
        raise InputError(f"{where}: no example of {', '.join(missing)} among {len(examples)}; each label must occur")
