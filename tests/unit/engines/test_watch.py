"""Who is named when ranks hang, and that what moves is left alone."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from debias.ranks.hangs import HangWatch, Place, hang_watch, place_of, verdict


def at(rank: int, collective: str) -> Place:
    return Place(rank, collective, "a.py:1, f")


@pytest.mark.parametrize(
    ("places", "world", "said"),
    [
        ([at(0, "all_reduce"), at(1, "")], 2, "waiting for rank 1"),
        ([at(0, "all_reduce"), at(2, "all_reduce")], 4, "waiting for rank 1, 3"),
        ([at(0, "all_reduce"), at(1, "barrier")], 2, "the ranks are in different collectives: all_reduce, barrier"),
        ([at(0, "barrier"), at(1, "barrier")], 2, "all ranks wait in the same collective"),
    ],
)
def test_the_rank_that_is_waited_for_is_named(places, world, said):
    text = verdict({place.rank: place for place in places}, world, 60)
    first, *rest = text.splitlines()
    assert first.startswith(f"hang: no step was made for 60 s, {said}")
    assert len(rest) == world
    assert [line for line in rest if "does not answer" in line] == [
        f"  rank {rank} does not answer" for rank in range(world) if rank not in {place.rank for place in places}
    ]


def test_a_place_is_the_callers_line_and_the_collective():
    frames = []

    def leaf():
        frames.append(sys._getframe())

    code = compile("def all_reduce(f):\n    f()\n", "/x/site-packages/torch/distributed/distributed_c10d.py", "exec")
    names: dict = {}
    exec(code, names)
    names["all_reduce"](leaf)
    inside = place_of(1, frames[0])
    assert inside.collective == "all_reduce"
    assert inside.line.endswith("leaf")
    leaf()
    assert place_of(1, frames[1]).collective == ""
    assert str(Path(__file__)) in place_of(1, frames[1]).line


@pytest.fixture
def watch():
    """A watch of 0.4 s on rank 0 of 2 whose other rank never answers, and what it left with."""
    said = []
    made = HangWatch(dist.HashStore(), 0, 2, 0.4, lambda text, says: said.append((text, says)))
    yield made, said
    made.on_train_end()


def test_steps_keep_it_quiet(watch):
    made, said = watch
    made.on_train_begin()
    for _ in range(6):
        time.sleep(0.2)
        made.on_step_end()
    made.on_train_end()
    time.sleep(0.6)
    assert said == []


def test_no_step_is_a_hang(watch, monkeypatch):
    monkeypatch.setattr("debias.ranks.hangs.ANSWER_SECONDS", 0.2)
    made, said = watch
    made.on_train_begin()
    time.sleep(1.5)
    ((text, says),) = said
    assert says
    assert "waiting for rank 1, 0" in text
    assert "rank 1 does not answer" in text
    assert str(Path(__file__)) in text
    assert not any(thread.name == "hang-watch" for thread in threading.enumerate())


class Lost:
    """A store whose holder is gone: it raises, or never answers."""

    def __init__(self, answers):
        self.answers = answers

    def set(self, key, value):
        if self.answers:
            raise RuntimeError("Broken pipe\n  and more")
        time.sleep(3)

    check = get = set


@pytest.mark.parametrize(
    ("answers", "trouble"), [(True, "RuntimeError: Broken pipe and more"), (False, "it does not answer")]
)
def test_a_store_that_is_gone_does_not_keep_a_hang(answers, trouble, monkeypatch):
    monkeypatch.setattr("debias.ranks.hangs.ANSWER_SECONDS", -0.8)
    said = []
    watch = HangWatch(Lost(answers), 1, 2, 0.1, lambda text, says: said.append((text, says)))
    watch.on_train_begin()
    watch._thread.join(2)
    ((text, says),) = said
    assert says
    assert "rank 0 does not answer" in text
    assert text.endswith(f"the store by which ranks reach each other: {trouble}")


def test_one_process_has_none():
    assert hang_watch(1, print) == []


HANGS = """
import os, signal, sys, time, types
import torch, torch.distributed as dist
# Whose Trainer calls the watch; this script does so itself, and four ranks that load transformers are half a minute.
sys.modules["transformers"] = types.SimpleNamespace(TrainerCallback=object)
from debias.ranks.hangs import hang_watch
from debias.ranks.failures import record
dist.init_process_group("gloo")
(watch,) = hang_watch(2, record)
watch.on_train_begin()
def sleeps_at_home():
    if sys.argv[1] == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(100)
if dist.get_rank() == 1:
    sleeps_at_home()
dist.all_reduce(torch.ones(1))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "second"), [("asleep", "rank 1 is in no collective"), ("stopped", "rank 1 does not answer")]
)
def test_a_real_hang_is_broken(kind, second, tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    words = [sys.executable, "-m", "debias.ranks.failures", "--standalone", "--nproc-per-node", "2"]
    words += ["--shutdown-timeout", "2", str(script), kind]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "hang: no step was made for 2 s, waiting for rank 1" in done.stderr
    assert "rank 0 waits in all_reduce" in done.stderr
    assert second in done.stderr
    assert kind == "stopped" or "sleeps_at_home" in done.stderr
