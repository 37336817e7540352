"""A run that cannot fit is stopped before anything is loaded; with a GPU of a size made up for the test."""

import pytest
from planned_runs import run_of
from tiny_models import family_config

from debias import train as training
from debias.errors import InputError
from debias.plan import guard


@pytest.fixture
def run(tmp_path):
    family_config("qwen3", vocab_size=50_000).save_pretrained(tmp_path / "model")
    return run_of(str(tmp_path / "model"), output_dir=str(tmp_path / "out"))


def of_size(monkeypatch, size):
    monkeypatch.setattr(guard, "gpu_memory_here", lambda: size)


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


def test_without_a_gpu_nothing_is_planned(run, monkeypatch):
    of_size(monkeypatch, None)
    monkeypatch.setattr(guard, "Planner", lambda *a: pytest.fail("planned"))
    guard.refuse_what_cannot_fit(run)


def test_a_model_that_cannot_be_planned_is_left_to_the_run(run, monkeypatch):
    of_size(monkeypatch, 1)
    guard.refuse_what_cannot_fit(run.model_copy(update={"model": "nobody/nothing"}))
