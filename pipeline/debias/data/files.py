"""Local files as rows: JSON lines, CSV, TSV, Parquet and Excel, plain or packed; whatever is wrong becomes one line.

The one reader of training and of judging. As many rows come out as there are in the file.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from debias.config.regular import check_regular
from debias.data.delimited import check_header, delimited_rows
from debias.data.excel import excel_rows
from debias.data.opening import PACKED, lines_of, open_bytes, open_text, unpacked_name
from debias.data.rows import Layout, NumberedRow
from debias.errors import InputError

DELIMITED = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".xlsx")


def kind_of(name: str) -> str | None:
    """The suffix that says how to read a file of that name, without a final .gz or .zst; None if it is not known."""
    suffix = Path(unpacked_name(name)).suffix
    return suffix if suffix in SUFFIXES else None


def read_rows(path: Path, layout: Layout | None = None) -> Iterator[NumberedRow]:
    """The rows of a local file, numbered from 1: by line in JSON lines, by record below the header elsewhere.

    Raises InputError for a file that cannot be opened, unpacked, decoded or parsed, and for a layout that is another
    kind of file's.
    """
    kind, layout = kind_of(path.name), layout or Layout()
    check_regular(path)
    _check_layout(path, kind, layout)
    with _clear_errors(path):
        if kind == ".parquet":
            yield from _parquet(path)
        elif kind in DELIMITED:
            yield from delimited_rows(path, replace(layout, delimiter=layout.delimiter or DELIMITED[kind]))
        elif kind == ".xlsx":
            yield from excel_rows(path, layout.sheet)
        elif kind is not None:
            yield from _json_lines(path)
        else:
            packed = " or ".join(PACKED)
            raise InputError(f"{path}: unknown kind of file, expected {', '.join(SUFFIXES)}, each also with {packed}")


def _check_layout(path: Path, kind: str | None, layout: Layout) -> None:
    for key, value in (("delimiter", layout.delimiter), ("quotes", layout.quotes)):
        if value is not None and kind not in DELIMITED:
            raise InputError(f"{path}: {key} is {value!r}, which goes with {' and '.join(DELIMITED)}; remove it")
    if layout.sheet is not None and kind != ".xlsx":
        raise InputError(
            f"{path}: name is {layout.sheet!r}, but only a hub dataset has named configurations, and .xlsx sheets"
        )


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
    except (OSError, ValueError, NotImplementedError, MemoryError) as error:  # the middle two: what pyarrow raises
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read: {reason}") from None


def parquet_classes(path: Path, column: str) -> list[str] | None:
    """Names of the classes of an integer column, where `datasets` stored them in the Parquet file; None where not."""
    with _clear_errors(path):
        stored = (_parquet_file(path).schema_arrow.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(stored or "{}").get("info", {}).get("features", {}).get(column)
    except (ValueError, AttributeError, RecursionError):
        return None  # somebody else's words under that name
    names = feature.get("names") if isinstance(feature, dict) else None
    return names if isinstance(names, list) else None


def _json_lines(path: Path) -> Iterator[NumberedRow]:
    with open_text(path) as text:
        for number, line in enumerate(lines_of(text, path), start=1):
            if line.strip():
                yield number, _json_object(line, f"{path}: row {number}")


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_each_once)
    except _Twice as error:
        raise InputError(f"{where}: the key {error.args[0]!r} is there twice") from None
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise InputError(f"{where}: broken JSON: {error}; expected one object on each line") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: holds a JSON {type(row).__name__}, expected one object on each line")
    return row


class _Twice(Exception):
    """A key that an object has twice; of the two values, JSON's reader takes the last without a word."""


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return found


def _parquet(path: Path) -> Iterator[NumberedRow]:
    start = 1
    file = _parquet_file(path)
    check_header(path, file.schema_arrow.names)
    for batch in file.iter_batches(batch_size=10_000):
        yield from enumerate(batch.to_pylist(), start=start)
        start += batch.num_rows
    if start - 1 != file.metadata.num_rows:
        raise InputError(f"{path}: row {start}: {start - 1} rows were read, the file says {file.metadata.num_rows}")


def _parquet_file(path: Path) -> Any:
    import pyarrow.parquet as pq

    with open_bytes(path) as file:
        packed = path.suffix.lower() in PACKED
        return pq.ParquetFile(io.BytesIO(file.read()) if packed else path)
