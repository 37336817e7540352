"""run.json: what a run says of itself from its first step on, and how it ended."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from debias.config.run import STAGES
from debias.errors import InputError
from debias.runs.environment import environment
from debias.runs.names import BIAS, SPENT, SUMMARY, last_checkpoint
from debias.runs.whole import write_whole


def read_summary(folder: Path) -> dict[str, Any]:
    """What run.json holds; nothing where it is not there."""
    path = folder / SUMMARY
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not valid JSON; start anew with overwrite_output_dir=true") from None
    return held


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock, and of this process's CPU time: what a busy machine makes longer, and what it does not."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @classmethod
    def now(cls) -> "Spent":
        """Since whenever these two clocks count from."""
        return cls(time.time(), time.process_time())

    def __sub__(self, other: "Spent") -> "Spent":
        return Spent(self.seconds - other.seconds, self.cpu_seconds - other.cpu_seconds)


def spent_before(folder: Path) -> Spent:
    """What earlier attempts at a run took, to be asked before the runs before it are trained.

    What its run.json says, in which those runs are contained; of a run that was stopped in one of them, and has no
    run.json yet, the sum of theirs. Nothing for a new run.
    """
    folders = [folder] if (folder / SUMMARY).exists() else sorted((folder / STAGES).glob("*"))
    held = [_read(one / SUMMARY) for one in folders]
    return Spent(*(sum(_seconds_in(one, name) for one in held) for name in ("seconds", "cpu_seconds")))


def keep_bias_spent(folder: Path, spent: Spent) -> None:
    """Beside what a run's bias model said, what it took: for the runs that take its answers over."""
    write_whole(folder / BIAS / SPENT, json.dumps(asdict(spent)) + "\n")


def bias_spent(folder: Path) -> Spent:
    """What the bias model took whose answers were there before the run was; nothing where it is the run's own.

    To be asked before `folder` holds anything but them. Of a run that was stopped in a run before it, the stages count.
    """
    return Spent() if (folder / SUMMARY).exists() or (folder / STAGES).is_dir() else kept_bias_spent(folder)


def kept_bias_spent(folder: Path) -> Spent:
    """What `keep_bias_spent` kept."""
    held = _read(folder / BIAS / SPENT)
    return Spent(*(_seconds_in(held, name) for name in ("seconds", "cpu_seconds")))


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is damaged, for whoever goes on with the run says so."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return held if isinstance(held, dict) else {}


def _seconds_in(held: Mapping[str, Any], name: str) -> float:
    seconds = held.get(name)
    return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else 0.0


class Summary:
    """The run.json of a run that trains, first with what is known before the first step; `writes` on one rank alone.

    What it took counts from `started`: earlier than the beginning by what earlier attempts took.
    """

    def __init__(self, folder: Path, known: Mapping[str, Any], *, writes: bool, started: Spent) -> None:
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
            spent = Spent.now() - self.started
            timed = {**said, "seconds": round(spent.seconds, 1), "cpu_seconds": round(spent.cpu_seconds, 1)}
            write_whole(self.folder / SUMMARY, json.dumps(timed, indent=2) + "\n")
        except OSError:
            if must:
                raise


def _what_stays(folder: Path, error: Exception) -> str:
    what = f"saving failed: {error.strerror or error}" if isinstance(error, OSError) else str(error)
    kept = last_checkpoint(folder)
    return f"{folder}: {what}; " + (f"the last good checkpoint is {kept}" if kept else "no checkpoint had been saved")
