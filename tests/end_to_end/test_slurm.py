"""Jobs of `debias launch slurm` on a real Slurm of two nodes on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster
import tiny_runs
from slurm_cluster import wait_for

from debias.config.reading import dump_config, read_yaml

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing())]
STEPS = 40
TOLERANCE = 1e-6


class Cluster:
    """A cluster with a tiny model and its config; the words of Slurm's commands in, what they print out."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.model = tiny_runs.save_bert(folder / "models" / "bert")

    def says(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout + ("" if check else done.stderr)

    def config(self, name: str, **changes) -> Path:
        """A config whose steps see 8 samples on two ranks."""
        settings = {"max_steps": STEPS, "per_device_train_batch_size": 4, "deepspeed": "zero3"}
        settings |= {"save_strategy": "steps", "save_steps": 5}
        config = tiny_runs.config_for(self.model, self.folder / "runs" / name, **(settings | changes))
        path = self.folder / f"{name}.yaml"
        path.write_text(dump_config(config))
        return path

    def launch(self, config: Path, *words: str, doctor: bool = False) -> str:
        """Submit; the job's number. One test lets the doctor look first, as users do."""
        options = [*([] if doctor else ["--no-doctor"]), "--time", "20", "--submit", *words]
        said = self.says(sys.executable, "-m", "debias.cli", "launch", "slurm", str(config), *options)
        return said.rpartition("submitted: ")[2].strip()

    def state(self, job: str) -> str:
        words = self.says("scontrol", "show", "job", "-o", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith("JobState="))

    def wait(self, job: str, state: str = "COMPLETED", seconds: float = 240) -> None:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

        def done() -> bool:
            seen = self.state(job)
            assert seen == state or seen not in ended, f"job {job} is {seen}\n{self.output()}"
            return seen == state

        wait_for(done, seconds, f"job {job} is not {state}\n{self.output()}")

    def output(self, characters: int = 3000) -> str:
        files = sorted(self.folder.glob("jobs/*/slurm-*.out"), key=lambda path: path.stat().st_mtime)
        return files[-1].read_text()[-characters:] if files else ""

    def steps(self, name: str) -> int:
        file = self.folder / "runs" / name / "metrics.jsonl"
        return file.read_text().count("\n") if file.is_file() else 0

    def status(self, name: str) -> str:
        return str(read_yaml(self.folder / "runs" / name / "run.json")["status"])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o755)  # pytest's folders are its user's own; munged wants none that others can write to
    with slurm_cluster.cluster(folder / "cluster") as environment:
        yield Cluster(folder, environment)


@pytest.fixture(scope="module")
def alone(slurm: Cluster) -> dict[str, object]:
    """The adapter of the same run in one process: no Slurm, no DeepSpeed."""
    from debias.train import train

    settings = {"max_steps": STEPS, "per_device_train_batch_size": 8}
    return tiny_runs.adapter_of(train(tiny_runs.config_for(slurm.model, slurm.folder / "runs" / "alone", **settings)))


@pytest.fixture
def same_as_alone(slurm: Cluster, alone: dict[str, object]) -> Callable[[str], float]:
    return lambda name: tiny_runs.largest_difference(tiny_runs.adapter_of(slurm.folder / "runs" / name), alone)


def test_a_signal_puts_the_run_back_into_the_queue_and_it_ends_the_same(slurm, same_as_alone):
    job = slurm.launch(slurm.config("signal"), "--nodes", "2")
    wait_for(lambda: slurm.steps("signal") > 2, 300, slurm.output())
    slurm.says("scancel", "--signal=TERM", job)
    slurm.wait(job, "PENDING")
    assert slurm.status("signal") == "interrupted"
    assert 2 < slurm.steps("signal") < STEPS
    time.sleep(
        5
    )  # Slurm takes no credential of the second in which the job was requeued; of itself it waits two minutes
    slurm.says("scontrol", "update", f"JobId={job}", "StartTime=now")
    slurm.wait(job)
    assert slurm.status("signal") == "finished"
    assert "back to the queue" in slurm.output(100_000)
    assert same_as_alone("signal") < TOLERANCE


def test_a_cancelled_job_does_not_come_back(slurm):
    job = slurm.launch(slurm.config("cancelled"), "--nodes", "1", "--ranks-per-node", "1")
    wait_for(lambda: slurm.steps("cancelled") > 1, 300, slurm.output())
    slurm.says("scancel", job)
    slurm.wait(job, "CANCELLED")
    wait_for(
        lambda: not slurm.says("squeue", "-h", "-j", job, check=False).strip("\n ").startswith(job), 300, "still there"
    )
    assert slurm.state(job) == "CANCELLED"


def test_a_dead_node_is_reported_and_one_node_goes_on(slurm, same_as_alone):
    job = slurm.launch(slurm.config("dead"), "--nodes", "2", "--name", "dead", doctor=True)
    wait_for(lambda: slurm.steps("dead") > 6, 600, slurm.output())  # the doctor starts a dozen processes before
    assert "ok   all-reduce: 2 ranks" in slurm.output(100_000)
    for process in _processes_of("n2", job):
        os.kill(process, signal.SIGKILL)
    slurm.wait(job, "FAILED", 200)
    assert "training failed with exit code" in slurm.output()
    assert 6 < slurm.steps("dead") < STEPS
    again = slurm.launch(slurm.config("dead"), "--nodes", "1", "--global-batch", "8", "--name", "dead-again")
    slurm.wait(again)
    assert same_as_alone("dead") < TOLERANCE


def _processes_of(node: str, job: str) -> list[int]:
    """All that a job's steps run on a node: Slurm's own step manager and what it started."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            environment = (place / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SLURMD_NODENAME={node}".encode() in environment and f"SLURM_JOB_ID={job}".encode() in environment:
            found.append(int(place.name))
    managers = {int((Path("/proc") / str(one) / "stat").read_text().rpartition(")")[2].split()[1]) for one in found}
    named = [one for one in managers if (Path("/proc") / str(one) / "cmdline").read_bytes().startswith(b"slurmstepd")]
    assert found, f"no process of job {job} on {node}"
    assert named, f"no slurmstepd among the parents of {found}"
    return [*named, *found]


def test_an_array_of_seeds_is_one_report(slurm, debias):
    config = slurm.config("array", max_steps=3, deepspeed=None, save_strategy="no")
    job = slurm.launch(config, "--array-seeds", "2", "--name", "array")
    wait_for(lambda: not slurm.says("squeue", "-h", "-j", job, check=False).strip(), 240, slurm.output())
    runs = slurm.folder / "runs" / "array"
    assert sorted(run.name for run in runs.iterdir()) == ["seed0", "seed1"]
    assert {read_yaml(run / "run.json")["status"] for run in runs.iterdir()} == {"finished"}
    for run in runs.iterdir():
        assert debias("eval", run, "--suite", "generated", "--limit", 20).code == 0
    assert debias("report", runs, "-o", slurm.folder / "page.html").code == 0
    assert "2 seeds" in (slurm.folder / "page.html").read_text()


def test_plain_srun_starts_ranks(slurm, same_as_alone):
    slurm.says(
        "srun",
        "--nodes=2",
        "--ntasks-per-node=1",
        sys.executable,
        "-m",
        "debias.cli",
        "train",
        str(slurm.config("srun")),
    )
    assert same_as_alone("srun") < TOLERANCE


def test_a_partition_that_is_not_there(slurm):
    config = slurm.config("partition")
    words = [sys.executable, "-m", "debias.cli", "launch", "slurm", str(config), "--partition", "gpu", "--submit"]
    said = slurm.says(*words, check=False)
    assert "error: Slurm refused the job, nothing was submitted: sbatch: error:" in said
    assert "partition" in said.partition("sbatch: error:")[2]
    assert len([line for line in said.splitlines() if line.startswith("error:")]) == 1
