"""Records survive kills, other writers and damage."""

import json
import multiprocessing
import os
import stat

import pytest

from debias.errors import InputError
from debias.runs.records import append_record, read_records


def test_what_was_written_is_read_in_its_order(tmp_path):
    path = tmp_path / "new" / "folder" / "records.jsonl"
    for seed in range(3):
        append_record(path, {"event": "started", "run": "a\nb\u2028c", "seed": seed})
    records, broken = read_records(path)
    assert [one["seed"] for one in records] == [0, 1, 2]
    assert broken == 0
    assert records[0]["run"] == "a\nb\u2028c"
    assert all(one["time"].endswith("+00:00") for one in records)
    assert len(path.read_text().splitlines()) == 3 or "\\u2028" in path.read_text()


def test_a_half_written_line_harms_no_other(tmp_path):
    path = tmp_path / "records.jsonl"
    append_record(path, {"event": "one"})
    whole = path.read_bytes()
    append_record(path, {"event": "two"})
    for cut in range(len(whole) + 1, len(path.read_bytes()) - 1):
        other = tmp_path / f"cut{cut}.jsonl"
        other.write_bytes(path.read_bytes()[:cut])
        append_record(other, {"event": "three"})
        records, broken = read_records(other)
        assert [one["event"] for one in records] == ["one", "three"]
        assert broken == 1


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe\x00garbage\n", b"[1, 2]\n", b'"text"\n', b"{}\n", b'{"event": 3}\n', b"null\n", b"[" * 100_000 + b"\n"],
    ids=lambda value: repr(value[:12]),
)
def test_damage_is_counted_and_left_out(tmp_path, damage):
    path = tmp_path / "records.jsonl"
    append_record(path, {"event": "one"})
    with path.open("ab") as file:
        file.write(damage)
    append_record(path, {"event": "two"})
    records, broken = read_records(path)
    assert [one["event"] for one in records] == ["one", "two"]
    assert broken == 1


def test_no_file_is_no_record(tmp_path):
    assert read_records(tmp_path / "none.jsonl") == ([], 0)


def test_what_cannot_be_written_or_read_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/records\.jsonl: cannot be written: "):
        append_record(tmp_path / "file" / "records.jsonl", {"event": "one"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder: cannot be read: Is a directory"):
        read_records(tmp_path / "folder")
    if os.geteuid():
        (tmp_path / "shut").mkdir()
        (tmp_path / "shut").chmod(stat.S_IRUSR)
        with pytest.raises(InputError, match="cannot be written"):
            append_record(tmp_path / "shut" / "records.jsonl", {"event": "one"})


def _write_many(path, who):
    for number in range(50):
        append_record(path, {"event": "e", "who": who, "number": number, "filling": "x" * 5000})


def test_writers_side_by_side_lose_nothing(tmp_path):
    path = tmp_path / "records.jsonl"
    spawned = multiprocessing.get_context("spawn")
    writers = [spawned.Process(target=_write_many, args=(path, who)) for who in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    records, broken = read_records(path)
    assert broken == 0
    assert sorted((one["who"], one["number"]) for one in records) == [(w, n) for w in range(3) for n in range(50)]
    assert json.loads(path.read_text().splitlines()[0])
