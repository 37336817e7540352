"""A run that cannot fit is stopped before anything is loaded; with a GPU of a size made up for the test."""

import json

import pytest
from planned_runs import run_of
from tiny_models import family_config

from debias import train as training
from debias.cli import app as cli
from debias.config.reading import dump_config
from debias.errors import InputError
from debias.plan import guard, planner


@pytest.fixture
def run(tmp_path):
    family_config("qwen3", vocab_size=50_000).save_pretrained(tmp_path / "model")
    return run_of(str(tmp_path / "model"), output_dir=str(tmp_path / "out"))


def of_size(monkeypatch, size):
    monkeypatch.setattr(guard, "gpu_memory_here", lambda: size)


@pytest.mark.slow
def test_too_small_a_gpu_is_said_before_loading(run, monkeypatch):
    of_size(monkeypatch, 600 * 2**20)  # no more than CUDA itself takes
    monkeypatch.setattr(training, "build_run", lambda *pieces: pytest.fail("the model was built"))
    with pytest.raises(InputError, match=r"for a micro-batch of 1, and this GPU has 0\.6 GB; `debias plan`") as caught:
        training.train(run)
    assert "\n" not in str(caught.value)


def test_large_enough(run, monkeypatch):
    of_size(monkeypatch, 2 * 10**9)
    guard.refuse_what_cannot_fit(run)


@pytest.mark.parametrize("value", ["1", "yes"])
def test_the_user_may_go_on(run, monkeypatch, value):
    of_size(monkeypatch, 1)
    monkeypatch.setenv(guard.SKIP, value)
    guard.refuse_what_cannot_fit(run)


def test_zero_is_no(run, monkeypatch):
    of_size(monkeypatch, 1)
    monkeypatch.setenv(guard.SKIP, "0")
    with pytest.raises(InputError, match=guard.SKIP):
        guard.refuse_what_cannot_fit(run)


def test_without_a_gpu_a_small_model_is_not_planned(run, monkeypatch):
    of_size(monkeypatch, None)
    monkeypatch.setattr(guard, "Planner", lambda *a: pytest.fail("planned"))
    guard.refuse_what_cannot_fit(run)
    guard.refuse_what_cannot_fit(run.model_copy(update={"model": "nobody/nothing"}))


@pytest.mark.parametrize(("memory", "world", "fits"), [(10**7, 1, False), (10**9, 1, True), (6 * 10**7, 8, False)])
def test_without_a_gpu_the_machines_memory_counts(run, monkeypatch, memory, world, fits):
    of_size(monkeypatch, None)
    monkeypatch.setattr(guard, "host_memory_here", lambda: memory)
    with open(f"{run.model}/model.safetensors", "wb") as weights:
        weights.truncate(13 * 10**6)
    if fits:
        guard.refuse_what_cannot_fit(run, world)
        return
    with pytest.raises(
        InputError, match=r"for a micro-batch of 1, and this machine has for a process 0\.0 GB; `debias"
    ):
        guard.refuse_what_cannot_fit(run, world)


def test_ranks_of_other_machines_leave_this_ones_memory_alone(run, monkeypatch):
    of_size(monkeypatch, None)
    monkeypatch.setattr(guard, "host_memory_here", lambda: 6 * 10**7)
    seen = []
    monkeypatch.setattr(guard, "_needed", lambda run, machine: seen.append((machine.gpu_memory, machine.gpus)))
    with open(f"{run.model}/model.safetensors", "wb") as weights:
        weights.truncate(29 * 10**6)
    guard.refuse_what_cannot_fit(run, 8, 2)
    guard.refuse_what_cannot_fit(run, 8)
    assert seen == [(3 * 10**7, 8), (75 * 10**5, 8)]


@pytest.mark.slow
def test_a_plan_for_cpus(run, tmp_path, monkeypatch, capsys):
    """Less than the same on a GPU, which takes some itself; and the verdict is of the machine's memory."""
    monkeypatch.setattr(
        "debias.plan.search.LARGEST_MICRO_BATCH", 2
    )  # how many would fit is not asked here: a trace each
    config = tmp_path / "run.yaml"
    config.write_text(dump_config(run))
    monkeypatch.setattr(planner, "host_memory_here", lambda: 10**9)
    said = {}
    for words in (["--gpus", "0"], ["--gpu-memory", "2GB"]):
        monkeypatch.setattr("sys.argv", ["debias", "plan", str(config), "--json", *words])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        said[words[0]] = json.loads(capsys.readouterr().out)
    cpu, gpu = said["--gpus"], said["--gpu-memory"]
    assert (cpu["gpus"], cpu["gpu_memory"], cpu["fits"]) == (0, 10**9, True)
    assert cpu["total"] < gpu["total"]


def test_a_model_that_cannot_be_planned_is_left_to_the_run(run, monkeypatch):
    of_size(monkeypatch, 1)
    guard.refuse_what_cannot_fit(run.model_copy(update={"model": "nobody/nothing"}))
