import os
import socket
import subprocess
import sys
import time

import pytest

from debias.doctor import all_reduce, engine_steps, ranks

FACTS = {
    "node": "n1",
    "time": 1000.0,
    "seed": 3,
    "drawn": [0.5],
    "config": "abc",
    "torch": "2.13",
    "transformers": "5.23",
    "peft": "0.21",
    "debias": "0.1",
}


def everyone(count=3, **odd):
    """Facts of ranks that agree, but for those of the last."""
    found = [{**FACTS, "rank": rank, "node": f"n{rank}"} for rank in range(count)]
    found[-1].update(odd)
    return found


def test_ranks_that_agree():
    clocks, same = ranks.agreement(everyone())
    assert clocks.ok
    assert same.ok


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"torch": "2.12"}, "torch: rank 2 on n2 has 2.12, the others 2.13"),
        ({"peft": None}, "peft: rank 2 on n2 has None, the others 0.21"),
        ({"config": "xyz"}, "config (digest): rank 2 on n2 has xyz, the others abc"),
        ({"seed": 4}, "seed: rank 2 on n2 has 4, the others 3"),
        ({"drawn": [0.25]}, "random numbers of the seed: rank 2 on n2 has [0.25], the others [0.5]"),
    ],
)
def test_the_rank_that_differs_is_named(odd, words):
    clocks, same = ranks.agreement(everyone(**odd))
    assert clocks.ok
    assert same.stops
    assert same.found == words
    assert same.cure


def test_a_clock_that_is_off_is_named():
    assert ranks.agreement(everyone(time=1001.9))[0].ok
    clocks, _ = ranks.agreement(everyone(time=997.0))
    assert clocks.stops
    assert clocks.found == "rank 2 on n2 is -3.0 s from the others"


@pytest.mark.slow  # processes that import torch
def test_two_processes_on_this_machine_add_up():
    check = all_reduce.local()
    assert check.name == "all-reduce"
    assert not check.stops
    assert check.found.startswith("2 ranks on this machine, gloo: ")
    assert float(check.found.split(": ")[1].removesuffix(" MB/s").replace(",", "")) > 0


def test_a_rank_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(all_reduce, "PATIENCE", 60)
    monkeypatch.setattr(all_reduce.sys, "executable", "/bin/false")
    check = all_reduce.local()
    assert check.stops
    assert "rank 0 failed: it ended with exit code 1" in check.found


def test_a_slow_network_is_a_warning():
    assert all_reduce.judge(99.0, "x").line.startswith("WARN")
    assert all_reduce.judge(100.0, "x").ok


@pytest.mark.slow
def test_nobody_at_the_meeting_place(monkeypatch):
    monkeypatch.setattr(ranks, "MEETING", ranks.timedelta(seconds=1))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}.items():
        monkeypatch.setenv(name, value)
    check = ranks.meet()
    assert check.stops
    assert "rank 1 of 2 on" in check.found
    assert "does not meet the others at 127.0.0.1:9" in check.found
    assert "GLOO_SOCKET_IFNAME" in check.cure


RANK = """
import os, sys
from debias.cli import doctor
from debias.doctor import examination
from debias.doctor.check import bad, fine
import typer

def examine(*arguments, **options):
    odd = os.environ["RANK"] == os.environ["ODD"]
    return [bad("disk", "full", "empty it") if odd else fine("disk", "room")]

examination.examine = examine
app = typer.Typer()
doctor.add_to(app)
app()
"""


def start(odd, *words):
    """Two ranks of one node as a launcher would start them; their exit codes and what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, *words],
            env={
                **os.environ,
                **{"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
                **{"ODD": str(odd), "SLURMD_NODENAME": f"n{rank + 1}"},
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [one.communicate(timeout=120)[0] for one in running]
    return [one.returncode for one in running], said


@pytest.mark.slow  # processes that import torch
def test_what_one_rank_finds_stops_all():
    codes, (first, second) = start(odd=1)
    assert codes == [1, 1]
    assert second == "n2: BAD  disk: full; cure: empty it\n"
    assert "n1: ok   disk: room\n" in first
    assert "n1: ok   ranks meet: 2 ranks at 127.0.0.1:" in first
    assert "all-reduce: 2 ranks, gloo: " in first
    assert "n1: ok   same on all ranks: config, seed, torch" in first
    assert "BAD" not in first


@pytest.mark.slow  # processes that import torch
def test_healthy_ranks_and_json():
    import json

    codes, (first, second) = start(7, "--json")
    assert codes == [0, 0]
    assert second == ""
    found = json.loads(first)
    assert {(one["rank"], one["node"]) for one in found} == {(0, "n1"), (1, "n2")}
    assert [one["found"] for one in found if one["name"] == "disk"] == ["room", "room"]
    assert all(one["severity"] == "bad" for one in found if one["ok"])


SEEN = {"between": [False, False], "at_boundary": [True, True], "logits": True}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"between": [False, True]}, "the weights change between two micro-batches"),
        ({"at_boundary": [True, False]}, "1 optimizer steps where 2 were to be"),
        ({"at_boundary": [True]}, "1 optimizer steps where 2 were to be"),
        ({"logits": False}, "does not change the logits"),
    ],
)
def test_what_steps_come_to(change, words):
    check = engine_steps.judge({**SEEN, **change}, "torch")
    assert check.stops == bool(words)
    assert words in check.found


def test_real_steps_of_a_tiny_model(tmp_path):
    assert engine_steps.observe(None, str(tmp_path)) == SEEN


def test_an_engine_that_steps_at_every_backward_pass_is_seen(tmp_path, monkeypatch):
    from debias.engines.hf_trainer import DebiasTrainer

    combine = DebiasTrainer.training_step

    def early(self, model, *arguments):
        loss = combine(self, model, *arguments)
        if not self.accelerator.sync_gradients:
            for parameter in model.parameters():
                parameter.data += 0.01 * parameter.requires_grad
        return loss

    monkeypatch.setattr(DebiasTrainer, "training_step", early)
    seen = engine_steps.observe(None, str(tmp_path))
    assert seen["between"] == [True, True]


def test_an_adapter_that_is_not_used_is_seen(tmp_path, monkeypatch):
    from debias.engines.hf_trainer import DebiasTrainer

    predict = DebiasTrainer.predict

    def without(self, rows):
        with self.model.disable_adapter():
            return predict(self, rows)

    monkeypatch.setattr(DebiasTrainer, "predict", without)
    assert engine_steps.observe(None, str(tmp_path)) == {**SEEN, "logits": False}


def test_steps_that_never_end(monkeypatch):
    monkeypatch.setattr(engine_steps, "PATIENCE", 0.01)
    started = time.time()
    check = engine_steps.watched()
    assert check.stops
    assert "no end within" in check.found
    assert time.time() - started < 10
