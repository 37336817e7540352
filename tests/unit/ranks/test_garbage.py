"""What is loaded is not searched: while it is loaded, at the end of Python, and never where somebody had said no."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from debias.ranks.garbage import loading

ROOT = Path(__file__).parents[3] / "pipeline"
# A pair of objects that hold each other, which only a search finds, and what the search says when it finds them.
ENDS = """
from debias.ranks import garbage
class Pair:
    def __del__(self):
        print("found")
one, other = Pair(), Pair()
one.other, other.other = other, one
del one, other
{what}
"""


def fails_while_it_loads() -> None:
    with loading():
        assert not gc.isenabled()
        raise ModuleNotFoundError


@pytest.mark.parametrize("on", [True, False])
def test_nothing_is_searched_while_it_is_loaded_and_then_as_before(on: bool) -> None:
    gc.enable() if on else gc.disable()
    try:
        with pytest.raises(ModuleNotFoundError):
            fails_while_it_loads()
        assert gc.isenabled() is on
        assert gc.get_freeze_count() > 0
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("what", "found"), [("", 2), ("garbage.end_unsearched()", 0), ("with garbage.loading(): pass", 0)]
)
def test_the_end_of_python_is_searched_only_where_nobody_said_otherwise(what: str, found: int) -> None:
    words = [sys.executable, "-c", ENDS.format(what=what)]
    done = subprocess.run(words, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    assert done.stdout.count("found") == found
