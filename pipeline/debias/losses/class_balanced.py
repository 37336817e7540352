"""Class-balanced weights (Cui et al., CVPR 2019, arXiv 1901.05555). Shapes: B samples, C labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.base import Loss
from debias.losses.class_weights import counts
from debias.readouts.said import Said


@dataclass(frozen=True)
class ClassBalanced(Loss):
    """Cross-entropy weighted by `(1 - beta) / (1 - beta^n)`, with n the number of samples of the label in an epoch.

    One over the effective number of examples: more of a label add less and less. `beta` 0 is cross-entropy, `beta` near
    1 the weight `1 / n`. As in the authors' code the weights of the labels that occur sum to how many these are. The
    denominator stays the number of samples, so a sample's share does not depend on its batch.

    Needs nothing beside the labels. Costs nothing more. Fails where the labels are balanced: it is cross-entropy then,
    and no shortcut of the inputs is corrected; and where rare labels are few indeed, whose examples are learned by
    heart.

    Source: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, arXiv 1901.05555.
    """

    name: ClassVar[str] = "class_balanced"
    beta: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is {self.beta}, expected 0 or more and less than 1")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        return -memory_S.to(said.log_p_B.dtype)[facts["labels"]] * said.log_p_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """The weight of each label up to the last that occurs; 0 of one that does not."""
        count_C = counts(facts)
        occurs_C = count_C > 0
        log_beta = torch.tensor(self.beta, dtype=torch.float64).log()
        # 1 - beta^n without cancellation; of one example of each label all weights are the same.
        weight_C = torch.where(occurs_C, 1 / -torch.expm1(count_C.masked_fill(~occurs_C, 1.0) * log_beta), 0.0)
        return weight_C * (occurs_C.sum() / weight_C.sum())
