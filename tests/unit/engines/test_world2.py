"""The tests that need more than one process, as commands, so that an ordinary run covers them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

ROOT = Path(__file__).parents[3]


# Tensors that do not divide by three, a rank that owns nothing, everything that ranks must agree on.
THREE_RANKS = "odd_sizes or however or disagree or wrong_order or (skips_the_step_on_all and 1])"


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize(
    ("ranks", "options", "least"),
    [(2, [], 200), (3, ["-k", THREE_RANKS], 50)],
    ids=["two ranks", "three ranks"],
)
def test_ranks(ranks, options, least):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launch, "-m", "pytest", "tests/world2", "-x", "-p", "no:cacheprovider", "-o", "addopts=", *options]
    # Not what this pytest was told (its options, its coverage), nor a rendezvous of somebody else's.
    mine = ("PYTEST_", "COV_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "TORCHELASTIC_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
    done = subprocess.run(
        command, cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    # Passed on every rank: a run in which everything was skipped proves nothing.
    passed = [int(number) for number in re.findall(r"(\d+) passed", done.stdout)]
    assert len(passed) == ranks
    assert min(passed) == max(passed) > least
    assert "skipped" not in done.stdout
