"""How long something has taken, and how long it will take, from the pace of its last steps."""

import time
from collections import deque
from collections.abc import Callable

WINDOW = 50  # steps: the first ones are slower than the rest, and a machine's load changes


class TimeLeft:
    """A clock of a task of many alike steps: `begin`, `mark` after each, then `said`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = WINDOW) -> None:
        self.clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=window + 1)
        self._began: float | None = None

    def begin(self, done: int = 0) -> None:
        """The clock starts; so many steps were done before."""
        self._began = self.clock()
        self._marks.clear()
        self._marks.append((self._began, done))

    def mark(self, done: int) -> None:
        """So many steps are done by now."""
        if self._began is None:
            self.begin(done)
        elif done > self._marks[-1][1]:
            self._marks.append((self.clock(), done))

    def said(self, total: int) -> str:
        """`1 min 15 s so far, about 20 s left` of `total` steps; without the second where nothing is known or left."""
        if self._began is None:
            return ""
        now = self.clock()
        so_far = f"{in_words(now - self._began)} so far"
        (first, before), (last, done) = self._marks[0], self._marks[-1]
        if done <= before or done >= total:
            return so_far
        # What has passed since the last mark is of a step that is under way.
        left = max((last - first) / (done - before) * (total - done) - (now - last), 0.0)
        return f"{so_far}, about {in_words(left)} left"


def in_words(seconds: float) -> str:
    """`75` as `1 min 15 s`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
