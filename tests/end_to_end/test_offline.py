"""What `debias fetch` brought is enough: a run and its judgement where no connection can be made."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_runs
from fake_hub import fake_hub

from debias.config.reading import read_yaml
from debias.data import generate

pytestmark = pytest.mark.slow  # three processes that import everything

# Loaded by every Python process that has its folder on PYTHONPATH: connections to other machines are written down and
# refused, questions for their addresses too. A library may swallow the error; the file remembers.
GUARD = """
import os, socket

LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", None, socket.gethostname())

def refuse(what):
    with open(os.environ["GUARD_FILE"], "a") as file:
        file.write(f"{what}\\n")
    raise OSError(101, f"the guard refuses {what}")

def guarded(name):
    original = getattr(socket.socket, name)
    def connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
            refuse(address)
        return original(self, address)
    return connect

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, guarded(name))

look_up = socket.getaddrinfo
def getaddrinfo(host, *arguments, **options):
    if (host.decode() if isinstance(host, bytes) else host) not in LOOPBACK:
        refuse(host)
    return look_up(host, *arguments, **options)
socket.getaddrinfo = getaddrinfo
"""
TRAIN_JUDGE_AND_DIAGNOSE = """
import sys
from debias.cli import app as cli

OTHERS = ["run.yaml", "model=tiny/other", "data.train=tiny/none"]  # of which nothing was fetched
for words in (["train", "run.yaml"], ["eval", "run", "--suite", "suite.yaml"], ["doctor", *OTHERS, "--json"]):
    sys.argv = ["debias", *words]
    sys.stdout = open(words[0], "w")
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code and words[0] != "doctor":
            raise
        sys.stdout.write(f"{stop.code}\\n")
    sys.stdout.close()
"""
CONFIG = """
model: tiny/bert
data: {train: tiny/pairs, validation: {source: tiny/pairs, split: validation}}
output_dir: run
eval_strategy: epoch
max_length: 48
lora_r: 4
max_steps: 2
per_device_train_batch_size: 8
"""
SUITE = """
name: held_out
version: 1
description: Pairs of the hub's third split.
licence: none
task: nli
hub: {source: tiny/pairs, split: test}
"""


class Machine(NamedTuple):
    """A folder with a run's files, its own caches, and a guard before the network."""

    folder: Path

    def run(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        own = {
            "HF_HOME": str(self.folder / "cache"),
            "PYTHONPATH": str(self.folder / "guard"),
            "GUARD_FILE": str(self.folder / "refused"),
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env={**kept, **own, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def refused(self) -> str:
        """The connections that were tried."""
        file = self.folder / "refused"
        return file.read_text() if file.exists() else ""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("machine")
    (folder / "guard").mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    (folder / "run.yaml").write_text(CONFIG)
    (folder / "suite.yaml").write_text(SUITE)
    pairs = folder / "hub" / "pairs"
    pairs.mkdir(parents=True)
    for split, seed in (("train", 0), ("validation", 1), ("test", 2)):
        rows = generate("train", 48, seed)
        (pairs / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with fake_hub(
        models__tiny__bert=tiny_runs.save_bert(folder / "hub" / "bert"), datasets__tiny__pairs=pairs
    ) as server:
        here = Machine(folder)
        fetched = here.run(
            "-m", "debias.cli", "fetch", "run.yaml", "--suite", "suite.yaml", "--json", HF_ENDPOINT=server.url
        )
    assert fetched.returncode == 0, fetched.stderr
    states = [(item["kind"], item["name"], item["state"]) for item in json.loads(fetched.stdout)]
    assert states[:2] == [("model", "tiny/bert", "fetched"), ("data", "tiny/pairs", "fetched")]
    assert len(states) == 4  # train, validation and the suite's own split
    (folder / "refused").unlink(missing_ok=True)  # what `datasets` asks beside the hub
    return here


@pytest.fixture(scope="module")
def offline(machine: Machine) -> Machine:
    """After a process there that trained, judged and asked the doctor about what was not fetched, all offline."""
    done = machine.run("-c", TRAIN_JUDGE_AND_DIAGNOSE, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert machine.refused() == ""
    return machine


def test_after_fetch_a_run_and_its_judgement_touch_no_network(offline: Machine) -> None:
    assert read_yaml(offline.folder / "run" / "run.json")["status"] == "finished"
    assert (offline.folder / "run" / "adapter" / "adapter_model.safetensors").is_file()
    judged = read_yaml(offline.folder / "run" / "eval" / "held_out.json")
    assert (judged["n"], judged["suite"]) == (48, "held_out")


def test_offline_without_fetch_the_doctor_says_so(offline: Machine) -> None:
    told, _, code = (offline.folder / "doctor").read_text().strip().rpartition("\n")
    found = {check["name"]: check for check in json.loads(told)}
    assert code == "1"
    for name, what in (("model", "tiny/other"), ("dataset", "tiny/none")):
        assert found[name]["found"] == f"{what} is not in the cache, and HF_HUB_OFFLINE is set"
        assert "debias fetch" in found[name]["cure"]
    assert found["validation data"]["ok"]


def test_the_guard_sees_what_would_be_asked(offline: Machine) -> None:
    """And without a network, fetch says in one line which id it wanted, and from where."""
    done = offline.run("-m", "debias.cli", "fetch", "run.yaml", "model=tiny/other")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: model 'tiny/other': huggingface.co does not answer")
    assert "huggingface.co" in offline.refused()
