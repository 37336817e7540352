"""Confidence regularization (Utama et al., ACL 2020, arXiv 2005.00315). Shapes: B samples, C labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.annealing import bias_log_p, check_anneal_to, doubt
from debias.losses.base import EVERY_LABEL, Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class ConfidenceRegularization(Loss):
    """Cross-entropy to a teacher's answer that is made less sure where the bias model is sure of the label.

    The target is `s(c)` in proportion to `p_teacher(c)^(1 - p_b(y))`: the teacher's own where the bias model gives the
    right label no chance, even over the labels where it is certain. No sample is thrown away, so that accuracy on
    ordinary data is kept better than with weights. With `anneal_to` the bias model is believed less and less. Needs a
    bias model and a teacher, plain fine-tuning on the same data: `first_stage: {keep: teacher}`; and of a causal model
    answers of one token. Costs a second training, and the bias model's fit. Fails where the teacher answers by the
    shortcut and the bias model is not sure of it: the teacher's answer is the target then, right or wrong.

    Source: Utama et al., Mind the Trade-off: Debiasing NLU Models without Degrading the In-distribution Performance,
    ACL 2020, arXiv 2005.00315; the annealing of Utama et al., EMNLP 2020, arXiv 2009.12303.
    """

    name: ClassVar[str] = "confidence_regularization"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p", "teacher_log_p", EVERY_LABEL})
    anneal_to: float | None = None

    def __post_init__(self) -> None:
        check_anneal_to(self.anneal_to)

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        assert said.log_p_BC is not None
        doubt_B = doubt(bias_log_p(facts, self.anneal_to, said.log_p_B), facts["labels"])
        target_BC = torch.softmax(doubt_B.unsqueeze(1) * facts["teacher_log_p"].to(doubt_B.dtype), dim=-1)
        return -(target_BC * torch.log_softmax(said.log_p_BC, dim=-1)).sum(dim=-1)
