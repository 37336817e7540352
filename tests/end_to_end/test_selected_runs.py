"""`selection:` of a run: the checkpoint that is kept is the one its rule names, through resumes, moves and signals."""

import json
import shutil
import signal

import numpy as np
import pytest
from tiny_runs import adapter_of, config_for, largest_difference
from transformers import EvalPrediction

from debias.engines.hf_trainer import DebiasTrainer
from debias.errors import InputError, Interrupted
from debias.runs.selection import validation_figures
from debias.train import train

DATA = {
    "train": {"source": "generated", "limit": 64},
    "validation": {"source": "generated", "limit": 40, "split": "validation"},
}
EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def selecting(model, output, rule="validation", **changes):
    return config_for(model, output, **{"data": DATA, **EACH_STEP, "selection": rule, **changes})


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def evaluated(run, figure):
    return {line["step"]: line[figure] for line in lines(run) if figure in line}


def summary(run):
    return json.loads((run / "run.json").read_text())


def test_figures_by_hand():
    scores = np.array([[2, 1, 0], [0, 3, 1], [1, 0, 0], [0, 1, 5], [0, 1, 5], [9, 0, 0]], dtype=float)
    labels = np.array([0, 1, 1, 2, 2, 2])
    found = validation_figures(EvalPrediction(predictions=scores, label_ids=labels))
    assert found == {"accuracy": pytest.approx(4 / 6), "worst_class_accuracy": pytest.approx(1 / 2)}
    one = validation_figures(EvalPrediction(predictions=scores[:1], label_ids=labels[:1]))
    assert one["worst_class_accuracy"] == 1.0  # classes that do not occur are nobody's worst


@pytest.mark.parametrize("rule", ["validation", "worst_class"])
def test_the_best_checkpoint_is_what_the_run_keeps(bert, tmp_path, rule):
    """Against the same run that keeps every checkpoint."""
    chosen = train(selecting(bert, tmp_path / "chosen", rule, learning_rate=0.1, max_steps=8))
    every = train(selecting(bert, tmp_path / "every", "last", learning_rate=0.1, max_steps=8, save_total_limit=None))
    figure = {"validation": "eval_accuracy", "worst_class": "eval_worst_class_accuracy"}[rule]
    values = evaluated(every, figure)
    assert values == evaluated(chosen, figure)
    best = min(step for step in values if values[step] == max(values.values()))
    assert best < 8, "this seed would not tell the best from the last"
    found = summary(chosen)
    assert (found["selection"], found["selected_step"]) == (rule, best)
    assert found[f"selected_{figure}"] == values[best]
    assert summary(every)["selection"] == "last"
    kept = adapter_of(chosen)
    of_step = {step: adapter_of_checkpoint(every, step) for step in values}
    assert largest_difference(kept, of_step[best]) == 0.0
    assert largest_difference(kept, of_step[8]) > 0.0


def adapter_of_checkpoint(run, step):
    from safetensors.torch import load_file

    return load_file(run / f"checkpoint-{step}" / "adapter_model.safetensors")


def test_a_resumed_run_that_was_moved_keeps_the_best_of_all(bert, tmp_path):
    settings = {"learning_rate": 0.1, "lr_scheduler_type": "constant"}
    whole = train(selecting(bert, tmp_path / "whole", max_steps=8, **settings))
    best = summary(whole)["selected_step"]
    first = train(selecting(bert, tmp_path / "first", max_steps=best + 1, save_total_limit=None, **settings))
    shutil.rmtree(first / "adapter")
    moved = tmp_path / "moved"
    shutil.move(first, moved)
    train(selecting(bert, moved, max_steps=8, save_total_limit=None, resume=True, **settings))
    assert summary(moved)["selected_step"] == best
    assert largest_difference(adapter_of(moved), adapter_of(whole)) == 0.0


def test_resuming_after_the_last_step_still_takes_the_best(bert, tmp_path):
    run = train(selecting(bert, tmp_path / "run", learning_rate=0.1, max_steps=8, save_total_limit=None))
    assert summary(run)["selected_step"] < 8
    before = adapter_of(run)
    shutil.rmtree(run / "adapter")
    train(selecting(bert, run, learning_rate=0.1, max_steps=8, save_total_limit=None, resume=True))
    assert largest_difference(adapter_of(run), before) == 0.0


def test_a_best_checkpoint_that_is_gone_is_named(bert, tmp_path):
    run = train(selecting(bert, tmp_path / "run", learning_rate=0.1, max_steps=8, save_total_limit=None))
    best = summary(run)["selected_step"]
    shutil.rmtree(run / f"checkpoint-{best}")
    with pytest.raises(InputError, match=rf"checkpoint-{best} is gone, the best checkpoint by selection 'validation'"):
        train(selecting(bert, run, learning_rate=0.1, max_steps=9, save_total_limit=None, resume=True))


def test_a_signal_keeps_the_newest_checkpoint_though_another_is_the_best(bert, tmp_path, monkeypatch):
    """With save_total_limit 1 the Trainer deletes all but the best at its end, and the run goes on from the newest."""
    whole = train(selecting(bert, tmp_path / "whole", learning_rate=0.1, max_steps=8, lr_scheduler_type="constant"))
    best = summary(whole)["selected_step"]
    assert best < 6
    stop_at = best + 1
    step = DebiasTrainer.training_step

    def signalled(self, *args, **kwargs):
        if self.state.global_step == stop_at - 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args, **kwargs)

    settings = {"learning_rate": 0.1, "max_steps": 8, "lr_scheduler_type": "constant"}
    monkeypatch.setattr(DebiasTrainer, "training_step", signalled)
    with pytest.raises(Interrupted):
        train(selecting(bert, tmp_path / "run", **settings))
    monkeypatch.setattr(DebiasTrainer, "training_step", step)
    folder = tmp_path / "run"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == [f"checkpoint-{best}", f"checkpoint-{stop_at}"]
    assert "selected_step" not in summary(folder)
    train(selecting(bert, folder, resume=True, **settings))
    assert summary(folder)["selected_step"] == best
    assert largest_difference(adapter_of(folder), adapter_of(whole)) == 0.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"train": "generated"}, "eval_strategy": "no"}, "selection 'validation' needs data.validation"),
        ({"eval_strategy": "no"}, "set eval_strategy and save_strategy both to steps or both to epoch"),
        ({"save_strategy": "epoch"}, "they are 'steps' and 'epoch'"),
        ({"save_steps": 2}, "needs eval_steps equal to save_steps; they are 1 and 2"),
        ({"eval_steps": None, "logging_steps": 7}, "they are 7 and 1"),
        ({"eval_steps": 5, "save_steps": 5}, "nothing is validated, eval_steps is 5 and max_steps 4"),
        ({"selection": "oracle"}, "'last', 'validation', 'worst_class' or 'pseudo_groups'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_allow_it(changes, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        selecting("somewhere", tmp_path / "run", **changes)


def test_an_epoch_shorter_than_eval_steps_is_found_before_the_folder_is_made(bert, tmp_path):
    config = selecting(bert, tmp_path / "run", max_steps=-1, eval_steps=9, save_steps=9)
    with pytest.raises(InputError, match="nothing is validated, eval_steps is 9 of 8"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_by_epochs(bert, tmp_path):
    epochs = {"eval_strategy": "epoch", "save_strategy": "epoch", "eval_steps": None, "num_train_epochs": 2.0}
    run = train(selecting(bert, tmp_path / "run", max_steps=-1, **epochs))
    assert summary(run)["selected_step"] in (8, 16)


def test_layers_are_in_the_metrics_and_nowhere_else(bert, tmp_path):
    """Nested figures would be dropped, with a warning each, by TensorBoard and its like."""
    run = train(config_for(bert, tmp_path / "run", save_strategy="steps", save_steps=4))
    steps = [line for line in lines(run) if "loss" in line]
    assert len(steps) == 4
    for line in steps:
        assert set(line["cosine_by_layer"]) == set(line["removed_share_by_layer"]) >= {"0", "1"}
        assert all(-1 <= value <= 1 for value in line["cosine_by_layer"].values())
        shares = list(line["removed_share_by_layer"].values())
        assert min(shares) <= line["removed_share"] <= max(shares)
    history = json.loads((run / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert not any("cosine_by_layer" in line for line in history)
    plain = train(config_for(bert, tmp_path / "plain", method="erm"))
    assert not any("cosine_by_layer" in line for line in lines(plain))
