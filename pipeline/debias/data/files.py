"""Local files as rows: JSON lines, CSV, TSV and Parquet, plain or gzipped; whatever is wrong becomes one line."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from debias.errors import InputError

NumberedRow = tuple[int, dict[str, Any]]

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def kind_of(name: str) -> str | None:
    """The suffix that says how to read a file of that name, without a final .gz; None if it is not one of SUFFIXES."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in SUFFIXES else None


def read_rows(path: Path) -> Iterator[NumberedRow]:
    """The rows of a local file, numbered from 1: by line in JSON lines, by record below the header elsewhere.

    Raises InputError for a file that cannot be opened, unpacked, decoded or parsed.
    """
    kind = kind_of(path.name)
    with _clear_errors(path):
        if kind == ".parquet":
            yield from _parquet(path)
        elif kind in (".csv", ".tsv"):
            yield from _csv(path, "," if kind == ".csv" else "\t")
        elif kind is not None:
            yield from _json_lines(path)
        else:
            raise InputError(f"{path}: unknown kind of file, expected {', '.join(SUFFIXES)}, each also with .gz")


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: damaged gzip file: {error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start} of a block") from None
    except (OSError, ValueError, NotImplementedError) as error:  # the last two: what pyarrow raises
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read: {reason}") from None


def parquet_classes(path: Path, column: str) -> list[str] | None:
    """Names of the classes of an integer column, where `datasets` stored them in the Parquet file; None where not."""
    with _clear_errors(path):
        stored = (_parquet_file(path).schema_arrow.metadata or {}).get(b"huggingface")
    if stored is None:
        return None
    feature = json.loads(stored).get("info", {}).get("features", {}).get(column)
    names = feature.get("names") if isinstance(feature, dict) else None
    return names if isinstance(names, list) else None


def _open_text(path: Path) -> TextIO:
    # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name.
    if path.suffix.lower() == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(path: Path) -> Iterator[NumberedRow]:
    with _open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _json_object(line, f"{path}: row {number}")


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where}: broken JSON: {error}; expected one object on each line") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: holds a JSON {type(row).__name__}, expected one object on each line")
    return row


def _csv(path: Path, delimiter: str) -> Iterator[NumberedRow]:
    with _open_text(path) as lines:
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        number = 0
        try:
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    columns = len(reader.fieldnames or ())
                    raise InputError(f"{path}: row {number}: number of fields differs from the header's {columns}")
                yield number, row
        except csv.Error as error:
            raise InputError(f"{path}: row {number + 1}: broken CSV: {error}") from None


def _parquet(path: Path) -> Iterator[NumberedRow]:
    start = 1
    file = _parquet_file(path)
    for batch in file.iter_batches(batch_size=10_000):
        yield from enumerate(batch.to_pylist(), start=start)
        start += batch.num_rows


def _parquet_file(path: Path) -> Any:
    import pyarrow.parquet as pq

    source: Any = path
    if path.suffix.lower() == ".gz":
        source = io.BytesIO(gzip.decompress(path.read_bytes()))
    return pq.ParquetFile(source)
