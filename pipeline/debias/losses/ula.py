"""Unsupervised logit adjustment (Tsirigotis et al., NeurIPS 2023, arXiv 2310.18555).

Shapes: B samples, C labels, G guesses (a label each), N training examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.bias.base import FLOOR
from debias.losses.base import EVERY_LABEL, Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class ULA(Loss):
    """Cross-entropy of `log p + tau log P(y | guess)`: how often each label occurs where the bias model guesses alike.

    The guess is the bias model's likeliest label, and P a table of labels by guesses, counted over the training set
    with the bias model's probabilities as shares: `sum_i p_b(guess | x_i) [y_i = y]`, a guess's row over its sum, at
    least 0.0001. How sure the bias model is of the one example does not count. As published it is the bias model
    `embedding` (a linear model of frozen features), and the checkpoint is chosen by `selection: pseudo_groups`. Needs a
    bias model (`bias_model`, or a first stage that keeps `log_p`), and of a causal model answers of one token. Costs
    its fit. Fails where guesses are honest signal, as `logit_correction` does, and where the bias model knows more than
    its guess says: that is lost.

    The paper averages the table over batches as training goes, from a bias model that was fitted to the same examples;
    here it is that of the whole training set, once, from answers out of fold. Its mixup of groups is not here.

    Source: Tsirigotis et al., Group Robust Classification Without Any Group Information, NeurIPS 2023, arXiv
    2310.18555, and its authors' code; the table is that of Liu et al., Avoiding spurious correlations via logit
    correction, ICLR 2023, arXiv 2212.01433.
    """

    name: ClassVar[str] = "ula"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p", EVERY_LABEL})
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise ValueError(f"tau is {self.tau}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        assert said.log_p_BC is not None
        labels = said.log_p_BC.shape[1]
        log_p_GC = memory_S.view(labels, labels).to(said.log_p_BC.dtype)
        corrected_BC = said.log_p_BC + self.tau * log_p_GC[facts["bias_log_p"].argmax(dim=1)]
        return -torch.log_softmax(corrected_BC, dim=-1).gather(1, facts["labels"].unsqueeze(1)).squeeze(1)

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """`log P(y | guess)` in what an epoch sees, [G, C] in one row."""
        p_NG = facts["bias_log_p"].double().exp()
        if "seen" in facts:
            p_NG = p_NG * facts["seen"].unsqueeze(1)
        sums_GC = torch.zeros(p_NG.shape[1], p_NG.shape[1], dtype=torch.float64)
        sums_GC.index_add_(1, facts["labels"], p_NG.T)
        p_GC = (sums_GC / sums_GC.sum(dim=1, keepdim=True)).clamp(min=FLOOR)
        return (p_GC / p_GC.sum(dim=1, keepdim=True)).log().flatten()
