"""Ranks forked from one process that has imported everything and started nothing: imports are most of a tiny run.

`run` is what `torchrun --standalone --nproc-per-node WORLD` does with a script's `main`, less the launcher and the
imports of every rank. Forks share the hashes of strings, which ranks of a launcher do not: an order that comes of a set
is met by tests/world2, test_launchers.py and test_slurm.py, whose processes are started one by one.
"""

import gc
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[1]
# Those that are not installed are left out.
IMPORTED = (
    "pytest",
    "debias.cli.app",
    "debias.train",
    "debias_eval.judging.judge",
    "deepspeed.runtime.zero.stage3",
    "debias.engines.zero.hook",
    "debias.engines.zero.state",
)
# Of whoever started this process: its rank, its rendezvous, its pytest.
OTHERS = ("PYTEST_", "COV_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")


class Forks:
    """Processes at work; what they print lies in one file. All are gone when the context ends."""

    def __init__(self, processes: list[ForkServerProcess], log: Path) -> None:
        self.processes = processes
        self.log = log

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self.processes if process.pid]

    def codes(self) -> list[int | None]:
        """The exit code of each, None while it is at work; negative: the signal that ended it."""
        return [process.exitcode for process in self.processes]

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, seconds: float = 600) -> list[int | None]:
        """The exit codes, once all have ended or one has failed, for which the others may wait; AssertionError after
        `seconds`.
        """
        end = time.monotonic() + seconds
        while None in self.codes() and not any(self.codes()):
            assert time.monotonic() < end, f"still at work after {seconds} s\n{self.output()[-6000:]}"
            time.sleep(0.02)
        return self.codes()

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.log.unlink()


def start(world: int | None, target: Callable[..., Any], *arguments: Any, **environment: str) -> Forks:
    """`target(*arguments)` of a module on `world` ranks, or in one process that is no rank, in the project's folder."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OTHERS)}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    of_all = {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    size = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), **address}
    handle, log = tempfile.mkstemp(suffix=".log")
    os.close(handle)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    processes = []
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the process that is forked: what has started CUDA cannot be
    try:
        for rank in range(world or 1):
            own = of_all if world is None else {**of_all, **size, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(context.Process(target=_rank, args=(own, log, target, arguments)))
            processes[-1].start()
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    return Forks(processes, Path(log))


def run(world: int | None, target: Callable[..., Any], *arguments: Any, seconds: float = 600, **others: str) -> str:
    """What the ranks printed; AssertionError where one failed."""
    with start(world, target, *arguments, **others) as forks:
        codes = forks.wait(seconds)
        assert not any(codes), f"{codes}\n{forks.output()[-9000:]}"
        return forks.output()


def _rank(environment: Mapping[str, str], log: str, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import numpy as np

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    gc.freeze()  # what was imported; a Trainer collects garbage when it begins
    np.random.seed()  # else all forks draw the same numbers, as processes of a launcher do not
    target(*arguments)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
