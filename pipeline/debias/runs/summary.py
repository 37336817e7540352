"""run.json: what a run says of itself from its first step on, and how it ended."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from debias.config.run import STAGES
from debias.errors import InputError
from debias.runs.environment import environment
from debias.runs.names import SUMMARY, last_checkpoint
from debias.runs.whole import write_whole


def read_summary(folder: Path) -> dict[str, Any]:
    """What run.json holds; nothing where it is not there."""
    path = folder / SUMMARY
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not valid JSON; start anew with overwrite_output_dir=true") from None
    return held


def seconds_before(folder: Path) -> float:
    """Seconds that earlier attempts at a run took, to be asked before the runs before it are trained.

    What its run.json says, in which those runs are contained; of a run that was stopped in one of them, and has no
    run.json yet, the sum of theirs. 0 for a new run.
    """
    if (folder / SUMMARY).exists():
        return _seconds_in(folder)
    return sum(_seconds_in(stage) for stage in sorted((folder / STAGES).glob("*")))


def _seconds_in(folder: Path) -> float:
    try:
        seconds = read_summary(folder).get("seconds")
    except (InputError, AttributeError):  # damaged: whoever goes on with the run says so
        return 0.0
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else 0.0


class Summary:
    """The run.json of a run that trains, first with what is known before the first step; `writes` on one rank alone.

    `seconds` count from `started`, as `time.time()` has it; earlier than the beginning by what earlier attempts took.
    """

    def __init__(self, folder: Path, known: Mapping[str, Any], *, writes: bool, started: float) -> None:
        self.folder = folder
        self.known = known
        self.writes = writes
        self.started = started

    def begin(self) -> None:
        """Say that the run trains, and on what machine and versions."""
        self.known = {"status": "running", **self.known, **environment()}
        self._write(self.known)

    def end(self, figures: Mapping[str, Any]) -> None:
        """Say how the run ended."""
        self._write({**self.known, **figures})

    @contextmanager
    def failures(self, readable: tuple[type[Exception], ...]) -> Iterator[None]:
        """Inside, what ends the run is said in run.json; what is `readable` becomes an InputError of one line.

        It names the last good checkpoint.
        """
        try:
            yield
        except BaseException as error:
            self._write({**self.known, "status": "failed"}, must=False)
            if isinstance(error, Exception) and isinstance(error, (OSError, ImportError, *readable)):
                raise InputError(_what_stays(self.folder, error)) from error
            raise

    def _write(self, said: Mapping[str, Any], must: bool = True) -> None:
        if not self.writes:
            return
        try:
            # At every word, not at the last alone: a run that is killed has cost something, too.
            timed = {**said, "seconds": round(time.time() - self.started, 1)}
            write_whole(self.folder / SUMMARY, json.dumps(timed, indent=2) + "\n")
        except OSError:
            if must:
                raise


def _what_stays(folder: Path, error: Exception) -> str:
    what = f"saving failed: {error.strerror or error}" if isinstance(error, OSError) else str(error)
    kept = last_checkpoint(folder)
    return f"{folder}: {what}; " + (f"the last good checkpoint is {kept}" if kept else "no checkpoint had been saved")
