"""Sequence classification: what a head says of each label. Shapes: B samples, C classes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from debias.readouts.hidden import hearing, means_of
from debias.readouts.said import Said, fact, inputs_and_facts, of_right_label


class Classification:
    """The readout of a model with a classification head; the right labels are the fact `labels` [B]."""

    def said(
        self, model: nn.Module, batch: Mapping[str, Any], *, every_label: bool = False, hidden: bool = False
    ) -> Said:
        """Log-probabilities in float32, whatever the logits' dtype; the denominator counts samples."""
        inputs, facts = inputs_and_facts(batch)
        with hearing(model, wanted=hidden) as heard:
            logits_BC = _logits_of_labels(model, inputs)
        log_p_BC = torch.log_softmax(logits_BC, dim=-1)
        log_p_B = of_right_label(log_p_BC, fact(facts, "labels", self))
        told = log_p_BC if every_label else None
        hidden_BH = means_of(heard[0], inputs.get("attention_mask")) if heard else None
        log_z_B = torch.logsumexp(logits_BC, dim=-1) if every_label else None
        return Said(log_p_B, log_p_B.detach(), log_p_B.numel(), told, hidden_BH, log_z_B)

    def check_every_label(self) -> None:
        """A head says them all."""

    def label_scores(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Log-probability of each label, [B, C] float32."""
        inputs, _ = inputs_and_facts(batch)
        return torch.log_softmax(_logits_of_labels(model, inputs), dim=-1)


def _logits_of_labels(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    """[B, C] float32; ValueError for a model whose answer is none of classes."""
    answer = model(**inputs)
    logits = getattr(answer, "logits", None)
    if logits is None or logits.ndim != 2 or logits.shape[1] < 2:
        has = f"{type(answer).__name__} without logits" if logits is None else f"logits {list(logits.shape)}"
        raise ValueError(
            f"readout Classification reads logits [samples, classes] of two classes or more, and the model answers"
            f" {has}; give Answers(...) for a causal model, and a readout of your own for what has no classes"
        )
    found: Tensor = logits.float()
    return found
