"""TrainingArguments of a run do not depend on the runs that the process made before; what ranks see twice."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate.data_loader import BatchSamplerShard
from tiny_runs import config_for
from torch.utils.data import BatchSampler, SequentialSampler
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, is_deepspeed_zero3_enabled

from debias.building import arguments
from debias.building.arguments import USE_DEEPSPEED, training_arguments
from debias.building.repeats import RepeatsSaid

pytest.importorskip("deepspeed")


def test_a_plain_run_after_one_with_deepspeed_is_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(USE_DEEPSPEED, "true")  # as accelerate leaves it behind
    left = HfTrainerDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # as TrainingArguments leaves it behind
    assert is_deepspeed_zero3_enabled()
    made = training_arguments(config_for(tmp_path, tmp_path / "run"))
    assert made.deepspeed_plugin is None
    assert USE_DEEPSPEED not in os.environ
    assert left.is_zero3()
    assert not is_deepspeed_zero3_enabled()


def test_what_the_launcher_said_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "_ASKED_FOR_DEEPSPEED", "false")
    monkeypatch.setenv(USE_DEEPSPEED, "true")
    training_arguments(config_for(tmp_path, tmp_path / "run"))
    assert os.environ[USE_DEEPSPEED] == "false"


@pytest.mark.parametrize(
    ("rows", "size", "world", "missing"), [(10, 2, 2, 2), (12, 2, 2, 0), (10, 2, 1, 0), (1, 4, 3, 11)]
)
def test_samples_that_ranks_see_twice_are_counted(
    rows: int, size: int, world: int, missing: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As many as accelerate's split of the batches repeats."""
    batches = BatchSampler(SequentialSampler(range(rows)), size, drop_last=False)
    split = [BatchSamplerShard(batches, num_processes=world, process_index=rank) for rank in range(world)]
    seen = [index for part in split for batch in part for index in batch] if world > 1 else list(range(rows))
    assert len(seen) - rows == missing
    ranks = {"world_size": world, "per_device_train_batch_size": size}
    RepeatsSaid(lambda: rows).on_train_begin(SimpleNamespace(process_index=1, **ranks), None, None)
    assert caplog.text == ""
    RepeatsSaid(lambda: rows).on_train_begin(SimpleNamespace(process_index=0, **ranks), None, None)
    assert (f"sees {missing} of them a second time" in caplog.text) == (missing > 0)
    assert ("WARNING" in caplog.text) == (missing > 0)
