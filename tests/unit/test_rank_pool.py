"""What the tests of ranks stand on: ranks that fail are seen, and grids meet what they promise."""

import itertools

import pytest
from covering import covering
from rank_pool import Pool


@pytest.mark.slow
def test_a_run_that_fails_on_the_ranks_is_seen_and_what_comes_after_it_is_done():
    pool = Pool()
    try:
        with pytest.raises(AssertionError, match=r"(\n.*)*model\n.*Field required"):
            pool.train([{"output_dir": "x"}], 120)
        assert pool.train([], 60) == ""
        pool.process.kill()
        pool.process.wait()
        with pytest.raises(AssertionError, match="the ranks are gone"):
            pool.train([], 60)
    finally:
        pool.close()
    assert not pool.folder.exists()


def test_a_grid_meets_every_pair_that_is_allowed_and_not_apart():
    factors = {"a": [0, 1, 2], "b": [0, 1, 2], "c": [0, 1, 2]}
    rows = covering(factors, lambda row: row["a"] or not row["b"], [frozenset("bc")])
    assert len(rows) < 3**3
    met = {(x, y, row[x], row[y]) for row in rows for x, y in itertools.combinations("abc", 2)}
    assert met >= {("a", "b", a, b) for a in range(3) for b in range(3) if a or not b}
    assert met >= {("a", "c", a, c) for a in range(3) for c in range(3)}
    assert all(row["a"] or not row["b"] for row in rows)
    assert len(covering(factors)) >= len(rows)
