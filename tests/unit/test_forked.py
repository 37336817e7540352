"""What the tests of ranks stand on: forks that fail are seen, and grids meet what they promise."""

import itertools
import os
import signal
import sys
import time

import forked
import pytest
from covering import covering


def says(word):
    print(word, os.environ["RANK"], os.environ["WORLD_SIZE"])
    print("beside it", file=sys.stderr)


def fails():
    if os.environ["RANK"] == "1":
        raise ValueError("a bug")
    time.sleep(100)


@pytest.mark.slow
def test_what_ranks_print_and_that_one_failed():
    said = forked.run(2, says, "hello").splitlines()
    assert sorted(said) == ["beside it"] * 2 + ["hello 0 2", "hello 1 2"]
    before = time.monotonic()
    with pytest.raises(AssertionError, match=r"(None|0), 1.*\n(.*\n)*ValueError: a bug"):
        forked.run(2, fails)
    assert time.monotonic() - before < 90  # the other rank is not waited for
    with forked.start(1, time.sleep, 100) as forks:
        assert forks.codes() == [None]
        os.kill(forks.pids[0], signal.SIGKILL)
        assert forks.wait() == [-signal.SIGKILL]


def test_a_grid_meets_every_pair_that_is_allowed_and_not_apart():
    factors = {"a": [0, 1, 2], "b": [0, 1, 2], "c": [0, 1, 2]}
    rows = covering(factors, lambda row: row["a"] or not row["b"], [frozenset("bc")])
    assert len(rows) < 3**3
    met = {(x, y, row[x], row[y]) for row in rows for x, y in itertools.combinations("abc", 2)}
    assert met >= {("a", "b", a, b) for a in range(3) for b in range(3) if a or not b}
    assert met >= {("a", "c", a, c) for a in range(3) for c in range(3)}
    assert all(row["a"] or not row["b"] for row in rows)
    assert len(covering(factors)) >= len(rows)
