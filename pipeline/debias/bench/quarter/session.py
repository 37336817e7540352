"""The order of the parts, their time, and what is written down.

A part yields items: a name, and a function that measures. After each item the part's JSON file is written anew, so that
whoever cuts the session off loses the item under way and nothing else. On a GPU each part is a process of its own: one
that hangs, runs out of memory or loses the device takes nothing with it. They all start at once and wait for their
turn, so that imports are not waited for.
"""

import importlib
import json
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from debias.config.data import Strict
from debias.errors import InputError
from debias.ranks.parents import end_with_parent
from debias.runs.whole import write_whole

# Each part's share of the time, in seconds of a session of eleven and a half minutes: what one leaves goes to the rest.
BUDGETS = {"gradients": 130, "combination": 60, "large": 220, "engines": 80, "kernels": 80, "testbeds": 120}
GRACE = 15.0  # seconds that an item may take beyond its part's time before the process is ended
SPARE = 10.0  # seconds of the session that are kept for the page
BROUGHT = ("torch", "triton", "transformers", "peft", "deepspeed", "bitsandbytes", "trl", "datasets")

Item = tuple[str, Callable[[], dict[str, Any]]]


class Session(Strict):
    """`rehearse`: tiny sizes, on the CPU, in this process."""

    out: str
    minutes: float = Field(11.5, gt=0, le=60)  # of twelve: wheels have to be installed as well
    rehearse: bool = False
    study: str | None = None  # YAML file of a study whose missing runs the last part makes
    seed: int = 0

    @property
    def device(self) -> str:
        """Where everything runs."""
        return "cpu" if self.rehearse else "cuda"


def run_session(session: Session, parts: tuple[str, ...] = ()) -> dict[str, Any]:
    """Each part in turn (all: BUDGETS), within its time; what there is in the session's folder at the end.

    InputError for a part that there is not, and without a GPU where this is no rehearsal.
    """
    if unknown := [name for name in parts if name not in BUDGETS]:
        raise InputError(f"--part: {unknown[0]!r} is not one of {', '.join(BUDGETS)}")
    out = Path(session.out)
    out.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in BUDGETS if not parts or name in parts]
    end = time.monotonic() + 60 * session.minutes - (0 if session.rehearse else SPARE)
    if session.rehearse:
        for name in chosen:
            run_part(name, session, _share(name, chosen, end - time.monotonic()))
    else:
        _need_a_gpu()
        _in_processes(session, chosen, end)
    return gathered(out)


def _need_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError("bench quarter needs one CUDA GPU and torch built for it; --rehearse runs it small, on a CPU")


def _share(name: str, left: list[str], seconds: float) -> float:
    """This part's share of what is left for it and those after it: what one does not use goes to the others."""
    after = left[left.index(name) :]
    return max(0.0, seconds) * BUDGETS[name] / sum(BUDGETS[one] for one in after)


def _in_processes(session: Session, chosen: list[str], end: float) -> None:
    waiting = {name: _start(name, session) for name in chosen}
    try:
        for name, process in waiting.items():
            seconds = _share(name, chosen, end - time.monotonic())
            sent = process.stdin
            assert sent is not None
            try:
                sent.write(f"{seconds}\n")
                sent.close()
            except BrokenPipeError:  # it ended before its turn; its log says why
                pass
            try:
                process.wait(seconds + GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _note_end(name, session, process.returncode)
    finally:
        for process in waiting.values():
            if process.poll() is None:
                process.kill()


def _start(name: str, session: Session) -> "subprocess.Popen[str]":
    log = (Path(session.out) / f"{name}.log").open("w", encoding="utf-8")
    command = [sys.executable, "-m", "debias.bench.quarter.session", name, session.model_dump_json()]
    with log:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)


def _note_end(name: str, session: Session, code: int) -> None:
    if code:
        path = Path(session.out) / f"{name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"part": name, "items": {}}
        why = "it was ended at the end of its time" if code == -9 else f"its process ended with code {code}"
        write_whole(path, json.dumps({**found, "ended": f"{why}; {name}.log"}, indent=2))


def run_part(name: str, session: Session, seconds: float) -> None:
    """Take the items of a part while there is time, and write each down; an item that fails is an error of its own."""
    path = Path(session.out) / f"{name}.json"
    start = time.monotonic()
    found: dict[str, Any] = {"part": name, "budget": round(seconds, 1), "device": session.device, "items": {}}
    found["versions"] = _versions()
    if session.device == "cuda":
        found["device"] = importlib.import_module("torch").cuda.get_device_name()
    module = importlib.import_module(f"debias.bench.quarter.{name}")
    items: Iterator[Item] = module.items(session, lambda: seconds - (time.monotonic() - start))
    for title, measure in items:
        if time.monotonic() - start > seconds:
            found["items"][title] = {"not_run": "no time was left"}
        else:
            found["items"][title] = _measured(measure)
        found["took"] = round(time.monotonic() - start, 1)
        write_whole(path, json.dumps(found, indent=2))


def _measured(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    start = time.monotonic()
    try:
        found = measure()
    except Exception as error:  # whatever it is: the other items shall be taken
        traceback.print_exc(file=sys.stderr)
        found = {"error": f"{type(error).__name__}: {error}"[:2000]}
    return {**found, "seconds": round(time.monotonic() - start, 2)}


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in BROUGHT:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not here"
    return found


def gathered(out: Path) -> dict[str, Any]:
    """What the parts of a session wrote down so far, in their order; InputError where there is nothing."""
    found = {}
    for name in BUDGETS:
        path = out / f"{name}.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))
    if not found:
        raise InputError(f"{out}: no part of a session is here ({', '.join(f'{name}.json' for name in BUDGETS)})")
    return found


def main(name: str, session_json: str) -> None:
    """One part in a process of its own: load what takes long, wait for the turn, run."""
    end_with_parent(signal.SIGKILL)  # its own children get SIGTERM then, and save
    session = Session.model_validate_json(session_json)
    if not session.rehearse:
        importlib.import_module(f"debias.bench.quarter.{name}")
    seconds = sys.stdin.readline().strip()
    if seconds:
        run_part(name, session, float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
