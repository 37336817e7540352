"""Runs a planned sweep, each run in processes of its own, and goes on where an earlier sweep stopped.

What is done is read from the runs' folders; the records tell what happened. A run belongs to one process at a time: its
log is locked, and the lock is its children's, too.
"""

import fcntl
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, Protocol

from debias.errors import InputError, Interrupted
from debias.ranks.parents import end_with_parent
from debias.runs.names import CONFIG, SUMMARY
from debias.runs.records import append_record, read_records
from debias.runs.time_left import TimeLeft, in_words
from debias.sweep.grid import PlannedRun, changed_settings, check_recipe, state_of
from debias.sweep.sharing import take_over

logger = logging.getLogger(__name__)

RECORDS = "records.jsonl"
STOPPED = (Interrupted.exit_code, -signal.SIGTERM, 128 + signal.SIGTERM)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds for a run that an earlier sweep left behind and that is saving.
WAIT_FOR_LOCK = 180.0
POLL = 0.1


class Judge(Protocol):
    """Which suites a finished run has still to be judged on."""

    def missing(self, run: Path) -> list[str]:
        """Names or files of suites, as `debias eval --suite` takes them."""
        ...

    def options(self) -> list[str]:
        """Further arguments of `debias eval`."""
        ...


class NoJudge:
    """A sweep that only trains."""

    def missing(self, run: Path) -> list[str]:
        return []

    def options(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Step:
    """A command of a run: to `train` or to `eval`."""

    stage: str
    command: list[str]


Story = Generator[Step, int, None]


@dataclass
class Sweep:
    """`run()` trains and judges what is not done yet; `failed` then holds a line for each run that could not be.

    `launcher`: words that take the place of `python`, such as `torchrun --nproc-per-node 2`. `jobs`: runs side by side.
    With `overwrite`, a run whose settings have changed is trained anew. `done` hears of each run that is trained and
    judged.
    """

    runs: Sequence[PlannedRun]
    out: Path
    judge: Judge = field(default_factory=NoJudge)
    jobs: int = 1
    launcher: str = ""
    overwrite: bool = False
    done: Callable[[PlannedRun], None] = lambda run: None  # of a run that is trained and judged
    failed: dict[str, str] = field(default_factory=dict)
    _live: list["_Child"] = field(default_factory=list)
    _stopping: int = 0
    _waiting: deque[PlannedRun] = field(default_factory=deque)
    _done: int = 0  # in this process
    _left: TimeLeft = field(default_factory=TimeLeft)

    def check(self) -> None:
        """InputError that names the first run whose folder holds other settings, unless they may be overwritten."""
        if self.overwrite:
            return
        changed = [(run, how) for run in self.runs if (how := changed_settings(run)) is not None]
        if changed:
            run, how = changed[0]
            more = f" ({len(changed)} such runs)" if len(changed) > 1 else ""
            raise InputError(
                f"{run.name} was trained otherwise than {run.recipe.name} says now: {how}{more}; give"
                " --overwrite to train it anew, or another folder (-o)"
            )

    def run(self) -> None:
        """Everything, one event a line in the records; Interrupted after a signal, when all children have saved."""
        self.check()
        self._plan()
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            self._run_all()
        finally:
            for child in self._live:
                child.process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._stopping:
            raise Interrupted(f"{self.out}: the sweep was stopped; the same command goes on")

    def _plan(self) -> None:
        known, broken = read_records(self.out / RECORDS)
        if broken:
            logger.warning("%s: %d unreadable lines, left out", self.out / RECORDS, broken)
        planned = {(one.get("run"), one.get("digest")) for one in known if one["event"] == "planned"}
        for run in self.runs:
            if (run.name, run.digest) not in planned:
                self._record("planned", run, recipe=str(run.recipe), settings=run.settings)

    def _record(self, event: str, run: PlannedRun, **facts: Any) -> None:
        append_record(
            self.out / RECORDS, {"event": event, "run": run.name, "digest": run.digest, "seed": run.seed, **facts}
        )

    def _run_all(self) -> None:
        waiting = self._waiting = deque(self.runs)
        self._left.begin()
        busy: dict[str, float] = {}
        while (waiting and not self._stopping) or self._live:
            if waiting and not self._stopping and len(self._live) < self.jobs:
                self._begin(waiting.popleft(), waiting, busy)
            self._live = [child for child in self._live if not self._advance(child)]
            if self._live or busy:
                time.sleep(POLL)

    def _begin(self, run: PlannedRun, waiting: deque[PlannedRun], busy: dict[str, float]) -> None:
        """The run's first command, if there is anything to do and nobody else does it."""
        run.log.parent.mkdir(parents=True, exist_ok=True)
        log = run.log.open("ab+")
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.close()
            self._wait(run, waiting, busy)
            return
        busy.pop(run.name, None)
        story = self._story(run)
        step = next(story, None)
        if step is None:
            log.close()
            if run.name not in self.failed:
                logger.info("%s: done before", self._title(run))
                self.done(run)
            return
        self._live.append(self._start(_Child(run, story, step, log)))

    def _wait(self, run: PlannedRun, waiting: deque[PlannedRun], busy: dict[str, float]) -> None:
        if run.name not in busy:
            logger.info("%s: waiting for the process that has its log", self._title(run))
            busy[run.name] = time.monotonic() + WAIT_FOR_LOCK
        if time.monotonic() < busy[run.name]:
            waiting.append(run)
        else:
            del busy[run.name]
            self._fail(run, "train", None, f"another process is at it: {run.log} is locked")

    def _story(self, run: PlannedRun) -> Story:
        """The commands of a run, one after the other, each answered with its exit code."""
        try:
            yield from self._trained(run)
            if run.name not in self.failed:
                yield from self._judged(run)
        except InputError as error:
            self._fail(run, "plan", None, str(error))

    def _trained(self, run: PlannedRun) -> Story:
        check_recipe(run)
        anew = changed_settings(run) is not None
        if anew and not self.overwrite:
            raise InputError(f"{run.folder} holds another run by now: {changed_settings(run)}")
        if anew or state_of(run.folder) != "finished":
            started = time.monotonic()
            state = "new" if anew else state_of(run.folder)
            self._record("started", run, stage="train", state=state)
            if state == "new" and not run.folder.exists():
                take_over(self.runs, run)
            code = yield Step("train", self._train(run, state, anew))
            if code != 0:
                self._fail(run, "train", code)
                return
            self._record("finished", run, stage="train", seconds=round(time.monotonic() - started, 1))

    def _judged(self, run: PlannedRun) -> Story:
        suites = self.judge.missing(run.folder)
        if suites:
            started = time.monotonic()
            self._record("started", run, stage="eval", suites=suites)
            code = yield Step("eval", self._eval(run, suites))
            if code != 0:
                self._fail(run, "eval", code)
                return
            self._record("judged", run, suites=suites, seconds=round(time.monotonic() - started, 1))

    def _fail(self, run: PlannedRun, stage: str, code: int | None, why: str = "") -> None:
        if code in STOPPED or self._stopping:
            event, why = "interrupted", "stopped by a signal; the same command goes on"
        else:
            event, why = "failed", why or _last_words(run.log) or f"exit code {code}"
        self._record(event, run, stage=stage, code=code, error=why)
        self.failed[run.name] = f"{stage}: {why}"
        logger.warning("%s: %s %s: %s", self._title(run), stage, event, why)

    def _train(self, run: PlannedRun, state: str, anew: bool) -> list[str]:
        _sweep_leftovers(run.folder)
        more = ["resume=true"] if state == "begun" else ["overwrite_output_dir=true"] if anew else []
        return [*self._python(), "train", *train_arguments(run), *more]

    def _eval(self, run: PlannedRun, suites: Sequence[str]) -> list[str]:
        named = [word for suite in suites for word in ("--suite", suite)]
        return [*self._python(), "eval", str(run.folder), *named, *self.judge.options()]

    def _python(self) -> list[str]:
        return [*(shlex.split(self.launcher) or [sys.executable]), "-m", "debias.cli"]

    def _start(self, child: "_Child") -> "_Child":
        logger.info("%s: %s", self._title(child.run), child.step.stage)
        child.log.write(f"$ {shlex.join(child.step.command)}\n".encode())
        child.log.flush()
        child.started = time.monotonic()
        # A session of its own: the terminal's ctrl-C comes to the child once, from here, as the SIGTERM it saves on; so
        # it does where this process is killed.
        child.process = subprocess.Popen(
            child.step.command,
            stdin=subprocess.DEVNULL,
            stdout=child.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 (this process starts no thread)
        )
        if self._stopping:
            child.process.terminate()
        return child

    def _advance(self, child: "_Child") -> bool:
        """True when the run is over."""
        code = child.process.poll()
        if code is None:
            return False
        seconds = time.monotonic() - child.started
        try:
            child.step = child.story.send(code)
        except StopIteration:
            child.log.close()
            self._done += 1
            self._left.mark(self._done)
            if child.run.name not in self.failed:
                sweep = self._left.said(self._done + len(self._live) - 1 + len(self._waiting))
                told = (self._title(child.run), child.step.stage, in_words(seconds), sweep)
                logger.info("%s: done, %s in %s; the sweep: %s", *told)
                self.done(child.run)
            return True
        if self._stopping:
            child.log.close()
            return True
        self._start(child)
        return False

    def _title(self, run: PlannedRun) -> str:
        return f"[{run.index}] {run.name}"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping += 1
        if self._stopping == 1:
            logger.warning("%s: waiting for runs to save; once more to kill them", signal.Signals(number).name)
        for child in self._live:
            child.process.terminate() if self._stopping == 1 else child.process.kill()


@dataclass
class _Child:
    run: PlannedRun
    story: Story
    step: Step
    log: BinaryIO
    started: float = 0.0
    process: "subprocess.Popen[bytes]" = field(init=False)


def train_arguments(run: PlannedRun) -> list[str]:
    """What follows `debias train` for this run; the folder is quoted, for it is read as YAML."""
    return [str(run.recipe), *run.overrides, f"output_dir={json.dumps(str(run.folder))}"]


def _last_words(log: Path) -> str:
    """The error line of what the last command printed, else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.rpartition("\n$ ")[2].splitlines()[1:] if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:300]


def _sweep_leftovers(folder: Path) -> None:
    """Half-written files of a run killed before it had a config: with them its folder would be nobody's."""
    if folder.is_dir() and not (folder / CONFIG).exists() and not (folder / SUMMARY).exists():
        for path in folder.glob(f".{CONFIG}.*"):
            path.unlink(missing_ok=True)
