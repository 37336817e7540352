"""The tests that need two processes, as one command, so that an ordinary run covers them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_two_ranks():
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "pytest", "tests/world2", "-x", "-p", "no:cacheprovider", "-o", "addopts="]
    # Not what this pytest was told (its options, its coverage), nor a rendezvous of somebody else's.
    mine = ("PYTEST_", "COV_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
    done = subprocess.run(
        command, cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    # Passed on both ranks: a run in which everything was skipped proves nothing.
    passed = [int(number) for number in re.findall(r"(\d+) passed", done.stdout)]
    assert len(passed) == 2
    assert min(passed) == max(passed) > 30
    assert "skipped" not in done.stdout
