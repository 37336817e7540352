"""Group DRO (Sagawa et al., ICLR 2020, arXiv 1911.08731), online, exact over micro-batches and ranks.

Shapes: B samples, G groups, N training examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses import group_sums
from debias.losses.base import Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class GroupDRO(Loss):
    """Cross-entropy weighted by group: groups whose loss stays high gain weight (Algorithm 1).

    After each step `q_g` grows by `exp(step_size * mean loss of g in the step)` and is normalised; a sample of group g
    counts `q_g / share of g in what is seen`, so that the mean over samples is the mean over groups under `q`. The
    weights of a step are those that the steps before it left (the published code updates them first): a sample's loss
    then does not depend on how the step is cut into micro-batches and ranks. `adjustment`: C of the paper's group
    adjustments, `C / sqrt(n_g)` added to the loss that weighs a group with n_g training examples, for small groups
    generalise worse than they train (its gradient is zero, so it acts through the weights alone; 0 to 5 in the paper).
    Needs a group of each training example, of the data or inferred (`groups`). Costs nothing more. Fails where groups
    are unknown or tiny: it overfits a small group unless regularised. The authors' code, and SpuCo, draw groups alike
    (`order: {name: resampled, by: group}`): `q` then weighs batches in which no group is rare. Steps are of random
    rows, not of like length, which costs padding: else a step may have one group alone.

    Source: Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, ICLR 2020, arXiv 1911.08731.
    """

    name: ClassVar[str] = "group_dro"
    reads: ClassVar[frozenset[str]] = frozenset({"group"})
    learns: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    step_size: float = 0.01
    adjustment: float = 0.0

    def __post_init__(self) -> None:
        for name in ("step_size", "adjustment"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        q_G, share_G, *_ = self._parts(memory_S)
        weight_G = torch.where(share_G > 0, q_G / share_G, 0.0).float()
        return -weight_G[facts["group"]] * said.log_p_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """`q` [G], equal (0 of a number that no example has), the groups' shares of what is seen [G], and with an
        adjustment what is added to their losses [G]: without one a checkpoint is what it was before there were any.
        """
        counts_G = torch.bincount(facts["group"]).double()
        occurs_G = counts_G > 0
        begun = [occurs_G / occurs_G.sum().double(), group_sums.shares(facts)]
        added = [self.adjustment / counts_G.clamp(min=1).sqrt()] if self.adjustment else []
        return torch.cat([*begun, *added])

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """Each group's summed cross-entropy [G], number of samples [G], and nothing where the memory has more."""
        parts = len(self._parts(memory_S))
        loss_B = -said.log_p_B.detach().double()
        both_2B = torch.stack([loss_B, torch.ones_like(loss_B)])
        sums_PG = loss_B.new_zeros(parts, len(memory_S) // parts)
        sums_PG[:2].index_add_(1, facts["group"], both_2B)
        return sums_PG.flatten()

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """The multiplicative update; a group without a sample in the step keeps its weight before normalisation."""
        (loss_G, count_G, *_), (q_G, *kept) = self._parts(sums), self._parts(memory_S)
        added_G = kept[1] if self.adjustment else 0.0
        adjusted_G = (loss_G / count_G.clamp(min=1) + added_G) * (count_G > 0)
        return torch.cat([torch.softmax(q_G.log() + self.step_size * adjusted_G, dim=0), *kept])

    def _parts(self, numbers_S: Tensor) -> Sequence[Tensor]:
        return numbers_S.chunk(3 if self.adjustment else 2)
