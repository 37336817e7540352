"""Runs of a sweep that ask one bias model: the second takes the first one's answers, and the adapter is the same."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import adapter_of, largest_difference, save_bert, settings_for

from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.runs.summary import kept_bias_spent, read_summary
from debias.sweep.grid import PlannedRun, plan_sweep
from debias.sweep.sharing import take_over
from debias.train import train

DATA = {
    "train": {"source": "generated", "limit": 96},
    "validation": {"source": "generated", "limit": 60, "split": "validation"},
    "planted_bias": {"cue": "!!", "prevalence": 0.5, "strength": 0.6},
}
FIRST = {"name": "first_learned", "steps": 3, "learning_rate": 1e-2, "lora_r": 2}
TAUS = (("loss.tau=1",), ("loss.tau=0.5",))


def planned(folder: Path, out: str, **bias_model: Any) -> list[PlannedRun]:
    settings = settings_for(folder / "bert", folder / "x", data=DATA, per_device_train_batch_size=12, max_steps=2)
    settings |= {"bias_model": {**FIRST, **bias_model}, "loss": {"name": "logit_correction"}, "method": "erm"}
    settings |= {"eval_strategy": "epoch"}
    (folder / "bed.yaml").write_text(yaml.safe_dump(settings))
    return plan_sweep([folder / "bed.yaml"], [0], TAUS, folder / out)


def made(run: PlannedRun) -> Path:
    return train(load_config(run.recipe, [*run.overrides, f"output_dir={run.folder}"]), run.recipe.parent)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    save_bert(folder / "bert")
    return folder


def test_the_second_run_asks_nobody_and_is_the_same(place: Path) -> None:
    first, second = planned(place, "shared")
    _, alone = planned(place, "alone")
    made(first)
    take_over([first, second], second)
    made(second)
    made(alone)
    assert (alone.folder / "stages").is_dir()
    assert not (second.folder / "stages").exists()
    assert largest_difference(adapter_of(second.folder), adapter_of(alone.folder)) == 0
    assert read_summary(second.folder)["pseudo_groups"] == read_summary(alone.folder)["pseudo_groups"]
    spent = kept_bias_spent(first.folder)
    assert spent == kept_bias_spent(second.folder)
    assert spent.cpu_seconds > 0
    # 2 runs of 3 steps of 12, as the folders of the first say.
    assert read_summary(second.folder)["examples_before"] == 2 * 3 * 12
    assert "examples_before" not in read_summary(first.folder)
    assert read_summary(second.folder)["cpu_seconds"] > spent.cpu_seconds
    # Gone on with, what asking took counts no second time.
    before = read_summary(second.folder)["seconds"]
    going_on = [*second.overrides, f"output_dir={second.folder}", "resume=true", "max_steps=3"]
    train(load_config(second.recipe, going_on), second.recipe.parent)
    assert before < read_summary(second.folder)["seconds"] < before + spent.seconds + 60


def test_answers_to_another_question_are_not_taken(place: Path) -> None:
    """Whatever lies there: the digest decides, and what the answers took is not the run's."""
    first, _ = planned(place, "one")
    made(first)
    _, second = planned(place, "other", steps=2)
    shutil.copytree(first.folder / "bias", second.folder / "bias")
    (second.folder / "bias" / "spent.json").write_text('{"seconds": 5000, "cpu_seconds": 5000}')
    made(second)
    assert (second.folder / "stages").is_dir()
    assert read_summary(second.folder)["seconds"] < 5000
    assert kept_bias_spent(second.folder).seconds < 5000


def test_answers_of_a_run_that_is_replaced_count_in_the_run_that_takes_them(place: Path) -> None:
    changes = {"data": DATA, "per_device_train_batch_size": 12, "max_steps": 2, "overwrite_output_dir": True}
    asks = {"bias_model": {"name": "groups", "folds": 2}, "loss": "logit_correction", "method": "erm"}
    run = RunConfig.model_validate(settings_for(place / "bert", place / "replaced", **changes, **asks))
    spent = train(run) / "bias" / "spent.json"
    spent.write_text('{"seconds": 5000, "cpu_seconds": 4000}')
    for _ in range(2):  # once, and not twice
        told = read_summary(train(run))
        assert 5000 < told["seconds"] < 6000
        assert 4000 < told["cpu_seconds"] < 5000
