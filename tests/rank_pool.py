"""Two ranks that stay: started by torchrun once a session, when first asked, they train what they are given in one
process group. Imports are most of a tiny run, and so they are paid once.

As a script of torchrun, `rank_pool.py FOLDER PARENT`: what a rank does.
"""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RANKS = 2
# Of whoever started this process: its rank, its rendezvous, its pytest.
OTHERS = ("PYTEST_", "COV_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_")


def environment() -> dict[str, str]:
    """For processes that are ranks of their own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(OTHERS)}
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def torchrun(world: int, *words: Any, **options: Any) -> "subprocess.Popen[str]":
    """A launch of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return subprocess.Popen([*command, *map(str, words)], env=environment(), cwd=ROOT, text=True, **options)


class Pool:
    """The ranks of this session, and what they were given so far."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        self.given = 0
        with (self.folder / "launcher.log").open("w") as log:
            self.process = torchrun(RANKS, __file__, self.folder, os.getpid(), stdout=log, stderr=log)

    def train(self, runs: list[dict[str, Any]], seconds: float, meanwhile: "Meanwhile" = lambda pool: None) -> str:
        """What both ranks printed; AssertionError where one failed, after which there must be another pool."""
        job, self.given = self.folder / str(self.given), self.given + 1
        part = job.with_suffix(".part")
        part.write_text(json.dumps(runs))
        part.rename(job.with_suffix(".json"))
        meanwhile(self)
        ends = [job.with_suffix(f".rank{rank}") for rank in range(RANKS)]
        end = time.monotonic() + seconds
        while not all(map(Path.exists, ends)):
            assert time.monotonic() < end, f"still at work after {seconds} s\n{self._said(job)}"
            assert self.process.poll() is None, f"the ranks are gone\n{self._said(job)}"
            time.sleep(0.02)
        assert not any(one.read_text() for one in ends), self._said(job)
        return job.with_suffix(".log").read_text(errors="replace")

    def pid(self, rank: int) -> int:
        """Of one rank, which has been given something."""
        return int((self.folder / f"pid{rank}").read_text())

    def _said(self, job: Path) -> str:
        files = [job.with_suffix(".log"), *self.folder.glob(f"{job.name}.rank*"), self.folder / "launcher.log"]
        return "\n".join(file.read_text(errors="replace")[-5000:] for file in files if file.exists())

    def close(self) -> None:
        """End the ranks."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


Meanwhile = Callable[[Pool], None]
_POOLS: list[Pool] = []


def on_two_ranks(runs: list[dict[str, Any]], seconds: float = 600, meanwhile: "Meanwhile" = lambda pool: None) -> str:
    """Train all runs on the session's two ranks; what they printed. `meanwhile` is called while they train."""
    if not _POOLS:
        _POOLS.append(Pool())
        atexit.register(_close)
    try:
        return _POOLS[0].train(runs, seconds, meanwhile)
    except BaseException:
        _close()
        raise


def _close() -> None:
    while _POOLS:
        _POOLS.pop().close()


def serve(folder: Path, parent: int, train_many: Callable[[list[dict[str, Any]]], None]) -> None:
    """One rank: each file of runs in turn, its output in the file's log, until whoever asks is gone."""
    rank, number = os.environ["RANK"], 0
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    while os.path.exists(f"/proc/{parent}"):
        job = folder / f"{number}.json"
        if not job.exists():
            time.sleep(0.02)
            continue
        log = os.open(job.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        error = ""
        try:
            train_many(json.loads(job.read_text()))
        except BaseException:
            error = traceback.format_exc()
        sys.stdout.flush()
        ended = folder / f"{number}.ended{rank}"
        ended.write_text(error)
        ended.rename(job.with_suffix(f".rank{rank}"))
        number += 1


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from debias.ranks.garbage import loading

    with loading():
        from train_many import train_many_together

    serve(Path(sys.argv[1]), int(sys.argv[2]), train_many_together)
