"""The weights of automatic feature reweighting (Qiu et al., ICML 2023, arXiv 2306.11074).

Shapes: B samples, C labels, N training examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.base import Loss
from debias.losses.group_sums import counted, mean_seen
from debias.readouts.said import Said


@dataclass(frozen=True)
class AFR(Loss):
    """`-exp(-gamma p_b(y)) / n(y) log p(y)`, of mean weight 1 over the training data: what is hard counts more.

    `n(y)` is the number of samples of the label in an epoch, which evens out the labels; no weight is 0. Needs a bias
    model, in the paper the first stage of training itself (`first_learned`, or a first stage that keeps `log_p`);
    answers of a causal model may have any length. Costs its fit. Fails where what is hard is mislabelled, and with a
    large `gamma`, which leaves few samples to learn from. The paper retrains the last layer alone, on examples that the
    first stage has not seen, and holds it near its start; here all that trains is trained, from the base, and the bias
    model answers out of fold.

    Source: Qiu et al., Simple and Fast Group Robustness by Automatic Feature Reweighting, ICML 2023, arXiv 2306.11074.
    """

    name: ClassVar[str] = "afr"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p"})
    gamma: float = 4.0

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        weight_B = self._of_label(facts) * memory_S[facts["labels"]]
        return -weight_B.to(said.log_p_B.dtype) * said.log_p_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """What a label's weights are multiplied by, [C]: `1 / n(y)` over the mean of the weights an epoch sees."""
        labels_N, labels = facts["labels"], facts["bias_log_p"].shape[1]
        counts_C = counted(labels_N, facts, labels)
        counts_C = counts_C.masked_fill(counts_C == 0, 1.0)  # a label that does not occur
        return 1 / (counts_C * mean_seen(self._of_label(facts) / counts_C[labels_N], facts))

    def _of_label(self, facts: Mapping[str, Tensor]) -> Tensor:
        own_B = facts["bias_log_p"].double().gather(1, facts["labels"].unsqueeze(1)).squeeze(1)
        return torch.exp(-self.gamma * own_B.exp())
