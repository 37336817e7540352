"""When a run has learned enough, and a run that stops there."""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import save_bert, settings_for
from transformers import TrainerControl, TrainerState, TrainingArguments

from debias.config.run import RunConfig
from debias.runs.learned import StopWhenLearned, label_entropy, learned_at
from debias.runs.names import ADAPTER, SUMMARY
from debias.train import train

GENERATED = {"source": "generated", "limit": 120}
CUE = {"cue": "!!", "prevalence": 0.3, "strength": 1.0}


def test_the_entropy_of_labels() -> None:
    assert label_entropy([0, 1, 0, 1]) == pytest.approx(math.log(2))
    assert label_entropy(np.array([2, 2, 0])) == pytest.approx(-(2 / 3) * math.log(2 / 3) - math.log(1 / 3) / 3)
    assert label_entropy([1, 1]) == label_entropy([]) == 0.0


def stopped_at(losses: list[float], share: float = 0.5, entropy: float = 1.0) -> int | None:
    """The number of logs after which a run with these losses stops."""
    callback, state, arguments = StopWhenLearned(share, entropy), TrainerState(), TrainingArguments("unused")
    for number, loss in enumerate(losses, 1):
        state.global_step = 10 * number
        state.log_history.extend([{"loss": loss}, {"eval_loss": 0.0}])
        control = TrainerControl()
        callback.on_log(arguments, state, control)
        assert control.should_training_stop == (callback.at == 10 * number)
    at = learned_at([callback])
    return None if at is None else at // 10


def test_two_logs_say_it_together() -> None:
    assert stopped_at([1.0, 0.9, 0.6, 0.4, 0.1]) == 4
    assert stopped_at([0.1]) is None
    assert stopped_at([1.0, 0.2, 0.9, 0.9]) is None
    assert stopped_at([1.0, 0.2, 0.8]) == 3  # exactly half
    assert stopped_at([math.nan, 0.1, 0.1]) == 3
    assert stopped_at([0.7, 0.7, 0.7], share=0.31) is None
    assert stopped_at([0.0, 0.0], entropy=0.0) == 2  # one label alone: nothing is to be learned
    assert learned_at([]) is None


@pytest.mark.parametrize("share", [0, 1, -0.1, math.nan])
def test_a_share_that_is_none(share: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop_when_learned"):
        RunConfig.model_validate({**settings_for(tmp_path, tmp_path / "run"), "stop_when_learned": share})


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "focal"},
        {"loss": {"name": "cross_entropy", "class_weights": "balanced"}},
        {"head": "causal_lm", "loss_mean": "tokens"},
    ],
    ids=str,
)
def test_a_loss_that_cannot_be_held_against_the_labels(changes: dict[str, Any], tmp_path: Path) -> None:
    prompt = {"template": "{premise} {hypothesis}", "verbalizers": {"entailment": " a", "neutral": " b"}}
    prompt["verbalizers"] |= {"contradiction": " c"}  # type: ignore[operator]
    asked = {"prompt": prompt} if "head" in changes else {}
    settings = {**settings_for(tmp_path, tmp_path / "run"), **asked, **changes}
    RunConfig.model_validate(settings)
    with pytest.raises(ValueError, match=r"stop_when_learned holds the loss against .* so it needs loss"):
        RunConfig.model_validate({**settings, "stop_when_learned": 0.2})


def test_where_steps_say_when_the_last_one_is_validated_and_saved() -> None:
    for when in ("steps", "epoch", "no"):
        callback, state, control = StopWhenLearned(0.5, 1.0), TrainerState(), TrainerControl()
        state.log_history.extend([{"loss": 0.1}, {"loss": 0.1}])
        arguments = TrainingArguments("unused", eval_strategy=when, eval_steps=50, save_strategy=when)
        callback.on_log(arguments, state, control)
        assert control.should_training_stop
        assert (control.should_evaluate, control.should_save) == ((when == "steps"),) * 2


@pytest.mark.slow
def test_a_run_stops_is_finished_and_stays_as_it_is(tmp_path: Path) -> None:
    settings = settings_for(save_bert(tmp_path / "bert"), tmp_path / "run") | {
        **{"max_steps": 400, "learning_rate": 0.005, "logging_steps": 2, "stop_when_learned": 0.1, "method": "erm"},
        **{"eval_strategy": "steps", "eval_steps": 400, "save_strategy": "steps", "save_steps": 400},
        "selection": "validation",
        "data": {"train": GENERATED, "validation": {**GENERATED, "limit": 12, "seed": 1}, "planted_bias": CUE},
    }
    run = train(settings)
    told = json.loads((run / SUMMARY).read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    last = max(line["step"] for line in lines if "loss" in line)
    bar = 0.9 * math.log(3)
    assert told["status"] == "finished"
    assert told["steps"] == told["learned_at"] == told["selected_step"] == last < 400
    assert sum(losses[-2:]) / 2 <= bar * 1.001
    assert all(sum(pair) / 2 > bar * 0.999 for pair in itertools.pairwise(losses[:-1]))
    before = (run / SUMMARY).stat().st_mtime_ns
    assert train({**settings, "resume": True}) == run
    assert (run / SUMMARY).stat().st_mtime_ns == before
    # Killed after its last checkpoint, before what was trained was saved.
    shutil.rmtree(run / ADAPTER)
    (run / SUMMARY).write_text(json.dumps({**told, "status": "interrupted"}))
    train({**settings, "resume": True})
    again = json.loads((run / SUMMARY).read_text())
    assert [again[key] for key in ("status", "steps", "learned_at")] == ["finished", last, last]
    assert (run / ADAPTER).is_dir()
