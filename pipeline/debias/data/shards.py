"""Where a source's files lie: one by its name, or the shards that a pattern (`data/part-*.jsonl`) names, sorted."""

import glob
import hashlib
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from debias.config.regular import check_regular
from debias.data.files import kind_of, read_rows
from debias.data.rows import Layout, NumberedRow
from debias.errors import InputError


def resolve_files(source: str, base: Path | None = None) -> list[Path]:
    """The file or folder `source` names, or the files of a pattern: beside `base`, in the working directory or in
    DEBIAS_DATA, unless absolute; the first of these that has any.

    Raises InputError that lists where it was looked for.
    """
    found = files_there(source, base)
    if not found:
        hint = "" if os.environ.get("DEBIAS_DATA") else "; DEBIAS_DATA, a folder of data, is not set"
        places = _places(source, base)
        looked = ", ".join(map(str, places))
        what = "no file of that pattern" if is_pattern(source) else "no such file"
        if link := next((place for place in places if os.path.islink(place)), None):
            what = f"{link} is a link to what is not here"
        raise InputError(f"{source}: {what}; looked for {looked}{hint}")
    return found


def resolve_path(source: str, base: Path | None = None) -> Path:
    """As `resolve_files`, of a source that is one file or folder; of a pattern's files the first."""
    return resolve_files(source, base)[0]


def files_there(source: str, base: Path | None = None) -> list[Path]:
    """As `resolve_files`, none where there are none."""
    for place in _places(source, base):
        if os.path.exists(place):  # for which a name that is too long is no error
            return [place]
        if is_pattern(source) and (found := matches(place)):
            return found
    return []


def is_pattern(source: str) -> bool:
    """Whether a name stands for several files: it has `*`, `?` or `[`."""
    return glob.has_magic(source)


def matches(pattern: Path) -> list[Path]:
    """The files that a pattern names, in the order of their names."""
    return [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True)) if not os.path.isdir(name)]


def _places(source: str, base: Path | None) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_absolute():
        return [path]
    folders = [base, Path.cwd(), os.environ.get("DEBIAS_DATA") or None]
    absolute = [Path(folder).expanduser().absolute() for folder in folders if folder is not None]
    if is_pattern(source):  # a folder's own name is none
        absolute = [Path(glob.escape(str(folder))) for folder in absolute]
    return list(dict.fromkeys(folder / path for folder in absolute))


class Origin:
    """What messages call a source, and where a row of it lies: its rows are numbered on through all of its files.

    `made`: what the rows of a source without files are made of.
    """

    def __init__(
        self, name: str, files: Sequence[Path] = (), layout: Layout | None = None, *, made: Any = None
    ) -> None:
        self.name = name
        self.files = files
        self.layout = layout
        self.made = made
        self._ends: list[int] = []  # the number of the last row of each file read so far

    def rows(self) -> Iterator[NumberedRow]:
        """The rows of all files, one after another."""
        for file in self.files:
            start = last = self._ends[-1] if self._ends else 0
            for number, row in read_rows(file, self.layout):
                last = start + number
                yield last, row
            self._ends.append(last)

    def content(self) -> Any:
        """What the rows are: the digest of each file with the kind that it is read as, or what they are made of."""
        return [(kind_of(file.name), file.suffix, _digest(file)) for file in self.files] or self.made

    def stamps(self) -> list[tuple[int, int]]:
        """By which a file that is written while it is read is found out."""
        states = [file.stat() for file in self.files if file.exists()]
        return [(state.st_mtime_ns, state.st_size) for state in states]

    def row(self, number: int) -> str:
        """The place of a row that was read, for a message."""
        if not self.files:
            return f"{self.name}: row {number}"
        shard = bisect_left(self._ends, number)
        return f"{self.files[shard]}: row {number - (self._ends[shard - 1] if shard else 0)}"


def _digest(file: Path) -> str:
    check_regular(file)
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
