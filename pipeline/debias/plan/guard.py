"""Before a run loads anything: stop it where the plan says that not even one sample fits the GPU."""

import logging
import os

from debias.config.run import RunConfig
from debias.errors import InputError
from debias.plan.planner import Planner, gpu_memory_here
from debias.plan.sheet import Machine

logger = logging.getLogger(__name__)
SKIP = "DEBIAS_SKIP_PLAN"


def refuse_what_cannot_fit(run: RunConfig, world: int = 1) -> None:
    """InputError, in one line, if a micro-batch of 1 needs more than this process's GPU has; `world` ranks share.

    Without CUDA, for models that cannot be planned, and with DEBIAS_SKIP_PLAN=1 in the environment nothing happens.
    """
    memory = gpu_memory_here()
    if memory is None or os.environ.get(SKIP, "") not in ("", "0") or run.head == "image_classification":
        return
    needed = _needed(run, Machine(gpu_memory=memory, gpus=world))
    if needed is not None and needed > memory:
        raise InputError(
            f"model: {run.model!r} needs {needed / 1e9:.1f} GB for a micro-batch of 1, and this GPU has"
            f" {memory / 1e9:.1f} GB; `debias plan` with the same arguments shows why and what helps, {SKIP}=1 goes on"
        )


def _needed(run: RunConfig, machine: Machine) -> int | None:
    """Bytes of a micro-batch of 1, None where no plan can be made: the run itself will say what is wrong."""
    try:
        return Planner(run, machine).memory(1).total
    except Exception as error:  # a plan that fails must not stop a run that would not
        logger.debug("no plan was made: %s", error)
        return None
