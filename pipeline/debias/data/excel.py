"""Rows of an Excel workbook (.xlsx), read with openpyxl where it is installed."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from debias.data.delimited import check_header
from debias.data.opening import open_bytes
from debias.data.rows import NumberedRow, is_missing
from debias.errors import InputError


def excel_rows(path: Path, sheet: str | None) -> Iterator[NumberedRow]:
    """The rows below the first one of a sheet, which names the columns; rows without a value are none.

    Formulas count with the values that were stored. InputError without openpyxl, for a sheet that is not there, and for
    several sheets of which none is named.
    """
    book = _book(path)
    rows: Iterator[tuple[Any, ...]] = _sheet(path, book, sheet).iter_rows(values_only=True)
    names = ["" if is_missing(cell) else str(cell) for cell in next(rows, ())]
    check_header(path, names)
    for number, cells in enumerate(rows, start=1):
        if all(is_missing(cell) for cell in cells):
            continue
        if any(not is_missing(cell) for cell in cells[len(names) :]):
            raise InputError(f"{path}: row {number}: a value in a column that the header does not name")
        padded = [*cells, *[None] * (len(names) - len(cells))]
        yield number, dict(zip(names, padded, strict=False))


def _book(path: Path) -> Any:
    try:
        from openpyxl import load_workbook
    except ImportError:
        raise InputError(f"{path}: reading .xlsx needs openpyxl: pip install 'debias[excel]'") from None
    with open_bytes(path) as file:
        content = io.BytesIO(file.read())
    try:
        return load_workbook(content, read_only=True, data_only=True)
    except Exception as error:  # of zip files, of XML, and its own
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: is no workbook that can be read: {type(error).__name__}: {reason}") from None


def _sheet(path: Path, book: Any, name: str | None) -> Any:
    names = list(book.sheetnames)
    if name is None and len(names) > 1:
        raise InputError(f"{path}: has the sheets {', '.join(names)}; say which with name: beside source (--name)")
    if name is not None and name not in names:
        raise InputError(f"{path}: name is {name!r}, its sheets are {', '.join(names)}")
    sheet = book[name or names[0]]
    sheet.reset_dimensions()  # some programs write a size that leaves rows out
    return sheet
