"""A DebiasTrainer, or the plain Trainer, of the smallest model that has logits; a whole training takes milliseconds."""

import dataclasses
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from debias.engines.hf_trainer import DebiasTrainer
from debias.losses import Classification
from debias.methods import Edge


def examples(count: int = 24, seed: int = 2) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 61, (count, 6), generator=generator)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return [{"input_ids": row.tolist(), "labels": int(label)} for row, label in zip(ids, labels, strict=True)]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


class Words(nn.Module):
    """A bag of words through two linear layers: as cheap as a model with logits can be."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config = PretrainedConfig()
        self.inner, self.classifier = nn.Linear(61, 5), nn.Linear(5, 3)

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        logits = self.classifier(torch.tanh(self.inner(nn.functional.one_hot(input_ids, 61).float().sum(dim=1))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def trainer_of(folder: Any, *, kind: Any = DebiasTrainer, model: Any = None, more: Any = None, **changes: Any) -> Any:
    """A trainer of two plain SGD steps of four samples; `more` is given to it, `changes` to its arguments."""
    given = {"model": model or Words(), "train_dataset": changes.pop("data", examples()), "data_collator": collate}
    ours = {"rule": changes.pop("rule", Edge()), "readout": Classification()}
    arguments = {
        **{"output_dir": str(folder), "use_cpu": True, "report_to": "none", "save_strategy": "no"},
        **{"max_steps": 2, "learning_rate": 0.05, "per_device_train_batch_size": 4, "logging_steps": 1},
        **{"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 0.0, "disable_tqdm": True, **changes},
    }
    given |= {"args": TrainingArguments(**arguments), **({} if kind is Trainer else ours)}
    return kind(**{**given, **(more or {})})


def logged(trainer: Any, *keys: str) -> list[list[float]]:
    return [[line[key] for key in keys] for line in trainer.state.log_history if "loss" in line]


class Ordered(list[Any]):
    def sampler(self, step: int, seed: int) -> Any:
        return torch.utils.data.SequentialSampler(self)


class Counted(Classification):
    """As a readout that counts tokens: the denominator of a sample is its label plus one."""

    def said(self, model: Any, batch: Any, *, every_label: bool = False) -> Any:
        said = super().said(model, batch, every_label=every_label)
        return dataclasses.replace(said, count=int((batch["labels"] + 1).sum()))
