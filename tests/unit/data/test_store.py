"""Tables that are kept: whole or not at all, whatever goes wrong, whoever writes at the same time."""

import errno
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from debias.data import store
from debias.data.store import LOCK, NOTES, ROWS, TABLE, Notes, Table, kept
from debias.errors import InputError

SIZE = ROWS + 7
KEY = "k"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache, and a folder of temporary files, both of this test alone."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("DEBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    store._say.cache_clear()
    return tmp_path


def batches(notes: Notes) -> Iterator[Any]:
    notes["made"] = "here"
    for start in range(0, SIZE, ROWS):
        yield pa.record_batch({"x": pa.array(range(start, min(start + ROWS, SIZE)), type=pa.int64())})


def never(notes: Notes) -> Iterator[Any]:
    raise AssertionError("it is there already")


def check(table: Table) -> None:
    assert [value for batch in table.batches for value in batch.column("x").to_pylist()] == list(range(SIZE))
    assert table.notes == {"made": "here"}


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_table_is_sent_to_another_process_with_its_rows(folders: Path) -> None:
    sent = pickle.loads(pickle.dumps(kept(KEY, batches)))
    check(sent)
    sent.let_go()


def test_what_is_kept_is_made_once(folders: Path) -> None:
    check(kept(KEY, batches))
    check(kept(KEY, never))
    assert files(folders) == [LOCK, NOTES, TABLE]
    with pytest.raises(AssertionError):
        kept("another", never)


def in_files() -> int:
    """Bytes of files that count as this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssFile")).split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what is resident")
def test_who_reads_all_does_not_grow_by_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pa.record_batch({"x": pa.array(range(ROWS), type=pa.int64())})
    table = kept(KEY, lambda notes: [batch] * 2048)  # 32 MiB
    monkeypatch.setattr(store, "LET_GO", 16)

    class Batches:
        def __len__(self) -> int:
            return len(table.batches)

        def __getitem__(self, place: int) -> int:
            return int(table.batches[place].column("x").to_numpy().sum())

    def largest(sums: Iterator[int]) -> int:
        before, most = in_files(), 0
        for found in sums:
            assert found == ROWS * (ROWS - 1) // 2
            most = max(most, in_files() - before)
        return most

    table.let_go()
    assert largest(table.from_end_to_end(Batches())) < 4 * 2**20  # type: ignore[arg-type]
    assert largest(map(Batches().__getitem__, range(2048))) > 24 * 2**20
    table.let_go()
    check(kept("another", batches))


def damage_table(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda place: (place / TABLE).write_bytes(change((place / TABLE).read_bytes())) and None


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut by a byte": damage_table(lambda content: content[:-1]),
    "cut in half": damage_table(lambda content: content[: len(content) // 2]),
    "emptied": damage_table(lambda content: b""),
    "zeros of the right size": damage_table(lambda content: bytes(len(content))),
    "longer": damage_table(lambda content: content + b"x"),
    "another file": damage_table(lambda content: b"not a table" * 9),
    "gone": lambda place: (place / TABLE).unlink(),
    "notes gone": lambda place: (place / NOTES).unlink(),
    "notes cut": lambda place: (place / NOTES).write_text((place / NOTES).read_text()[:-5]),
    "notes are a list": lambda place: (place / NOTES).write_text("[]"),
    "another version's": lambda place: (place / NOTES).write_text(
        json.dumps({**json.loads((place / NOTES).read_text()), "key": "older"})
    ),
}


LEFT = store.PART + "0123456789abcdef"


def left(folders: Path, key: str, age: float) -> Path:
    """What a writer that was killed leaves in the folder of a table."""
    place = folders / "cache" / "data" / key
    place.mkdir(parents=True, exist_ok=True)
    (place / LOCK).touch()
    (place / LEFT).write_bytes(b"half a table")
    os.utime(place / LEFT, (time.time() - age,) * 2)
    return place / LEFT


def test_what_killed_writers_left_goes_when_a_table_is_made(folders: Path) -> None:
    """Not what is young, not what somebody is writing, and not when a table is only read."""
    fcntl = pytest.importorskip("fcntl")
    old, mine, young, busy = (left(folders, *told) for told in (("a", 9e5), (KEY, 9e5), ("b", 60), ("c", 9e5)))
    with (busy.parent / LOCK).open("ab") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        check(kept(KEY, batches))
        assert [part.exists() for part in (old, mine, young, busy)] == [False, False, True, True]
        left(folders, "a", 9e5)
        check(kept(KEY, never))
        assert old.exists()
    kept("another", batches)
    assert [part.exists() for part in (old, busy)] == [False, False]
    assert files(young.parent) == [LEFT, LOCK]


def test_what_is_left_where_nothing_can_be_locked(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Age alone tells there."""
    fcntl = pytest.importorskip("fcntl")

    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    old, young = left(folders, "a", store.DEAD + 60), left(folders, "b", store.DEAD - 60)
    kept(KEY, batches)
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_whole_is_made_again(name: str, folders: Path) -> None:
    kept(KEY, batches)
    DAMAGE[name](folders / "cache" / "data" / KEY)
    check(kept(KEY, batches))
    check(kept(KEY, never))


def test_batches_of_another_size_are_not_ours(folders: Path) -> None:
    kept(KEY, batches)
    place = folders / "cache" / "data" / KEY
    with pa.ipc.new_file(str(place / TABLE), pa.schema({"x": pa.int64()})) as writer:
        for size in (3, 4):
            writer.write_batch(pa.record_batch({"x": pa.array(range(size), type=pa.int64())}))
    told = {**json.loads((place / NOTES).read_text()), "bytes": (place / TABLE).stat().st_size}
    (place / NOTES).write_text(json.dumps(told))
    check(kept(KEY, batches))


def test_what_fails_in_the_making_leaves_nothing(folders: Path) -> None:
    def fails(notes: Notes) -> Iterator[Any]:
        yield next(batches(notes))
        raise InputError("row 3000: wrong")

    with pytest.raises(InputError, match="row 3000: wrong"):
        kept(KEY, fails)
    assert files(folders) == [LOCK]
    check(kept(KEY, batches))


def test_a_table_that_is_open_outlives_its_folder(folders: Path) -> None:
    table = kept(KEY, batches)
    for path in (folders / "cache" / "data" / KEY).iterdir():
        path.unlink()
    check(table)
    check(kept(KEY, batches))


# Folders that cannot be written.


def test_a_cache_that_cannot_be_made_is_said_once(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folders / "cache").write_text("a file in its place")
    check(kept(KEY, batches))
    check(kept(KEY, never))
    check(kept("another", batches))
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert f"{folders / 'cache' / 'data'} cannot be written" in said[0]
    assert files(folders / "temporary") == sorted([LOCK, NOTES, TABLE] * 2)


def test_a_disk_that_fills_while_a_table_is_written(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, calls = os.fsync, []

    def full(number: int) -> None:
        calls.append(number)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    check(kept(KEY, batches))
    assert files(folders / "cache") == [LOCK]
    assert files(folders / "temporary") == [LOCK, NOTES, TABLE]


@pytest.mark.parametrize("most", [100, 9000])
def test_no_folder_has_room(most: int, folders: Path) -> None:
    """The table has 16 kB: the disk is full from the start, or in the middle."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(InputError, match=r"^data: .*cache.* cannot be written .*; .*temporary.* DEBIAS_CACHE") as e:
            kept(KEY, batches)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(e.value)
    assert files(folders) == [LOCK, LOCK]
    check(kept(KEY, batches))


def test_a_disk_that_fills_in_the_notes_keeps_no_table_without_them(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text = Path.write_text

    def full(path: Path, *args: Any, **kwargs: Any) -> int:
        if "cache" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    check(kept(KEY, batches))
    assert NOTES not in files(folders / "cache")
    monkeypatch.undo()
    assert store._read(folders / "cache" / "data" / KEY, KEY) is None


@pytest.mark.parametrize("home", ["a cache that is named", "no home"])
def test_a_user_without_a_name(home: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number of its own: nobody can say who that is, or where its home lies."""

    def unknown(number: int) -> Any:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME", *(["DEBIAS_CACHE"] if home == "no home" else [])):
        monkeypatch.delenv(name, raising=False)
    check(kept(KEY, batches))
    check(kept(KEY, never))
    assert files(folders / ("temporary" if home == "no home" else "cache")) == [LOCK, NOTES, TABLE]


# Several processes.

WRITER = """
import sys, time
import pyarrow as pa
if sys.argv[2] == "unlocked":
    sys.modules["fcntl"] = None
from debias.data.store import ROWS, kept

def make(notes):
    open(sys.argv[1], "a").write("made\\n")
    notes["made"] = "here"
    for start in range(0, 3 * ROWS, ROWS):
        time.sleep(0.1)
        yield pa.record_batch({"x": pa.array(range(start, start + ROWS), type=pa.int64())})

table = kept("k", make)
print(sum(sum(batch.column("x").to_pylist()) for batch in table.batches), table.notes)
"""


@pytest.mark.slow
@pytest.mark.parametrize("lock", ["locked", "unlocked"])
def test_processes_that_want_one_table_at_once(lock: str, folders: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(folders / "log"), lock]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {one.communicate()[0] for one in started}
    assert said == {f"{sum(range(3 * ROWS))} {{'made': 'here'}}\n"}
    assert files(folders / "cache") == [LOCK, NOTES, TABLE]
    if lock == "locked":
        assert (folders / "log").read_text() == "made\n"
