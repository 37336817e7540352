"""Sequence classification: what a head says of each label. Shapes: B samples, C classes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from debias.readouts.hidden import hearing, means_of
from debias.readouts.said import Said, inputs_and_facts


class Classification:
    """The readout of a model with a classification head; the right labels are the fact `labels` [B]."""

    def said(
        self, model: nn.Module, batch: Mapping[str, Any], *, every_label: bool = False, hidden: bool = False
    ) -> Said:
        """Log-probabilities in float32, whatever the logits' dtype; the denominator counts samples."""
        inputs, facts = inputs_and_facts(batch)
        with hearing(model, wanted=hidden) as heard:
            log_p_BC = torch.log_softmax(model(**inputs).logits.float(), dim=-1)
        log_p_B = log_p_BC.gather(1, facts["labels"].unsqueeze(1)).squeeze(1)
        told = log_p_BC if every_label else None
        hidden_BH = means_of(heard[0], inputs.get("attention_mask")) if heard else None
        return Said(log_p_B, log_p_B.detach(), log_p_B.numel(), told, hidden_BH)

    def check_every_label(self) -> None:
        """A head says them all."""

    def label_scores(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Log-probability of each label, [B, C] float32."""
        inputs, _ = inputs_and_facts(batch)
        return torch.log_softmax(model(**inputs).logits.float(), dim=-1)
