"""Before a run loads anything: stop it where the plan says that not even one sample fits the GPU or the CPU."""

import logging
import os
from pathlib import Path

from debias.config.run import RunConfig
from debias.errors import InputError
from debias.hub.cache import in_cache
from debias.plan.planner import Planner, gpu_memory_here, host_memory_here
from debias.plan.sheet import Machine

logger = logging.getLogger(__name__)
SKIP = "DEBIAS_SKIP_PLAN"


def refuse_what_cannot_fit(run: RunConfig, world: int = 1, here: int | None = None) -> None:
    """InputError, in one line, if a micro-batch of 1 needs more than this process's GPU has; `world` ranks share.

    Without CUDA it is this machine's memory that counts, for the ranks that are `here` (as a rule all), and only a
    model whose weights fill half of it is planned: a plan takes longer than to see that others fit. For models that
    cannot be planned, and with DEBIAS_SKIP_PLAN=1 in the environment nothing happens.
    """
    if os.environ.get(SKIP, "") not in ("", "0") or run.head == "image_classification":
        return
    memory, cuda = gpu_memory_here(), True
    if memory is None:
        memory, cuda = host_memory_here(), False
        here = here or world
        if 2 * here * _bytes_of_weights(run.model) < memory:
            return
        memory //= here
    needed = _needed(run, Machine(gpu_memory=memory, gpus=world, cuda=cuda))
    if needed is not None and needed > memory:
        has = "this GPU has" if cuda else "this machine has for a process"
        raise InputError(
            f"model: {run.model!r} needs {needed / 1e9:.1f} GB for a micro-batch of 1, and {has}"
            f" {memory / 1e9:.1f} GB; `debias plan` with the same arguments shows why and what helps, {SKIP}=1 goes on"
        )


def _bytes_of_weights(name: str) -> int:
    """Of a model that is on this machine, 0 for one that is not."""
    if os.path.isdir(name):  # for which a name that is too long is no error
        folder = Path(name)
        return sum(file.stat().st_size for kind in ("safetensors", "bin") for file in folder.glob(f"*.{kind}"))
    found = None if ":" in name else in_cache(name)
    return 0 if found is None else found.bytes


def _needed(run: RunConfig, machine: Machine) -> int | None:
    """Bytes of a micro-batch of 1, None where no plan can be made: the run itself will say what is wrong."""
    try:
        return Planner(run, machine).memory(1).total
    except Exception as error:  # a plan that fails must not stop a run that would not
        logger.debug("no plan was made: %s", error)
        return None
