"""SIGTERM in a run that lies within another one."""

import os
import signal

import pytest

from debias.ranks.stopping import StopRequest


def test_a_request_that_came_too_late_for_the_inner_run_is_the_outer_ones() -> None:
    """The inner run came to its end before it looked: the run around it must stop all the same."""
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(60) as outer:
        with StopRequest(60) as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert inner.asked
        assert outer.asked
    assert signal.getsignal(signal.SIGTERM) == before


def _is_stopped() -> None:
    with StopRequest(60):
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("stopped")


def test_a_run_that_was_stopped_itself_passes_nothing_on() -> None:
    with StopRequest(60) as outer:
        with pytest.raises(RuntimeError, match="stopped"):
            _is_stopped()
        assert not outer.asked
        with StopRequest(60):
            pass
        assert not outer.asked
