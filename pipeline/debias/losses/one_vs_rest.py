"""One against the rest: what Bias Experts are trained on (Jeon et al., EMNLP 2023, arXiv 2312.03577).

Shapes: B samples, C labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from debias.losses.base import EVERY_LABEL, LOGITS, Loss
from debias.losses.class_weights import counts
from debias.readouts.said import Said


@dataclass(frozen=True)
class OneVsRest(Loss):
    """`-sum_k w_k log sigmoid(+-z_k)`: for each label a yes or no of its own, in which what is easy counts more.

    With z the logits, c the bias model's (an auxiliary model's) probability of the right label y, and pi the labels'
    shares in the training data, the right label's yes weighs `(1 - pi_y) c^q`, and each other's no `pi_k (1 - c)^q`: a
    label's yes and its noes weigh the same over the data where c says nothing, and `q` lets what is easy count more. As
    in the authors' code, where c is the mean over the epochs of the auxiliary model; there each label has a head of two
    layers, here its row of the model's own.

    Needs a classification head, and a bias model or a first stage that keeps `log_p`. Costs no more than cross-entropy.
    Fails as a loss for the final model: scores of labels are not trained to outweigh each other. It is what
    `bias_model: bias_experts` trains its experts with.

    Source: Jeon et al., Improving Bias Mitigation through Bias Experts in Natural Language Understanding, EMNLP 2023,
    arXiv 2312.03577, and its authors' code.
    """

    name: ClassVar[str] = "one_vs_rest"
    reads: ClassVar[frozenset[str]] = frozenset({EVERY_LABEL, LOGITS, "bias_log_p"})
    q: float = 0.2

    def __post_init__(self) -> None:
        if self.q < 0:
            raise ValueError(f"q is {self.q}, expected 0 (all samples count the same) or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        if said.log_z_B is None or said.log_p_BC is None:
            raise ValueError("loss one_vs_rest reads a classifier's logits, and this readout has none")
        labels_B1 = facts["labels"].unsqueeze(1)
        z_BC = said.log_p_BC + said.log_z_B.unsqueeze(1)
        c_B1 = facts["bias_log_p"].gather(1, labels_B1).exp().clamp(0, 1).to(z_BC.dtype)
        share_C = torch.zeros(z_BC.shape[1], dtype=z_BC.dtype, device=z_BC.device)
        share_C[: len(memory_S)] = memory_S.to(z_BC.dtype)
        no_BC = -share_C * (1 - c_B1) ** self.q * logsigmoid(-z_BC)
        yes_BC = -(1 - share_C) * c_B1**self.q * logsigmoid(z_BC)
        return no_BC.scatter(1, labels_B1, yes_BC.gather(1, labels_B1)).sum(dim=1)

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """The share of each label up to the last that occurs, of what an epoch sees."""
        count_C = counts(facts)
        return count_C / count_C.sum()
