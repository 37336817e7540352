"""`eval_loss` is the mean over the validation samples, where the last batch is short and ranks are filled up."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import save_bert, settings_for
from train_many import on_ranks

from debias.config.reading import load_config
from debias.config.run import RunConfig
from debias.data import load_examples
from debias.inference.loading import load_run
from debias.train import train

ROWS, BATCH = 29, 8  # the last batch has five; of two ranks one has three more than there are


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    save_bert(folder / "bert")
    return folder


def settings(place: Path, name: str, world: int, **changes: Any) -> dict[str, Any]:
    data = {
        "train": {"source": "generated", "limit": 48},
        "validation": {"source": "generated", "split": "validation", "limit": ROWS},
    }
    sizes = {"per_device_train_batch_size": 12 // world, "per_device_eval_batch_size": BATCH}
    kept = {"data": data, "eval_strategy": "epoch", "max_steps": 4, "learning_rate": 0.1}
    return settings_for(place / "bert", place / name, **{**sizes, **kept, **changes})


def told(run: Path) -> float:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(float(line["eval_loss"]) for line in lines if "eval_loss" in line)


def expected(run: Path) -> float:
    """By the predictor, one row after another."""
    config = load_config(run / "config.yaml")
    assert config.data.validation is not None
    examples = load_examples(config.data.validation, config.data)
    assert len(examples) == ROWS
    predictor = load_run(run)
    losses = [-predictor.label_scores([one])[0][one.label] for one in examples]
    return float(sum(losses) / ROWS)


def test_a_short_last_batch_counts_as_the_samples_that_it_has(place: Path) -> None:
    run = train(RunConfig.model_validate(settings(place, "alone", 1)))
    assert told(run) == pytest.approx(expected(run), rel=1e-5)


@pytest.mark.slow
def test_two_ranks_say_what_one_process_says(place: Path) -> None:
    on_ranks(2, [settings(place, "two", 2)])
    assert told(place / "two") == pytest.approx(expected(place / "two"), rel=1e-5)
