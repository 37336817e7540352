"""Ranks that another launcher than torchrun started, and what is said when one fails."""

import json
import os
import signal
import subprocess
import sys

import pytest
from command_line import command_line

from debias.errors import InputError, Interrupted
from debias.launching import local
from debias.ranks import failures as ranks
from debias.ranks.world import adopt_slurm, check, leave, ranks_here, without_local_rank

STEP = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_JOB_ID": "20001",
    "SLURM_STEP_ID": "2",
}
ODD = ("", " ", "two", "2.5", "0", "-1", "2(x3)")  # what counts as not said


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    path = tmp_path / "scontrol"
    path.write_text(
        '#!/bin/sh\ncase "$2 $3" in "hostnames n[1-2]") echo n1; echo n2;;'
        ' "node n1") echo "X=1 NodeAddr=10.1.1.1 Y=2";; esac\n'
    )
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("known", "here"),
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "2"}, 2),
        ({"SLURM_STEP_NUM_NODES": "4"}, 2),
        ({"SLURM_STEP_NUM_NODES": "3"}, 3),
        ({"LOCAL_SIZE": "4"}, 4),
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "4", "SLURM_STEP_NUM_NODES": "8"}, 2),
        *(({"LOCAL_WORLD_SIZE": odd, "LOCAL_SIZE": odd, "SLURM_STEP_NUM_NODES": odd}, 8) for odd in ODD),
        *(({"LOCAL_WORLD_SIZE": odd, "LOCAL_SIZE": "4"}, 4) for odd in ODD),
        *(({"LOCAL_WORLD_SIZE": odd, "SLURM_STEP_NUM_NODES": "4"}, 2) for odd in ODD),
    ],
)
def test_how_many_ranks_are_here(known, here, monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    assert ranks_here(8) == here


def test_tasks_of_srun_are_ranks(scontrol):
    environment = dict(STEP)
    adopt_slurm(environment)
    assert {key: value for key, value in environment.items() if key not in STEP} == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "10.1.1.1",
        "MASTER_PORT": str(20000 + (20001 * 7 + 2) % 12000),
    }


@pytest.mark.parametrize(
    "change", [{"RANK": "0"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_NUM_TASKS": ""}, {"SLURM_PROCID": None}]
)
def test_others_are_left_alone(change):
    before = {key: value for key, value in (STEP | change).items() if value is not None}
    after = dict(before)
    adopt_slurm(after)
    assert after == before


@pytest.mark.parametrize("odd", ODD)
def test_a_job_without_a_number(scontrol, odd):
    environment = STEP | {"SLURM_JOB_ID": odd, "SLURM_STEP_ID": odd}
    adopt_slurm(environment)
    assert environment["MASTER_PORT"] == "20000"


def test_slurm_that_cannot_be_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    environment = STEP | {"SLURM_STEP_NODELIST": "node7"}
    adopt_slurm(environment)
    assert environment["MASTER_ADDR"] == "node7"


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment, expected a whole number from 1 on"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1' in the environment, expected a whole number from 0 on"),
        ({"LOCAL_RANK": "a"}, "LOCAL_RANK is 'a'"),
        ({"RANK": "1"}, "RANK is 1 in the environment where WORLD_SIZE is 1"),  # it would write and say nothing
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 in the environment where WORLD_SIZE is 2"),
    ],
)
def test_words_of_a_launcher_that_are_none(environment, says, monkeypatch, capsys):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert says in command_line(monkeypatch, capsys)("methods").error
    check({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"})
    check({"LOCAL_RANK": "-1"})
    check({})


@pytest.mark.parametrize("flag", ["--local_rank=5", "--local-rank=5"])
def test_the_argument_of_the_deepspeed_launcher(flag):
    environment = {}
    assert without_local_rank(["train", flag, "x.yaml", "--local_rank=a"], environment) == [
        "train",
        "x.yaml",
        "--local_rank=a",
    ]
    assert environment == {"LOCAL_RANK": "5"}


FAILS = """
import os, sys, time
from debias.errors import InputError
from debias.ranks.failures import record
kind, rank = sys.argv[1], os.environ["RANK"]
if rank == "0":
    # until torchrun ends it; ranks that stop together are never at the same place
    time.sleep(0 if kind == "together" else 100)
    sys.exit(75)
if kind in ("together", "one behind"):
    sys.exit(75)
if kind == "killed":
    os.kill(os.getpid(), 9)
if kind == "silent":
    sys.exit(4)
try:
    raise InputError("seed: -1, expected 0 or more") if kind == "input" else RuntimeError("a bug")
except Exception as error:
    record(error)
    raise SystemExit(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        ("input", 1, ["rank 1 failed first, it ended with exit code 2:", "  error: seed: -1, expected 0 or more"]),
        (
            "bug",
            1,
            [
                "rank 1 failed first, it ended with exit code 2:",
                "  Traceback (most recent call last):",
                "  RuntimeError: a bug",
            ],
        ),
        ("killed", 1, ["rank 1 failed first, it was killed by SIGKILL:"]),
        (
            "silent",
            1,
            ["rank 1 failed first, it ended with exit code 4:", "  it left no words; its log has what there is"],
        ),
        ("together", 75, []),
        ("one behind", 75, []),
    ],
)
def test_the_first_failure_is_said_by_itself(kind, code, said, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    words = [sys.executable, "-m", "debias.ranks.failures", "--standalone", "--nproc-per-node", "2", str(script), kind]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == code
    for line in said:
        assert line in done.stderr.splitlines()
    assert "torch/distributed/run.py" not in done.stderr


@pytest.mark.parametrize(
    ("codes", "early"),
    [
        ([75, 75], True),
        ([75, -15], True),
        ([-15, -15], False),
        ([75, 1], False),
        ([75, -9], False),
        ([75, 4, -15], False),
    ],
)
def test_only_ranks_that_saved_are_started_again(codes, early):
    assert ranks.all_stopped_early(codes) is early


@pytest.mark.parametrize(("number", "saved", "code"), [(15, True, 75), (15, False, None), (2, True, None)])
def test_a_signal_after_which_ranks_saved_is_a_stop(monkeypatch, tmp_path, number, saved, code):
    """torchrun says of a signal to itself no more than that; the ranks' words say whether they had saved."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    def run():
        if saved:
            monkeypatch.setenv(ranks.STOPPED, str(tmp_path))
            ranks.stopped()
        raise SignalException("stopped", sigval=signal.Signals(number))

    with pytest.raises(SignalException if code is None else SystemExit) as caught:
        ranks._run_ranks(run, tmp_path)
    assert code is None or caught.value.code == code


STOPS = """
import signal, sys, time
from debias.ranks.failures import stopped
def stop(number, frame):
    if sys.argv[1] == "saves":
        stopped()
        sys.exit(75)
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
print("here", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [("saves", 75), ("fails", 143)])
def test_sigterm_to_torchrun(tmp_path, kind, code):
    script = tmp_path / "stops.py"
    script.write_text(STOPS)
    words = [sys.executable, "-m", "debias.ranks.failures", "--standalone", "--nproc-per-node", "2", str(script), kind]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = [process.stdout.readline() for _ in range(2)]  # the ranks may write between each other's word and its end
    assert "".join(said).replace("\n", "") == "herehere"
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == code


def test_outside_of_torchrun_nothing_is_recorded(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    ranks.record(ValueError("x"))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    ranks.record(ValueError("x"))
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "ValueError: x"


def test_the_local_command(tmp_path):
    words = local.command(tmp_path / "a b.yaml", ["seed=1"], 2, tmp_path / "logs")
    assert words[:3] == [sys.executable, "-m", "debias.ranks.failures"]
    assert words[-5:] == ["-m", "debias.cli", "train", str(tmp_path / "a b.yaml"), "seed=1"]
    assert str(tmp_path / "logs") in words
    assert "--log-dir" not in local.command(tmp_path / "a.yaml", [], 2, None)
    assert local.logs_of(str(tmp_path / "run")).parent == tmp_path / "run.logs"


@pytest.mark.parametrize(("end", "left"), [(SystemExit(0), True), (SystemExit(None), True), (SystemExit(2), False),
                                          (Interrupted("stopped"), True), (InputError("wrong"), False)])  # fmt: skip
def test_a_process_group_does_not_outlive_its_python(end, left, monkeypatch):
    """gloo's threads abort a process at its end; where ranks failed, the others may still be in a collective."""
    import torch.distributed as dist

    from debias.cli import app as cli

    def run():
        raise end

    monkeypatch.setattr(cli, "_run", run)
    monkeypatch.setattr(cli, "_quiet", lambda: None)
    monkeypatch.setattr("sys.argv", ["debias"])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(SystemExit):
            cli.main()
        assert dist.is_initialized() is not left
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def test_leaving_without_a_group():
    leave()
