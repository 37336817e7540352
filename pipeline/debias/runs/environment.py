"""Versions, machine, commit and memory: what somebody else needs to run the same thing."""

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from debias.config.shipped import PACKAGE
from debias.hub.remote_code import VARIABLE
from debias.ranks.world import ranks_here, world_size

PACKAGES = ("debias", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "deepspeed", "numpy")


def environment() -> dict[str, Any]:
    """Versions, machine and commit: what somebody else needs to run the same thing."""
    import torch

    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "world_size": world_size(),
            "local_world_size": ranks_here(world_size()),
        },
        "commit": _commit(),
        **({VARIABLE: named} if (named := os.environ.get(VARIABLE)) else {}),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the checkout this code runs from, `-dirty` if it was changed; None for an installed wheel."""
    if not (PACKAGE.parents[1] / ".git").exists():
        return None
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # a checkout on a machine without git
        return None
    return done.stdout.strip() or None


def peak_memory_mb() -> float:
    """Peak memory so far: of the GPU where there is one, else the process's resident size. MiB."""
    import torch

    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 1024 if sys.platform == "linux" else 1
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
