"""Whether DeepSpeed could compile a kernel here: ninja, and locks that a killed build left."""

import shutil
from importlib import metadata

from debias.doctor.check import Check, bad, fine


def ninja() -> Check:
    """DeepSpeed's own optimizers and its asynchronous I/O are compiled at their first use; nothing shipped here is."""
    place = shutil.which("ninja")
    if place is not None:
        return fine("ninja", place)
    try:
        metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return fine("ninja", "not on PATH, and DeepSpeed, which would use it, is not installed")
    return bad("ninja", "not on PATH: DeepSpeed could compile none of its kernels", "pip install ninja")


def build_locks() -> list[Check]:
    """Locks that would let a build, and so a run, wait for ever."""
    from debias.engines.zero.launch import build_problems

    problems = [text.partition("; ") for text in build_problems()]
    return [bad("build lock", found, cure) for found, _, cure in problems] or [fine("build lock", "none left behind")]
