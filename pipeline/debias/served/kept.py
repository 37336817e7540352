"""Answers on disk as they come, so that a kill in the middle costs nothing but the questions then under way."""

import json
import threading
from pathlib import Path

from debias.config.regular import check_regular
from debias.errors import InputError
from debias.served.reading import Answered

FILE = "answers.jsonl"  # in the folder of results, until all is judged


class Kept:
    """The answers of one model, by question. Several threads may add to one; what is added is on disk at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._answers = _read(path) if path.exists() else {}
        self.found = len(self._answers)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answered:
        return self._answers[key]

    def add(self, key: str, answered: Answered) -> None:
        """Remember an answer; InputError where the disk does not take it."""
        line = json.dumps({"key": key, "log_p": answered.log_p, "tokens": answered.tokens})
        with self._lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            except OSError as error:
                raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from None
            self._answers[key] = answered

    def remove(self) -> None:
        """Take the file away: everything is judged, and judged again it is asked anew."""
        self.path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Answered]:
    """The whole lines; a kill may leave half a one, which is ended so that the next begins a line."""
    check_regular(path)
    found: dict[str, Answered] = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    for line in text.splitlines():
        try:
            told = json.loads(line)
            found[str(told["key"])] = Answered(float(told["log_p"]), int(told["tokens"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found
