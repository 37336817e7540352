"""A hang among ranks, broken by a timeout that names the rank all wait for and the collective they wait in.

A collective that one rank never enters keeps the others waiting, and what a backend says when its time is up (a
connection, a number of milliseconds) names nobody. Here each rank has a thread that looks whether steps are made. When
none was made for `seconds`, every rank posts where its main thread is; whoever is in no collective, or does not answer,
is what the others wait for.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback

COLLECTIVES = os.path.join("torch", "distributed", "distributed_c10d.py")
NOT_OURS = ("site-packages", "dist-packages", os.path.join("lib", "python"))
ANSWER_SECONDS = 5.0  # a rank that lives answers well within it, for all clocks run out at about the same time


@dataclass(frozen=True)
class Place:
    """Where a rank's main thread is: the collective it waits in, if any, and the nearest line of no library."""

    rank: int
    collective: str
    line: str

    def __str__(self) -> str:
        doing = f"waits in {self.collective}" if self.collective else "is in no collective"
        return f"rank {self.rank} {doing} ({self.line})"


def place_of(rank: int, frame: FrameType | None) -> Place:
    """Read a thread's frames from the innermost one outwards."""
    collective, line = "", ""
    outermost = frame
    while frame is not None:
        code = frame.f_code
        if code.co_filename.endswith(COLLECTIVES):
            collective = code.co_name  # the outermost of them is the one that was called
        if not line and not any(part in code.co_filename for part in NOT_OURS):
            line = f"{code.co_filename}:{frame.f_lineno}, {code.co_name}"
        frame = frame.f_back
    if not line and outermost is not None:
        line = f"{outermost.f_code.co_filename}:{outermost.f_lineno}, {outermost.f_code.co_name}"
    return Place(rank, "" if collective == "wrapper" else collective, line)


def verdict(places: dict[int, Place], world: int, seconds: float) -> str:
    """The report, a line for each rank, the ranks that are waited for named first."""
    silent = [rank for rank in range(world) if rank not in places]
    outside = [rank for rank, place in sorted(places.items()) if not place.collective]
    names = {place.collective for place in places.values() if place.collective}
    if silent or outside:
        blamed = f"waiting for rank {', '.join(map(str, [*silent, *outside]))}"
    elif len(names) > 1:
        blamed = f"the ranks are in different collectives: {', '.join(sorted(names))}"
    else:
        blamed = "all ranks wait in the same collective: look at the network between them"
    lines = [f"hang: no step was made for {seconds:g} s, {blamed}"]
    lines += [f"  {places[rank]}" if rank in places else f"  rank {rank} does not answer" for rank in range(world)]
    return "\n".join(lines)


class HangWatch(TrainerCallback):
    """Ends this process with the verdict when no step, evaluation step or save was made for `seconds`."""

    def __init__(self, store: Any, rank: int, world: int, seconds: float, leave: Callable[[str, bool], None]) -> None:
        self.store = store
        self.rank = rank
        self.world = world
        self.seconds = seconds
        self.leave = leave
        self.main = threading.main_thread().ident
        self._moved = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start to watch."""
        self.main = threading.get_ident()
        self._moved = time.monotonic()
        self._stop.clear()
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)
        self._thread.start()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Watch no longer."""
        self._stop.set()

    def moved(self, *args: Any, **kwargs: Any) -> None:
        """Something was done."""
        self._moved = time.monotonic()

    on_step_begin = on_substep_end = on_step_end = on_prediction_step = on_evaluate = on_save = on_log = moved

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._moved > self.seconds:
                self.leave(*self._verdict())
                return

    def _verdict(self) -> tuple[str, bool]:
        """The report, and whether this is the one rank that says it."""
        found = {self.rank: place_of(self.rank, sys._current_frames().get(self.main or 0))}
        troubles: list[str] = []
        # A thread of its own: the store may be gone with the rank that held it, and then it raises, or never answers.
        asking = threading.Thread(target=self._ask, args=(found, troubles), name="hang-watch-asks", daemon=True)
        asking.start()
        asking.join(ANSWER_SECONDS + 1)
        places = dict(found)
        if asking.is_alive():
            troubles.append("it does not answer")
        said = "".join(f"\n  the store by which ranks reach each other: {trouble}" for trouble in troubles)
        return verdict(places, self.world, self.seconds) + said, self.rank == min(places)

    def _ask(self, places: dict[int, Place], troubles: list[str]) -> None:
        """Post this rank's place and put those of the others into `places`, or what went wrong into `troubles`."""
        try:
            self.store.set(f"debias/place/{self.rank}", json.dumps(asdict(places[self.rank])))
            end = time.monotonic() + ANSWER_SECONDS
            while len(places) < self.world and time.monotonic() < end:
                for rank in set(range(self.world)) - set(places):
                    if self.store.check([key := f"debias/place/{rank}"]):
                        places[rank] = Place(**json.loads(self.store.get(key)))
                time.sleep(0.1)
        except Exception as error:  # whatever it is, the hang must be broken
            troubles.append(" ".join(f"{type(error).__name__}: {error}".split()))


def hang_watch(seconds: float, record: Callable[[BaseException], None]) -> list[TrainerCallback]:
    """The callback of this rank, none in a run of one process; `record` takes the reason before the process ends."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return []

    def leave(text: str, says_it: bool) -> None:
        if says_it:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()
        record(RuntimeError(text))
        if not says_it:
            time.sleep(2)  # the launcher ends all ranks at the first that leaves: let the one that speaks be it
        os._exit(1)  # nothing wakes a main thread from a collective

    store: Any = dist.distributed_c10d._get_default_store()
    # A client of its own: the thread must not wait for one that the main thread holds.
    return [HangWatch(store.clone(), dist.get_rank(), dist.get_world_size(), seconds, leave)]
