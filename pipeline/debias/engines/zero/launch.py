"""Starting DeepSpeed without surprises: no kernel is built that nothing needs, one process needs no launcher."""

import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

# A rank that fails stops taking part: the others must not wait for the default half hour.
LONGEST_WAIT = timedelta(minutes=5)
# A build takes minutes; a lock that is older than this was left by a process that is gone.
STALE_LOCK_SECONDS = 1800
# What a process without a launcher says of itself, before it opens a group of one.
ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def prepare() -> None:
    """Before anything opens DeepSpeed's process group: see that it compiles nothing, and that a group can be opened."""
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        # On Linux DeepSpeed would compile this operator for CPU ranks, for two minutes; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:  # or DeepSpeed would look for an MPI launcher
        os.environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"})
        os.environ.setdefault("MASTER_PORT", str(_free_port()))


def open_group(timeout: timedelta = LONGEST_WAIT) -> torch.device:
    """Join the process group that the environment names, over NCCL or gloo; returns this rank's device.

    Raises ImportError if deepspeed is not installed.
    """
    prepare()
    import deepspeed

    on_gpu = torch.cuda.is_available()
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False, timeout=timeout)
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


@contextmanager
def own_group() -> Iterator[None]:
    """As a context: a group of one that is opened in it, for want of a launcher, is closed behind it.

    Left open, the next run of the process would be one of ranks, and its children would wait at this group's port.
    So is what stage 3 puts in the place of torch's linear layer, for the whole process and for ever.
    """
    linear, hook = nn.functional.linear, sys.excepthook
    alone = not torch.distributed.is_initialized() and "RANK" not in os.environ
    before = {name: os.environ.get(name) for name in ALONE}
    try:
        yield
    finally:
        nn.functional.linear = linear
        if alone and "RANK" in os.environ:
            _close()
            sys.excepthook = hook
            for name in ALONE:
                os.environ.pop(name, None)
            os.environ.update({name: value for name, value in before.items() if value is not None})


def _close() -> None:
    """DeepSpeed's own function forgets the groups that it remembers, too; torch's does not."""
    if torch.distributed.is_initialized():
        import deepspeed.comm

        deepspeed.comm.destroy_process_group()


def initialize(model: nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any]) -> Any:
    """The engine of `deepspeed.initialize`, after `open_group`."""
    import deepspeed

    # Without these two DeepSpeed refuses a torch optimizer, or compiles its own for the CPU.
    ours = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config={**ours, **config})
    return engine


def mark_leaves(model: nn.Module, kinds: Sequence[type[nn.Module]]) -> int:
    """Make modules of these classes leaves of ZeRO-3: gathered whole, whichever of their parts a rank uses.

    Inside a mixture of experts the ranks use different ones, and would wait for each other's gathers forever. DeepSpeed
    does so by itself for a few classes, Llama-4's not among them. Returns how many there are.
    """
    if not kinds or find_spec("deepspeed") is None:  # a run of it may be judged where it is not installed
        return 0
    from deepspeed.utils import set_z3_leaf_modules

    return len(set_z3_leaf_modules(model, list(kinds), raise_if_not_found=False))


def build_problems(ops: Sequence[str] = ()) -> list[str]:
    """What would stop or hang a kernel build of DeepSpeed, each with its cure; `ops`: kernels that will be built."""
    problems = []
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    for lock in sorted(folder.glob("**/lock")):
        age = time.time() - lock.stat().st_mtime
        if age > STALE_LOCK_SECONDS:
            problems.append(f"{lock} is {age / 3600:.1f} h old: a killed build left it, later ones wait; delete it")
    if ops and shutil.which("ninja") is None:
        problems.append(f"ninja is not on PATH, and {', '.join(ops)} would be compiled; pip install ninja")
    return problems


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
