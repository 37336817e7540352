"""What another launcher than torchrun says about a process, in the words that torch.distributed reads."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from datetime import timedelta

from debias.errors import InputError


def world_size() -> int:
    """How many ranks the launcher has started, one without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def ranks_here(world: int) -> int:
    """How many of so many ranks are on this machine: what the launcher or Slurm say, otherwise all."""
    return local_ranks() or -(-world // (slurm_nodes() or 1))


def local_ranks() -> int | None:
    """How many ranks the launcher says it started on this machine: torchrun, or `deepspeed` in a word of its own."""
    return _number(os.environ, "LOCAL_WORLD_SIZE") or _number(os.environ, "LOCAL_SIZE")


def slurm_nodes() -> int | None:
    """Of how many nodes Slurm says that this step is."""
    return _number(os.environ, "SLURM_STEP_NUM_NODES")


def rank() -> int:
    """This process's."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is the one that writes and speaks for all."""
    return rank() == 0


def without_local_rank(words: Sequence[str], environment: MutableMapping[str, str]) -> list[str]:
    """The command line without the `--local_rank=N` that the `deepspeed` launcher adds; N goes to LOCAL_RANK."""
    kept = []
    for word in words:
        flag, _, rank = word.partition("=")
        if flag in ("--local_rank", "--local-rank") and rank.isdecimal():
            environment.setdefault("LOCAL_RANK", rank)
        else:
            kept.append(word)
    return kept


def adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """RANK, WORLD_SIZE and the meeting point of tasks that `srun python` started itself, one for each rank.

    Nothing changes for a process of another launcher, or in a step of one task (torchrun runs inside such a one).
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in environment or "SLURM_PROCID" not in environment or tasks in ("", "0", "1"):
        return
    first = _first_node(environment)
    # Two steps of one allocation must not meet at one port, nor at one of those that Linux hands out, from 32768 on.
    job, step = (_number(environment, name) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = 20000 + (job * 7 + step) % 12000
    known = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first,
        "MASTER_PORT": str(port),
    }
    for name, value in known.items():
        environment.setdefault(name, value)


def check(environment: Mapping[str, str]) -> None:
    """InputError where a launcher's words are no numbers, or contradict each other: every rank would stop, or wait."""
    for name, least in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", -1)):  # -1: no launcher, by an old convention
        told = environment.get(name)
        if told is not None and not (re.fullmatch(r"-?\d+", told) and int(told) >= least):
            raise InputError(f"{name} is {told!r} in the environment, expected a whole number from {least} on")
    first, size = int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1"))
    if first >= size:
        raise InputError(f"RANK is {first} in the environment where WORLD_SIZE is {size}; unset both, or make them fit")


def leave(patience: float = 60.0) -> None:
    """The end of a process whose ranks are all done: its process groups are taken down while Python still lives.

    Threads of gloo may hold tensors of Python's; torn down by the interpreter's end they abort the process now and
    then, and a run that has finished is reported as failed. Ranks that do not come within `patience` seconds have
    failed, and are not waited for.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    with contextlib.suppress(Exception):  # what was to be done is done; a rank that is gone is no failure of this one
        distributed.barrier(async_op=True).wait(timedelta(seconds=patience))
        distributed.destroy_process_group()


def _number(environment: Mapping[str, str], name: str) -> int | None:
    """A count that the environment says; None for one that is empty, below 1 or no number."""
    try:
        number = int(environment.get(name, ""))
    except ValueError:
        return None
    return number if number > 0 else None


def _first_node(environment: MutableMapping[str, str]) -> str:
    """The address by which Slurm reaches the step's first node; its name if Slurm cannot be asked."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    try:
        name = _said(["scontrol", "show", "hostnames", nodes]).split()[0]
        words = _said(["scontrol", "show", "node", name]).split()
        return next(word.partition("=")[2] for word in words if word.startswith("NodeAddr="))
    except (OSError, subprocess.SubprocessError, IndexError, StopIteration):
        return nodes.partition(",")[0] or "127.0.0.1"


def _said(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
