"""Python's search for garbage, kept away from what stays until the end of a process.

The libraries of a run are a million objects, and none of them is garbage. Looking through them takes as long as loading
them: again and again while they are loaded, at each full collection of a run, and once more when Python ends.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def loading() -> Iterator[None]:
    """Around imports: nothing is looked through meanwhile, and what the first of them brought never again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        _keep()
        if was_on:
            gc.enable()


@cache
def _keep() -> None:
    gc.freeze()
    end_unsearched()


@cache
def end_unsearched() -> None:
    """When Python ends, all that this process still holds goes with it as it is."""
    atexit.register(gc.freeze)
