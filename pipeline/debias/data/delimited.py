"""Rows of .csv and .tsv: each record read as one row, and none lost in a field whose quote was never closed.

A quote at the beginning of a field holds it together in one kind of file (RFC 4180: spreadsheets, pandas) and is a
character as any other in another (GLUE, SNLI and HANS as .tsv). Read the wrong way, a lone quote takes the rows below
into its field, and nothing looks broken.
"""

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from debias.data.opening import LONGEST, lines_of, open_text, unpacked_name
from debias.data.rows import Layout, NumberedRow
from debias.errors import InputError

log = logging.getLogger(__name__)
QUOTED = re.compile(r'"(?:[^"]|"")*"')
NUMBER = re.compile(r'"?-?\d+(\.\d+)?"?')
DELIMITERS = {"\t": r'"\t"', ";": '";"', "|": '"|"', ",": '","'}  # and how YAML writes them
CHARACTERS = "if quotes are characters of the text, set quotes: false beside source (--no-quotes)"


def delimited_rows(path: Path, layout: Layout) -> Iterator[NumberedRow]:
    """The rows below the header, numbered from 1; InputError with the row for one that does not fit the header.

    A row that would have taken others into one of its fields is an error, too.
    """
    assert layout.delimiter is not None
    quotes = layout.quotes if layout.quotes is not None else _quotes_hold_fields(path, layout.delimiter)
    with open_text(path) as text:
        lines = lines_of(text, path)
        records = _quoted(path, lines, layout.delimiter) if quotes else _plain(lines, layout.delimiter)
        header = next(records, None)
        if header is None:
            return
        check_header(path, header)
        _check_delimiter(path, header)
        for number, record in enumerate(records, start=1):
            if len(record) != len(header):
                held = f"{len(record)} fields, the header {len(header)}"
                raise InputError(f"{path}: row {number}: number of fields differs from the header's: it has {held}")
            if quotes:
                _check_not_swallowed(path, number, header, record, layout)
            yield number, dict(zip(header, record, strict=True))


def check_header(path: Path, names: Sequence[str]) -> None:
    """InputError where a column's name is there twice: one of the two would be read, without a word."""
    twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if twice is not None:
        raise InputError(f"{path}: header: the column {twice!r} is there twice; rename one of them")


def _check_delimiter(path: Path, header: Sequence[str]) -> None:
    other = next((sign for sign in DELIMITERS if sign in header[0]), None)
    if len(header) == 1 and other is not None:
        told = f"if {DELIMITERS[other]} is between its fields, set delimiter: {DELIMITERS[other]} beside source"
        raise InputError(f"{path}: header: one column, {header[0][:80]!r}; {told} (--delimiter)")


def _quotes_hold_fields(path: Path, delimiter: str) -> bool:
    """Whether quotes hold fields together in this file; otherwise they are characters as any other.

    They are where every line has the header's number of fields with quotes as characters, and some field begins with
    a quote that it does not close. In a file of one column the number of fields proves nothing: they are in a .csv that
    is not broken when it is read so, for that is how texts of several lines are written, and not in a .tsv.
    """
    columns, whole, lone, first = None, 0, 0, 0
    with open_text(path) as text:
        for number, line in enumerate(lines_of(text, path)):
            fields = line.rstrip("\r\n").split(delimiter)
            if fields == [""]:
                continue
            columns = columns or len(fields)
            if len(fields) != columns:
                return True
            closed = (
                [QUOTED.fullmatch(field) is not None for field in fields if field[:1] == '"'] if '"' in line else []
            )
            first = first if lone else number
            whole, lone = whole + sum(closed), lone + len(closed) - sum(closed)
    a_csv = delimiter == "," or unpacked_name(path.name).endswith(".csv")
    if columns == 1 and lone:
        return a_csv and _is_whole(path, delimiter)
    if lone and a_csv:
        _say_of_characters(path, delimiter, whole, lone, first, columns or 0)
    return not lone


def _say_of_characters(path: Path, delimiter: str, whole: int, lone: int, first: int, columns: int) -> None:
    """A warning where quotes are read as characters, and may be meant to hold fields together: of a .csv in which most
    that begins with one is closed by one, or that can be read so, with texts of several lines.
    """
    if whole > lone:
        told = f"{whole} fields stand whole in quotes, and keep them: {lone} others begin with a quote that they do not"
        told += f" close (the first in line {first + 1}), so that quotes are read as characters; mend these"
    elif several := _of_several_lines(path, delimiter, columns):
        told = f"quotes are read as characters, and can be read to hold {several} texts of several lines together, too"
    else:
        return
    log.warning("%s: %s, or say which it is with quotes: true or false beside source", path, told)


def _of_several_lines(path: Path, delimiter: str, columns: int) -> int:
    """How many rows have a text of several lines where quotes hold fields together; 0 where they cannot."""
    try:
        with open_text(path) as text:
            several = 0
            for record in _quoted(path, lines_of(text, path), delimiter):
                if len(record) != columns:
                    return 0
                several += any("\n" in field for field in record)
            return several
    except InputError:
        return 0


def _is_whole(path: Path, delimiter: str) -> bool:
    """Whether the file can be read with quotes that hold fields together; a warning where rows then have many lines."""
    try:
        with open_text(path) as text:
            records = [record for record in _quoted(path, lines_of(text, path), delimiter) if "\n" in record[0]]
    except InputError:
        return False
    if records:
        told = f"{path}: {len(records)} rows have texts of several lines in quotes; if each line is a row of its own"
        log.warning("%s, set quotes: false beside source (--no-quotes)", told)
    return True


def _plain(lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    for line in lines:
        if content := line.rstrip("\r\n"):
            yield content.split(delimiter)


def _quoted(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # of the whole process; 131,072 by default
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0  # the header's
    try:
        for record in reader:
            if record:
                yield record
                number += 1
    except csv.Error as error:
        raise InputError(f"{path}: row {number}: broken CSV: {error}; {CHARACTERS}") from None


def _check_not_swallowed(path: Path, number: int, header: Sequence[str], record: Sequence[str], layout: Layout) -> None:
    for place, value in enumerate(record):
        if "\n" in value and _holds_rows(record, place, header, layout):
            lines = value.count("\n")
            told = f"row {number}: a quote opens in {header[place]!r} and closes {lines} line(s) below"
            if layout.quotes:
                log.warning("%s: %s, which look like rows; read as one text, as quotes: true says", path, told)
                continue
            raise InputError(
                f"{path}: {told}, so that {lines + 1} rows would be read as one; where they are one text, set quotes:"
                f" true (--quotes); else double the quotes of the text, or, {CHARACTERS}"
            )


def _holds_rows(record: Sequence[str], place: int, header: Sequence[str], layout: Layout) -> bool:
    """Whether the lines of a field are the end of one row, whole rows, and the beginning of another.

    Each then has the fields of such a piece, and a label where its label would be: a text of several lines has not.
    Where there is no label, each has numbers where the row has, as of an id; and who says that quotes hold fields is
    believed.
    """
    first, *middle, last = (line.split(layout.delimiter) for line in record[place].split("\n"))
    width = len(header)
    if (len(first), len(last)) != (width - place, place + 1) or any(len(one) != width for one in middle) or width == 1:
        return False
    if layout.label is None or layout.label[0] not in header:
        cells = [*enumerate(first[1:], start=place + 1), *(cell for one in (*middle, last) for cell in enumerate(one))]
        numbers = [NUMBER.fullmatch(text) for at, text in cells if at != place and NUMBER.fullmatch(record[at])]
        return not layout.quotes and all(numbers)
    column, is_label = header.index(layout.label[0]), layout.label[1]
    seen = [one[column] for one in middle]
    seen += [first[column - place]] if column >= place else []
    seen += [last[column]] if column <= place else []
    return all(is_label(text.strip().strip('"')) for text in seen)
