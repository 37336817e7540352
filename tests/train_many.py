"""Several runs in one process or `torchrun`, since imports are most of what a tiny run costs."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from debias.config.run import RunConfig
from debias.errors import Interrupted
from debias.train import train


def main() -> None:
    torch.set_num_threads(1)
    for settings in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
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
    main()
