"""Append-only records, a JSON object a line: what a kill or a full disk leaves of the last line harms no other."""

import fcntl
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from debias.errors import InputError


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line with the time; InputError if it cannot be written. Safe beside other processes that append."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), **record}, default=str) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write((b"" if _ends_whole(file) else b"\n") + line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def _ends_whole(file: Any) -> bool:
    """Whether the next line may begin at the end: a killed process leaves half a line without its end."""
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The readable records, oldest first, and the number of lines that are none; no file is no record."""
    records, broken = [], 0
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and isinstance(record.get("event"), str):
            records.append(record)
        else:
            broken += 1
    return records, broken
