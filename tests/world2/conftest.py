"""Two processes over gloo: `torchrun --standalone --nproc-per-node 2 -m pytest tests/world2`; one alone skips.

test_zero.py also runs with three or four.
"""

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist


@pytest.fixture(scope="session", autouse=True)
def rank() -> Iterator[int]:
    """The one process group of the session; every test runs on both ranks, in the same order."""
    if os.environ.get("WORLD_SIZE") not in {"2", "3", "4"}:
        pytest.skip("needs two processes: torchrun --standalone --nproc-per-node 2 -m pytest tests/world2")
    torch.set_num_threads(1)
    # A rank that fails stops taking part: the other one must not wait for the default half hour.
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    yield dist.get_rank()
    dist.barrier()
    dist.destroy_process_group()
