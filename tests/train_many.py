"""Several runs on the same ranks, one after the other; also a script of torchrun: `train_many.py RUNS.json`."""

import json
import sys
from pathlib import Path
from typing import Any

import forked
import torch
import torch.distributed as dist

from debias.config.run import RunConfig
from debias.errors import Interrupted
from debias.train import train


def on_ranks(world: int, runs: list[dict[str, Any]], seconds: float = 600) -> str:
    """Train all runs in one set of ranks; what they printed."""
    return forked.run(world, train_many, runs, seconds=seconds)


def train_many(runs: list[dict[str, Any]]) -> None:
    """On each rank."""
    torch.set_num_threads(1)
    for settings in runs:
        forget_accelerate()
        try:
            train(RunConfig.model_validate(settings))
        except Interrupted as stopped:
            print(stopped)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def forget_accelerate() -> None:
    """Its singletons remember the DeepSpeed configuration of the run before."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


if __name__ == "__main__":
    train_many(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
