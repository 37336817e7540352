"""CORAL: means and covariances of groups made alike (Sun & Saenko, 2016, arXiv 1607.01719).

Shapes: B samples, G groups, H hidden columns, S: the memory of `group_sums`, of H + H^2 values, and in its last column
of each group the sum of the squares of what its samples weigh, which says how many samples faded sums are worth.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses import group_sums
from debias.losses.base import HIDDEN, StepPenalty
from debias.readouts.said import Said

MOST = 2**27  # numbers of a memory, 1 GiB
NOTHING = group_sums.NONE**2  # the square of what is left of samples that have faded away
ROUNDING = 1e-9  # two samples that have faded together are two


@dataclass(frozen=True)
class Coral(StepPenalty):
    """Cross-entropy and `strength` times how far groups lie apart: squared differences of means and of covariances.

    The mean over pairs of groups of `mean (m_i - m_j)^2 + mean (C_i - C_j)^2`, with m_g the mean and C_g the covariance
    (over n - 1) of the last hidden states h of group g (a sample's mean over its tokens, of a causal model over the
    prompt; of a perceptron what its head is given). They are those of the whole step, however it is cut into
    micro-batches and ranks, and a sample's penalty is the tangent there, linear in h and in `(h - m)(h - m)^T`: its sum
    has the gradient of the penalty. A group of one sample in a step, which has no covariance, is left out of it.
    Cross-entropy is as it was. `memory`: they are those of the steps before (sums over samples that fade by it each
    step; n is then `(sum w)^2 / sum w^2`, and a group of which it is below 2 is left out), and groups count by what an
    epoch sees.

    Needs a group of each training example, of the data or inferred (`groups`), and a model whose hidden states can be
    heard. Costs a forward pass more where a step has several micro-batches; `8 G H^2` bytes in each process, summed
    over ranks at each step (19 MB for four groups of 768 columns; with `memory` also kept in checkpoints), and a
    product of as many numbers for each sample. Fails where groups tell the label: then the task has to go, too; and
    where a step has few samples of a group: on Colored MNIST, with five of them, it is below plain training. Draw
    groups alike (`order`). Steps are of random rows, not of like length, which costs padding. `loss_mean: tokens`
    divides the penalty by answer tokens, as it does cross-entropy: their proportion is unchanged. With `memory` the
    statistics are behind the model, and pull it to and fro (BENCHMARKS.md).

    Source: Sun & Saenko, Deep CORAL: Correlation Alignment for Deep Domain Adaptation, ECCV 2016 workshops, arXiv
    1607.01719; with means, over pairs of groups, as in Yang et al., Change is Hard: A Closer Look at Subpopulation
    Shift, ICML 2023, arXiv 2302.12254, and its authors' code.
    """

    name: ClassVar[str] = "coral"
    reads: ClassVar[frozenset[str]] = frozenset({"group", HIDDEN})
    learns: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    strength: float = 1.0
    memory: float | None = group_sums.memory_setting()

    def __post_init__(self) -> None:
        group_sums.check(self.strength, self.memory)

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        hidden_BH, group_B = _heard(said), facts["group"]
        if memory_S.shape[1] == 1:  # before the first step
            return -said.log_p_B
        dtype, columns = hidden_BH.dtype, hidden_BH.shape[1]
        mean_GH, cov_GHH, ratio_G11, seen_G = _known(memory_S, columns)
        scaled_GF = torch.cat([mean_GH / columns**0.5, cov_GHH.flatten(1) / columns], dim=1)
        distance, slope_GF = group_sums.apart(scaled_GF, seen_G)
        by_mean_GH, by_cov_GHH = slope_GF[:, :columns] / columns**0.5, slope_GF[:, columns:].view_as(cov_GHH) / columns
        off_BH = hidden_BH - mean_GH.to(dtype)[group_B]
        level_G = (by_cov_GHH * cov_GHH).sum(dim=(1, 2)).to(dtype)
        pull_B = (by_mean_GH.to(dtype)[group_B] * off_BH).sum(dim=1) - level_G[group_B]
        by_product_GHH = (ratio_G11 * by_cov_GHH).to(dtype)
        for group, by_cov_HH in enumerate(by_product_GHH):  # a matrix of each sample would be B times as large
            own_BH = off_BH * (group_B == group).unsqueeze(1)
            pull_B = pull_B + (own_BH @ by_cov_HH * own_BH).sum(dim=1)
        tangent_B = distance.to(dtype) + group_sums.evened(memory_S)[group_B].to(dtype) * pull_B
        return self.strength * tangent_B.to(said.log_p_B.dtype) - said.log_p_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """The groups' shares; how many hidden columns there are nobody has said yet."""
        return group_sums.begun(facts)

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """Of each group how many samples, the sums of h and of `h h^T`, and again how many: each weighs 1."""
        hidden_BH, group_B = _heard(said).detach().double(), facts["group"]
        groups, columns = len(memory_S), hidden_BH.shape[1]
        if groups * columns**2 > MOST:
            raise ValueError(
                f"loss coral keeps {groups} covariances of {columns} x {columns} hidden columns, and at most {MOST}"
                " numbers; take loss mmd, whose memory is small"
            )
        products_GF = [(hidden_BH * (group_B == g).unsqueeze(1)).T @ hidden_BH for g in range(groups)]
        summed_GF = group_sums.summed(hidden_BH, group_B, groups)
        return torch.cat([summed_GF, torch.stack(products_GF).flatten(1), summed_GF[:, 1:2]], dim=1)

    def of_step(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """The groups of the step."""
        return group_sums.of_step(sums)

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """What was seen fades, and the step is added; nothing where statistics are of the step itself."""
        if self.memory is None or sums.shape[1] == 1:  # of ranks that have seen no sample yet
            return memory_S
        squares_G1 = memory_S[:, -1:] if memory_S.shape == sums.shape else torch.zeros_like(sums[:, -1:])
        faded_GF = group_sums.faded(sums, memory_S, self.memory)
        return torch.cat([faded_GF[:, :-1], self.memory**2 * squares_G1 + sums[:, -1:]], dim=1)


def _known(memory_S: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each group mean [G, H], covariance [G, H, H], its ratio `n / (n - 1)` to the mean product of deviations
    [G, 1, 1], and whether n is 2 or more [G].
    """
    means_GF, _ = group_sums.means(memory_S[:, :-1])
    mean_GH, product_GHH = means_GF[:, :columns], means_GF[:, columns:].unflatten(1, (columns, columns))
    n_G = memory_S[:, 1].square() / memory_S[:, -1].clamp(min=NOTHING)
    seen_G = n_G > group_sums.FEWEST - ROUNDING
    ratio_G11 = (seen_G * n_G / (n_G - 1).clamp(min=0.5)).view(-1, 1, 1)
    return mean_GH, ratio_G11 * (product_GHH - mean_GH.unsqueeze(2) * mean_GH.unsqueeze(1)), ratio_G11, seen_G


def _heard(said: Said) -> Tensor:
    if said.hidden_BH is None:
        raise ValueError("loss coral reads hidden states; ask for them: said(..., hidden=True)")
    return said.hidden_BH
