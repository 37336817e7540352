"""Group DRO (Sagawa et al., ICLR 2020, arXiv 1911.08731), online, exact over micro-batches and ranks.

Shapes: B samples, G groups, N training examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.base import Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class GroupDRO(Loss):
    """Cross-entropy weighted by group: groups whose loss stays high gain weight (Algorithm 1).

    After each step `q_g` grows by `exp(step_size * mean loss of g in the step)` and is normalised; a sample of group g
    counts `q_g / share of g in the training data`, so that the mean over samples is the mean over groups under `q`. The
    weights of a step are those that the steps before it left (the published code updates them first): a sample's loss
    then does not depend on how the step is cut into micro-batches and ranks. Needs a group of each training example.
    Costs nothing more. Fails where groups are unknown or tiny: it overfits a small group unless regularised.

    Source: Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020, arXiv 1911.08731.
    """

    name: ClassVar[str] = "group_dro"
    reads: ClassVar[frozenset[str]] = frozenset({"group"})
    learns: ClassVar[bool] = True
    step_size: float = 0.01

    def __post_init__(self) -> None:
        if self.step_size < 0:
            raise ValueError(f"step_size is {self.step_size}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        q_G, share_G = memory_S.chunk(2)
        weight_G = (q_G / share_G).float()
        return -weight_G[facts["group"]] * said.log_p_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """`q` [G], equal, and the groups' shares of the training data [G]."""
        counts_G = torch.bincount(facts["group"]).double()
        return torch.cat([torch.full_like(counts_G, 1 / len(counts_G)), counts_G / counts_G.sum()])

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """Each group's summed cross-entropy [G] and number of samples [G]."""
        groups = len(memory_S) // 2
        loss_B = -said.log_p_B.detach().double()
        both_2B = torch.stack([loss_B, torch.ones_like(loss_B)])
        return loss_B.new_zeros(2, groups).index_add(1, facts["group"], both_2B).flatten()

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """The multiplicative update; a group without a sample in the step keeps its weight before normalisation."""
        (loss_G, count_G), (q_G, share_G) = sums.chunk(2), memory_S.chunk(2)
        log_q_G = q_G.log() + self.step_size * loss_G / count_G.clamp(min=1)
        return torch.cat([torch.softmax(log_q_G, dim=0), share_G])
