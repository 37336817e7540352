"""Elapsed time and time left: of a clock that the test moves."""

from types import SimpleNamespace

import pytest

from debias.runs.metrics import PlainProgress
from debias.runs.time_left import TimeLeft, in_words


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (3599.7, "1 h 0 min"), (7380, "2 h 3 min")],
)
def test_in_words(seconds, words):
    assert in_words(seconds) == words


def test_the_pace_is_that_of_the_last_steps():
    """The first step of a run takes a minute, and says nothing of the others once it is out of sight."""
    clock = Clock()
    left = TimeLeft(clock, window=3)
    assert left.said(10) == ""
    left.begin(2)  # gone on with
    assert left.said(10) == "0 s so far"
    clock.now += 60
    left.mark(3)
    assert left.said(10) == "1 min 0 s so far, about 7 min 0 s left"
    for step in (4, 5, 6):
        clock.now += 2
        left.mark(step)
    assert left.said(10) == "1 min 6 s so far, about 8 s left"
    clock.now += 3  # into a step
    assert left.said(10) == "1 min 9 s so far, about 5 s left"
    clock.now += 50
    assert left.said(10) == "1 min 59 s so far, about 0 s left"
    left.mark(10)
    assert left.said(10) == "1 min 59 s so far"


def test_progress_lines_say_it():
    clock, lines = Clock(), []
    progress = PlainProgress(lines.append, clock)
    state = SimpleNamespace(global_step=0, max_steps=40, is_world_process_zero=True)
    progress.on_train_begin(None, state, None)
    for step in range(1, 41):
        clock.now += 1.5
        state.global_step = step
        progress.on_step_end(None, state, None)
        progress.on_log(None, state, None, {"loss": 0.5})
    assert lines[0] == "step 1 of 40: loss 0.5, 2 s so far, about 58 s left"
    assert lines[1] == "step 8 of 40: loss 0.5, 12 s so far, about 48 s left"
    assert lines[-1] == "step 40 of 40: loss 0.5, 1 min 0 s so far"


def test_progress_of_somebody_who_never_said_that_training_begins():
    lines = []
    state = SimpleNamespace(global_step=3, max_steps=40, is_world_process_zero=True)
    PlainProgress(lines.append, Clock()).on_log(None, state, None, {"loss": 0.5})
    assert lines == ["step 3 of 40: loss 0.5"]
