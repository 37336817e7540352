"""When a run has learned enough, and a run that stops there."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import save_bert, settings_for
from transformers import TrainerControl, TrainerState, TrainingArguments

from debias.config.run import RunConfig
from debias.runs.learned import StopWhenLearned, label_entropy, learned_at
from debias.runs.names import SUMMARY
from debias.train import train

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


@pytest.mark.slow
def test_a_run_stops_is_finished_and_stays_as_it_is(tmp_path: Path) -> None:
    settings = settings_for(save_bert(tmp_path / "bert"), tmp_path / "run") | {
        **{"max_steps": 400, "learning_rate": 0.005, "logging_steps": 2, "stop_when_learned": 0.1, "method": "erm"},
        **{"save_strategy": "no", "data": {"train": {"source": "generated", "limit": 120}, "planted_bias": CUE}},
    }
    run = train(settings)
    told = json.loads((run / SUMMARY).read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    last = max(line["step"] for line in lines if "loss" in line)
    bar = 0.9 * math.log(3)
    assert told["status"] == "finished"
    assert told["steps"] == told["learned_at"] == last < 400
    assert sum(losses[-2:]) / 2 <= bar * 1.001
    assert all(sum(pair) / 2 > bar * 0.999 for pair in itertools.pairwise(losses[:-1]))
    before = (run / SUMMARY).stat().st_mtime_ns
    assert train({**settings, "resume": True}) == run
    assert (run / SUMMARY).stat().st_mtime_ns == before
