"""Tables that are made once and kept: an Arrow file by the digest of what it is made of, memory-mapped by who reads it.

They lie in the folder `data` of the user's cache (`DEBIAS_CACHE`, else `~/.cache/debias`), or, where that cannot be
written, of a temporary one. A table is there whole or not at all; deleting the folder costs no more than making them
again.
"""

import hashlib
import json
import logging
import mmap
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from debias.errors import InputError
from debias.hub.packages import cache_folder

logger = logging.getLogger(__name__)
ROWS = 2048  # of each batch of a table but the last: where a row lies is a division
TABLE, NOTES, LOCK = "table.arrow", "notes.json", "lock"
PART = f".{TABLE}."  # and a token: a table that is being written
LET_GO = 16 * ROWS  # rows, some megabytes
DEAD = 24 * 3600.0  # seconds without a write, after which nobody writes where files cannot be locked
Notes = dict[str, Any]
Row = TypeVar("Row")
Batches = Iterable[Any]  # of pyarrow, of ROWS rows each but the last


@dataclass(frozen=True)
class Table:
    """A table on disk: `batches` of pyarrow over the mapped file, and what was noted of it when it was made."""

    key: str
    batches: Sequence[Any]
    notes: Notes
    mapped: mmap.mmap | None

    def __getstate__(self) -> dict[str, Any]:
        """A process that is sent the table, as workers are that do not fork, has the rows in its own memory."""
        return {**self.__dict__, "mapped": None}

    def let_go(self) -> None:
        """Count no longer as this process's memory what was read of the file: it is there to be read again."""
        if self.mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            self.mapped.madvise(mmap.MADV_DONTNEED)

    def from_end_to_end(self, rows: Sequence[Row]) -> Iterator[Row]:
        """All rows that are read of this table, letting go on the way: else the process would grow by the file."""
        for place in range(len(rows)):
            if place % LET_GO == LET_GO - 1:
                self.let_go()
            yield rows[place]
        self.let_go()


class _Unwritable(Exception):
    """A folder of tables cannot be written, or its disk is full."""


def key_of(*told: Any) -> str:
    """The key of what is made of these settings and keys alone, by this version of the code that makes it."""
    told = (version_of(Path(__file__).parent), *told)
    return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).hexdigest()[:40]


@cache
def version_of(room: Path) -> str:
    """A digest of a room's code: what another version of it made is under another key."""
    digest = hashlib.sha256()
    for path in sorted(room.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def kept(key: str, make: Callable[[Notes], Batches]) -> Table:
    """The table of that key; where there is none, `make(notes)` gives its batches, and fills `notes` as it goes.

    Of all processes that want it at the same time one makes it. InputError where nothing can be written.
    """
    refused = []
    for folder in _folders():
        place = folder / key
        try:
            with _writing():
                _check_ours(folder)
            if (found := _read(place, key)) is not None:
                return found
            with _alone(place):
                if (found := _read(place, key)) is not None:
                    return found
                _clear(folder, place)
                return _written(place, key, make)
        except _Unwritable as error:
            refused.append(f"{folder} cannot be written ({error})")
            _say(refused[-1])
    raise InputError(f"data: {'; '.join(refused)}; set DEBIAS_CACHE to a folder with room for the data")


def _folders() -> Iterator[Path]:
    """Where tables may lie: the user's cache, then a folder of this user's beside all temporary files.

    A user without a name or a home, as containers give one, has the second alone.
    """
    with suppress(RuntimeError):
        yield cache_folder() / "data"
    user = os.getuid() if hasattr(os, "getuid") else "user"
    yield Path(tempfile.gettempdir()) / f"debias-{user}" / "data"


def _check_ours(folder: Path) -> None:
    """PermissionError for a folder that another user made, who could put anything there."""
    for place in (folder, folder.parent):
        if place.exists() and hasattr(os, "getuid") and place.stat().st_uid not in (os.getuid(), 0):
            raise PermissionError(0, "it is another user's")


@cache
def _say(what: str) -> None:
    logger.warning("data: %s: what is read is kept elsewhere", what)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Inside, no other process is; where files cannot be locked several may be, and each writes a whole table."""
    with _writing():
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (place / LOCK).open("ab")
    with file:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed, or the process ends
        yield


def _clear(folder: Path, mine: Path) -> None:
    """Remove what writers left that were killed: old, and of a table that nobody is writing. `mine` is locked by us."""
    parts: list[Path] = []
    with suppress(OSError):  # somebody may be deleting tables
        parts.extend(folder.glob(f"*/{PART}*"))
    for part in parts:
        with suppress(OSError):  # another run may clear it, too
            if time.time() - part.stat().st_mtime > DEAD and (part.parent == mine or _is_free(part.parent)):
                part.unlink()


def _is_free(place: Path) -> bool:
    """Whether no process holds the lock of a table's folder; where files cannot be locked, age has to do."""
    with (place / LOCK).open("ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except (ImportError, OSError):
            return True
    return True


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unwritable(error.strerror or str(error)) from error


def _written(place: Path, key: str, make: Callable[[Notes], Batches]) -> Table:
    """Table, then notes, each beside its place and renamed: notes that are there are of a table that is."""
    notes: Notes = {}
    part = place / f"{PART}{secrets.token_hex(8)}"
    try:
        size = _write_batches(part, make(notes))
        told = json.dumps({"key": key, "bytes": size, "notes": notes})
        with _writing():
            os.replace(part, place / TABLE)
            part.write_text(told, encoding="utf-8")
            os.replace(part, place / NOTES)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    if (found := _read(place, key)) is None:
        raise _Unwritable("it does not keep what is written")
    logger.info("data: %s rows kept in %s (%.1f MB)", f"{sum(map(len, found.batches)):,}", place, size / 1e6)
    return found


def _write_batches(path: Path, batches: Batches) -> int:
    """Bytes of the Arrow file of these batches; what goes wrong in making them is theirs, in writing them is the
    folder's.
    """
    import pyarrow as pa

    writer = None
    with _writing():
        file = pa.OSFile(str(path), "wb")
    for batch in batches:
        with _writing():
            writer = writer or pa.ipc.new_file(file, batch.schema)
            writer.write_batch(batch)
    assert writer is not None, "a table has a batch"
    with _writing():
        writer.close()
        file.close()
        _on_disk(path)
        return path.stat().st_size


def _on_disk(path: Path) -> None:
    """A crash after this leaves the file's content where it leaves its name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _read(place: Path, key: str) -> Table | None:
    """The table that lies there, None where there is none, or one that is not whole or not of this key."""
    import pyarrow as pa

    try:
        told = json.loads((place / NOTES).read_text(encoding="utf-8"))
        whole = told["key"] == key and told["bytes"] == (place / TABLE).stat().st_size
        if not whole:
            raise ValueError("another size or key")
        with (place / TABLE).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        batches = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all().to_batches()
        sizes = [batch.num_rows for batch in batches]
        if not sizes or set(sizes[:-1]) - {ROWS} or sizes[-1] > ROWS:
            raise ValueError("no table of ours")
        return Table(key, batches, told["notes"], mapped)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException):
        logger.warning("data: %s is not what was written; it is made again", place)
        return None
