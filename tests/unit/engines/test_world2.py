"""The tests that need more than one process, so that an ordinary run covers them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch.distributed as dist

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")]
ROOT = Path(__file__).parents[3]
WORDS = ["tests/world2", "-x", "-p", "no:cacheprovider", "-o", "addopts="]
# Tensors that do not divide by three, a rank that owns nothing, everything that ranks must agree on.
THREE_RANKS = "odd_sizes or however or disagree or wrong_order or (skips_the_step_on_all and 1])"


def test_two_ranks():
    """Under torchrun: ranks that have nothing in common, not even the hashes of strings."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # Not what this pytest was told (its options, its coverage), nor a rendezvous of somebody else's.
    env = {key: value for key, value in os.environ.items() if not key.startswith(forked.OTHERS)}
    command = [*launch, "-m", "pytest", *WORDS]
    done = subprocess.run(
        command, cwd=ROOT, env=env | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    check(done.stdout, 2, 200)


def test_three_ranks():
    check(forked.run(3, pytest_of_a_rank, [*WORDS, "-k", THREE_RANKS]), 3, 50)


def pytest_of_a_rank(words):
    sys.exit(pytest.main(words))


def check(said, ranks, least):
    """Passed on every rank: a run in which everything was skipped proves nothing."""
    passed = [int(number) for number in re.findall(r"(\d+) passed", said)]
    assert len(passed) == ranks
    assert min(passed) == max(passed) > least
    assert "skipped" not in said
