"""The same command line under others' launchers: two ranks that end with the adapter of one process.

Of `debias launch local` see `test_journeys.py`, where it is stopped and gone on with.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_runs

from debias.config.reading import dump_config

pytestmark = pytest.mark.slow
BIN = Path(sys.executable).parent
# With --cpu it would start one process without a word, whatever --num_processes says (or want mpirun).
MULTI = ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29618"]
# torchrun itself starts the ranks of rank_pool.py, which train as one process does in many a test.
LAUNCHERS = {
    "accelerate": [str(BIN / "accelerate"), "launch", *MULTI, "--num_processes", "2", "--num_machines", "1"],
    # Without pdsh and GPUs: its own way to start processes of this machine.
    "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", "29617"],
}
MODULE = {"accelerate": ["-m", "debias.cli", "train"], "deepspeed": ["--module", "debias.cli", "train"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_runs.save_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    from debias.train import train

    return tiny_runs.adapter_of(train(tiny_runs.config_for(model, tmp_path_factory.mktemp("runs") / "alone")))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_of_any_launcher_are_one_process(launcher, model, alone, tmp_path):
    if not shutil.which(LAUNCHERS[launcher][0]):
        pytest.skip(f"needs {launcher}")
    run = tmp_path / "a run"
    (tmp_path / "run.yaml").write_text(dump_config(tiny_runs.config_for(model, run, per_device_train_batch_size=4)))
    words = [*LAUNCHERS[launcher], *MODULE[launcher], str(tmp_path / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert tiny_runs.largest_difference(tiny_runs.adapter_of(run), alone) < 1e-6


def test_the_reason_of_a_failure_is_the_last_word(model, tmp_path):
    """One rank's error, on one line; no traceback of the launcher over it."""
    config = tiny_runs.config_for(model, tmp_path / "run", per_device_train_batch_size=4, max_length=60_000)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    words = [sys.executable, "-m", "debias.cli", "launch", "local", str(tmp_path / "run.yaml"), "--nproc", "1"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    end = done.stderr[done.stderr.index("failed first") :]
    assert "\n  error: max_length is 60000" in end
    assert "Traceback" not in end
