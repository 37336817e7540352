"""Label-distribution-aware margins (Cao et al., NeurIPS 2019, arXiv 1906.07413). Shapes: B samples, C labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.base import EVERY_LABEL, Loss
from debias.losses.class_weights import log_counts
from debias.readouts.said import Said


@dataclass(frozen=True)
class LDAM(Loss):
    """Cross-entropy of `scale (log p - margin_y e_y)`: the right label has to win by a margin, larger if it is rare.

    `margin_y = max_margin (n_min / n_y)^(1/4)`, with n the number of training examples of each label, however often the
    run's order sees them: what is rare generalises worse, drawn often or not. The paper's equation has
    `scale` 1; its authors' code has 30, with a head whose logits are cosines, and others take 30 with ordinary logits.
    The paper's second half, weights of labels late in training, is `class_balanced` in a run that goes on from this
    one.

    Needs nothing beside the labels, and of a causal model answers of one token. Costs nothing more. Fails where the
    labels are balanced: all margins are then the same, and no shortcut of the inputs is corrected; with a large `scale`
    on ordinary logits a sample that is wrong counts `scale` times as much.

    Source: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss, NeurIPS 2019, arXiv
    1906.07413.
    """

    name: ClassVar[str] = "ldam"
    reads: ClassVar[frozenset[str]] = frozenset({EVERY_LABEL})
    max_margin: float = 0.5
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.max_margin < 0:
            raise ValueError(f"max_margin is {self.max_margin}, expected 0 or more")
        if self.scale <= 0:
            raise ValueError(f"scale is {self.scale}, expected more than 0")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        assert said.log_p_BC is not None
        labels_B1 = facts["labels"].unsqueeze(1)
        margin_B1 = memory_S.to(said.log_p_BC.dtype)[labels_B1]
        scaled_BC = self.scale * said.log_p_BC.scatter_add(1, labels_B1, -margin_B1)
        return -torch.log_softmax(scaled_BC, dim=-1).gather(1, labels_B1).squeeze(1)

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """The margin of each label up to the last that occurs; one that does not counts as if it did once."""
        log_n_C = log_counts({"labels": facts["labels"]})  # without `seen`
        fewest = log_n_C[facts["labels"].cpu()].min()
        return self.max_margin * torch.exp((fewest - log_n_C) / 4)
