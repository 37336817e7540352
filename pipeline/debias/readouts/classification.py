"""Sequence classification: logits to per-sample losses. Shapes: B samples, C classes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from debias.readouts.said import SampleLosses

# Keys of a batch that are the objective's and the gradient sources'.
NOT_FOR_MODELS = frozenset({"labels", "bias_weight", "answer_mask", "sample_index"})


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy of each sample, [B] float32, computed in float32 whatever the logits' dtype."""
    return nn.functional.cross_entropy(logits_BC.float(), labels_B, reduction="none")


class Classification:
    """The objective of a model with a classification head; batches hold model inputs and `labels` [B]."""

    def losses(self, model: nn.Module, batch: Mapping[str, Any]) -> SampleLosses:
        """Per-sample cross-entropy; the denominator counts samples."""
        loss_B = cross_entropy(model(**model_inputs(batch)).logits, batch["labels"])
        return SampleLosses(loss_B, -loss_B.detach(), count=loss_B.numel())

    def label_scores(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """Log-probability of each label, [B, C] float32."""
        return torch.log_softmax(model(**model_inputs(batch)).logits.float(), dim=-1)


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a batch that the model itself takes."""
    return {key: value for key, value in batch.items() if key not in NOT_FOR_MODELS}
