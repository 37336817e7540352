"""The tests that need more than one process, so that an ordinary run covers them."""

import re
import subprocess

import pytest
import torch.distributed as dist
from rank_pool import torchrun

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")]
WORDS = ["-x", "-p", "no:cacheprovider", "-o", "addopts="]
# Tensors that do not divide by three, a rank that owns nothing, everything that ranks must agree on: of one file, which
# loads neither transformers' Trainer nor PEFT for them.
ZERO = "tests/world2/test_zero.py"
THREE_RANKS = "odd_sizes or however or disagree or wrong_order or (skips_the_step_on_all and 1])"


def test_two_ranks():
    check(pytest_on(2, "tests/world2", *WORDS), 2, 200)


def test_three_ranks():
    check(pytest_on(3, ZERO, *WORDS, "-k", THREE_RANKS), 3, 50)


def pytest_on(world, *words):
    """What pytest says on that many ranks, in one process group."""
    process = torchrun(world, "-m", "pytest", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said, errors = process.communicate(timeout=1200)
    assert process.returncode == 0, said[-6000:] + errors[-3000:]
    return said


def check(said, ranks, least):
    """Passed on every rank: a run in which everything was skipped proves nothing."""
    passed = [int(number) for number in re.findall(r"(\d+) passed", said)]
    assert len(passed) == ranks
    assert min(passed) == max(passed) > least
    assert "skipped" not in said
