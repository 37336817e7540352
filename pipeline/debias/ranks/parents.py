"""A process that ends with the one that started it, so that nothing goes on unseen where that one is killed."""

import ctypes
import signal
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """In the child, best before it is anything else (`preexec_fn`): the signal that comes when its parent ends.

    Linux only; elsewhere nothing. The parent is the thread that started it: start children from one that stays.
    """
    if _PRCTL is not None:
        _PRCTL(PR_SET_PDEATHSIG, number)


def _found() -> Callable[..., Any] | None:
    return getattr(ctypes.CDLL(None), "prctl", None)


_PRCTL = _found()  # looked up here: between fork and exec as little as can be is done
