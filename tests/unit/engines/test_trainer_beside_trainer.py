"""DebiasTrainer where a user would notice that it is not the Trainer: old checkpoints, callbacks, other models."""

import os
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import llama
from tiny_trainers import Words, examples, trainer_of
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from debias.engines.hf_trainer import DebiasTrainer
from debias.losses import Answers, Classification, GroupDRO
from debias.methods import MainOnly

torch.set_num_threads(1)


# --- which checkpoints stay


def kept(folder: Any, *, kind: Any, limit: int, best: int) -> list[str]:
    """Of six steps, saved at each, of which the evaluation after step `best` is the best."""
    scores = iter([float(step == best) for step in range(1, 7)])
    trainer = trainer_of(
        folder, kind=kind, max_steps=6, save_strategy="steps", save_steps=1, save_total_limit=limit,
        eval_strategy="steps", eval_steps=1, metric_for_best_model="score", greater_is_better=True,
        more={"eval_dataset": examples(4), "compute_metrics": lambda told: {"score": next(scores)}},
    )  # fmt: skip
    trainer.train()
    return sorted(path.name for path in folder.glob("checkpoint-*"))


@pytest.mark.parametrize("limit", [1, 2, 3, -1])
@pytest.mark.parametrize("best", [1, 6])
def test_as_many_checkpoints_stay_as_with_the_trainer(tmp_path: Any, limit: int, best: int) -> None:
    theirs = kept(tmp_path / "theirs", kind=Trainer, limit=limit, best=best)
    assert kept(tmp_path / "ours", kind=DebiasTrainer, limit=limit, best=best) == theirs


@pytest.mark.parametrize("limit", [1, 2])
def test_checkpoints_of_an_earlier_training_go_first(tmp_path: Any, limit: int) -> None:
    """They have later steps, and are not what was saved last; the Trainer sees that from their age."""
    left: dict[Any, list[str]] = {}
    for kind in (Trainer, DebiasTrainer):
        folder = tmp_path / kind.__name__
        for step in (7, 9):
            (folder / f"checkpoint-{step}").mkdir(parents=True)
            os.utime(folder / f"checkpoint-{step}", (step, step))
        trainer_of(folder, kind=kind, save_strategy="steps", save_steps=1, save_total_limit=limit).train()
        left[kind] = sorted(path.name for path in folder.glob("checkpoint-*"))
    assert left[DebiasTrainer] == left[Trainer] == ["checkpoint-1", "checkpoint-2"][-limit:]


# --- resuming where nothing is left to train


def test_resuming_at_the_last_step_restores_what_the_trainer_restores(tmp_path: Any) -> None:
    saving = {
        **{"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2},
        **{"load_best_model_at_end": True, "metric_for_best_model": "loss"},
    }
    data = {"eval_dataset": examples(4)}
    trainer_of(tmp_path, **saving, more={**data, "callbacks": [EarlyStoppingCallback(5, 0.2)]}).train()
    more = {**data, "callbacks": [EarlyStoppingCallback(1)]}
    changed = tmp_path / "checkpoint-2" / "trainer_state.json"
    changed.write_text(changed.read_text().replace('"train_batch_size": 4', '"train_batch_size": 3'))
    again = trainer_of(
        tmp_path, **saving, auto_find_batch_size=True, restore_callback_states_from_checkpoint=True, more=more
    )
    again.is_world_process_zero = lambda: False  # as on a second rank: a checkpoint is the first one's
    again.train(resume_from_checkpoint=True)
    (stop,) = (one for one in again.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback))
    assert (stop.early_stopping_patience, stop.early_stopping_threshold) == (5, 0.2)
    assert not again.state.is_world_process_zero
    assert again._train_batch_size == 3


class Told(TrainerCallback):
    """Notes what it is told, with the step and whether there is a model."""

    def __init__(self) -> None:
        self.said: list[tuple[str, int, bool]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.said.append(("begin", state.global_step, model is not None))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.said.append(("end", state.global_step, model is not None))


def test_callbacks_hear_of_a_training_without_a_step_as_the_trainer_tells_them(tmp_path: Any) -> None:
    """The Trainer is resumed at its last epoch: at the last of `max_steps` it would take one more."""
    told: dict[Any, Told] = {}
    for kind in (Trainer, DebiasTrainer):
        saving = {"save_strategy": "steps", "save_steps": 2, "kind": kind}
        steps = {"num_train_epochs": 1.0, "max_steps": -1, "data": examples(8)}
        trainer_of(tmp_path / kind.__name__, **saving, **(steps if kind is Trainer else {})).train()
        told[kind] = Told()
        more = {"callbacks": [told[kind]]}
        again = trainer_of(tmp_path / kind.__name__, **saving, **(steps if kind is Trainer else {}), more=more)
        assert again.train(resume_from_checkpoint=True).global_step == 2
    assert told[DebiasTrainer].said == told[Trainer].said == [("begin", 2, True), ("end", 2, True)]


def test_a_checkpoint_that_is_not_there(tmp_path: Any) -> None:
    for kind in (Trainer, DebiasTrainer):
        with pytest.raises(ValueError, match=f"Can't find a valid checkpoint at {tmp_path / 'none'}"):
            trainer_of(tmp_path, kind=kind).train(resume_from_checkpoint=str(tmp_path / "none"))


def test_a_path_is_a_checkpoint_as_well(tmp_path: Any) -> None:
    trainer_of(tmp_path, save_strategy="steps", save_steps=2).train()
    again = trainer_of(tmp_path)
    assert again.train(resume_from_checkpoint=tmp_path / "checkpoint-2").global_step == 2
    assert again.hook is None  # nothing was trained


# --- training more than once


def test_with_model_init_a_second_training_is_as_the_first(tmp_path: Any) -> None:
    """As in a search over hyperparameters: what the loss had learned of another model is forgotten."""
    rows = [{**row, "group": row["labels"] % 2} for row in examples()]
    facts = {"group": torch.tensor([row["group"] for row in rows])}
    more = {"model": None, "model_init": partial(Words, 0), "loss": GroupDRO(step_size=2.0), "facts": facts}
    trainer = trainer_of(tmp_path, data=rows, rule=MainOnly(), more=more)
    found = []
    for _ in range(2):
        trainer.train()
        found.append([*(p.detach().clone() for p in trainer.model.parameters()), trainer.loss.memory_S])
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


# --- models and batches that a readout cannot read


class Answering(nn.Module):
    """A model that answers what it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.one, self.answer = nn.Parameter(torch.ones(())), answer

    def forward(self, input_ids: Any) -> Any:
        return self.answer(self.one.expand(len(input_ids)))


def with_logits(*shape: int) -> Any:
    return lambda one_B: SimpleNamespace(logits=one_B.reshape(-1, *(1 for _ in shape)).expand(-1, *shape))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda one_B: (one_B.mean(), one_B), "the model answers tuple without logits; give Answers.*of your own"),
        (with_logits(6, 61), r"the model answers logits \[4, 6, 61\]"),
        (with_logits(1), r"two classes or more, and the model answers logits \[4, 1\]"),
    ],
    ids=["tuple", "causal", "one class"],
)
def test_a_model_that_says_nothing_of_classes(tmp_path: Any, answer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trainer_of(tmp_path, model=Answering(answer)).train()
    with pytest.raises(ValueError, match=words):
        trainer_of(tmp_path, model=Answering(answer), more={"eval_dataset": examples(4)}).evaluate()


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (0.5, r"'labels' is torch.float32 \[4\].*torch.int64 \[4\]"),
        ([0, 1], r"'labels' is torch.int64 \[4, 2\]"),
        (None, r"readout Classification reads the fact 'labels', which this batch lacks: it has \[\]"),
    ],
    ids=["numbers", "several", "none"],
)
def test_labels_that_are_no_class_numbers(tmp_path: Any, label: Any, words: str) -> None:
    rows = [{**row, "labels": label} for row in examples(8)]
    rows = rows if label is not None else [{"input_ids": row["input_ids"]} for row in rows]
    with pytest.raises(ValueError, match=words):
        trainer_of(tmp_path, data=rows).train()
    if label is not None:
        with pytest.raises(ValueError, match=words):
            trainer_of(tmp_path, more={"eval_dataset": rows[:4]}).evaluate()


def test_answers_without_their_places(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"readout Answers reads the fact 'answer_mask'.*has \['labels'\]"):
        trainer_of(tmp_path, model=llama(), more={"readout": Answers([[5], [6]])}).train()


def test_a_readout_by_both_its_names(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="leave objective out"):
        trainer_of(tmp_path, more={"objective": Classification()})
