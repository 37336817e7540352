"""Files opened, whatever they are packed with: only regular ones, and line by line with an end to each line."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from debias.config.regular import check_regular
from debias.errors import InputError

PACKED = (".gz", ".zst")
LONGEST = 2**24  # characters of a line: far beyond any text that a model reads, and little memory


def unpacked_name(name: str) -> str:
    """The name in small letters without a final .gz or .zst."""
    name = name.lower()
    return name.removesuffix(next((suffix for suffix in PACKED if name.endswith(suffix)), ""))


def open_bytes(path: Path) -> BinaryIO:
    """The content, unpacked as it is read; InputError for what is no regular file."""
    check_regular(path)
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".zst":
        import pyarrow  # which `datasets` brings along

        source: Any = pyarrow.input_stream(str(path), compression="zstd")
        return cast(BinaryIO, source)
    return path.open("rb")


def open_text(path: Path) -> TextIO:
    """The content as UTF-8 text, with line ends as they are."""
    # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name.
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="")


def lines_of(text: TextIO, path: Path) -> Iterator[str]:
    """The lines with their ends; InputError for one that is longer than any row could be."""
    number = 0
    while line := text.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise InputError(f"{path}: line {number} has more than {LONGEST:,} characters; no row is that long")
        yield line
