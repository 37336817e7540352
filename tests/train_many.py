"""Several runs on the same ranks, one after the other; also a script of torchrun: `train_many.py RUNS.json`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_pool import RANKS, on_two_ranks, torchrun
from templates import compile_once

from debias.config.run import RunConfig
from debias.errors import Interrupted
from debias.ranks.garbage import end_unsearched
from debias.train import train


def on_ranks(world: int, runs: list[dict[str, Any]], seconds: float = 600) -> str:
    """Train all runs in one set of ranks, two of which are there for the whole session; what they printed.

    One rank without DeepSpeed, which keeps a process group, is this process.
    """
    if world == RANKS:
        return on_two_ranks(runs, seconds)
    if world == 1 and not any(run.get("deepspeed") for run in runs):
        train_many_together(runs)
        return ""
    with tempfile.TemporaryDirectory() as folder:
        process = launched(world, runs, Path(folder))
        output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output[-9000:]
    return output


def launched(world: int, runs: list[dict[str, Any]], folder: Path) -> "subprocess.Popen[str]":
    """A launch of its own for the runs, which are written in the folder."""
    (folder / "runs.json").write_text(json.dumps(runs))
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return torchrun(world, __file__, folder / "runs.json", **pipes)


def train_many(runs: list[dict[str, Any]]) -> None:
    """On each rank, which then leaves."""
    train_many_together(runs)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def train_many_together(runs: list[dict[str, Any]]) -> None:
    """On each rank."""
    torch.set_num_threads(1)
    compile_once()
    for settings in runs:
        forget_accelerate()
        try:
            train(RunConfig.model_validate(settings))
        except Interrupted as stopped:
            print(stopped)


def forget_accelerate() -> None:
    """Its singletons remember the DeepSpeed configuration of the run before."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


if __name__ == "__main__":
    end_unsearched()
    train_many(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
