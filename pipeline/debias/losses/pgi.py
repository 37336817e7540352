"""Predictive group invariance (Ahmed et al., ICLR 2021). Shapes: B samples, C labels, Y labels of the data, G groups.

Its memory S is [Y, G, 1 + 2 + C]: of each cell, the samples of one label and one group, how many there are in the
training data as it is; and what `group_sums` keeps, of C values, the model's probabilities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses import group_sums
from debias.losses.base import EVERY_LABEL, StepPenalty
from debias.readouts.said import Said

LEAST = 1e-12  # of a probability in a logarithm, as its authors' code has it
# How steep the penalty may be by a mean of steps before. Of a step itself each sample is in its mean, which bounds the
# slope -p_g / p_0; where the mean is without it, one sample that is wrong among sure ones would outweigh all others.
STEEPEST = 10.0


@dataclass(frozen=True)
class PGI(StepPenalty):
    """The groups' mean of cross-entropy, and `strength` times how unlike their mean predictions are within a label.

    The mean over labels of `KL(p_yg || p_y0)`, with p_yg the mean of the predicted probabilities of label y's samples
    in group g, and group 0 its most frequent one in the training data; of more than two groups the mean over the
    others. A label of which a step has one group, or not the most frequent, adds nothing. The means are those of the
    whole step, however it is cut into micro-batches and ranks, and a sample's penalty is the tangent there, linear in
    its probabilities: its sum has the value and the gradient of the penalty. All groups of a step count the same in
    cross-entropy (the authors' code). `warmup`: `strength` grows from 0 until that share of training is done.
    `memory`: the means are those of the steps before (sums over samples that fade by it each step), and slopes by them
    are cut at 10, which is ours.

    Needs a group of each training example, of the data or inferred (`groups`), of which a label has two; and of a
    causal model answers of one token. Costs a forward pass more where a step has several micro-batches, with `memory`
    nothing. Fails where groups of a label differ in what they rightly say of it (how clear its samples are), and where
    a step has few of a group, whose mean is then noise: draw groups alike (`order`; steps are of random rows, not of
    like length, which costs padding). A model that predicts one and the same for all has no penalty. The authors take
    KL / C of each label, which is this mean, with strengths of 50 and 100, grown over some epochs; their penalty leaves
    the last layer alone, and their groups are the more and the less frequent part of each label, found by an adversary:
    here the whole model feels it, and groups are given.

    Source: Ahmed et al., Systematic generalisation with group invariant predictions, ICLR 2021,
    openreview.net/forum?id=b9PoimzZFJ, and its authors' code.
    """

    name: ClassVar[str] = "pgi"
    reads: ClassVar[frozenset[str]] = frozenset({"group", EVERY_LABEL})
    learns: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    within_labels: ClassVar[bool] = True
    strength: float = 1.0
    warmup: float = 0.0
    memory: float | None = None

    def __post_init__(self) -> None:
        group_sums.check(self.strength, self.memory, self.warmup)

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        share_YG, group_B = memory_S[..., 1], facts["group"]
        share_G1 = share_YG.sum(dim=0).unsqueeze(1)
        even_B = group_sums.evened(share_G1)[group_B] / group_sums.occurring(share_G1)
        loss_B = -even_B.to(said.log_p_B.dtype) * said.log_p_B
        if memory_S.shape[2] == 2:  # before the first step
            return loss_B
        p_BC, cell_B = _probabilities(said), _cells(facts, memory_S)
        sums_KF = memory_S[..., 1:].flatten(0, 1)
        mean_KC, seen_K = group_sums.means(sums_KF)
        steepest = STEEPEST if self.memory is not None else None
        mean_YGC = mean_KC.view(*share_YG.shape, -1)
        penalty, slope_KC = _apart(mean_YGC, seen_K.view_as(share_YG), memory_S[..., 0], steepest)
        # A cell's mean moves by its samples' deviations over their number, and the loss is a mean over the step. One
        # that the training data has not is not drawn: nobody knows how often it occurs.
        pull_KC = ((sums_KF[:, 0] > 0) * group_sums.evened(sums_KF)).unsqueeze(1) * slope_KC
        off_BC = p_BC - mean_KC.to(p_BC.dtype)[cell_B]
        tangent_B = penalty.to(p_BC.dtype) + (pull_KC.to(p_BC.dtype)[cell_B] * off_BC).sum(dim=1)
        return loss_B + (self._strength(facts, like=tangent_B) * tangent_B).to(loss_B.dtype)

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """Of each cell how many samples there are, and its share of what an epoch sees; no prediction was seen yet."""
        label_N, group_N = facts["labels"], facts["group"]
        labels, groups = int(label_N.max()) + 1, int(group_N.max()) + 1
        cell_N, cells = label_N * groups + group_N, labels * groups
        seen_K = group_sums.counted(cell_N, facts, least=cells)
        known_K2 = torch.stack([torch.bincount(cell_N, minlength=cells).double(), seen_K / seen_K.sum()], dim=1)
        return known_K2.view(labels, groups, 2)

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """Of each cell how many samples, and the sums of their probabilities."""
        labels, groups = memory_S.shape[:2]
        sums_KF = group_sums.summed(_probabilities(said), _cells(facts, memory_S), labels * groups)
        return torch.cat([torch.zeros_like(sums_KF[:, :1]), sums_KF], dim=1).view(labels, groups, -1)

    def of_step(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """The cells of the step; which group of a label is the most frequent is of the data."""
        return _beside(memory_S, group_sums.of_step(sums[..., 1:].flatten(0, 1)))

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """What was seen fades, and the step is added; nothing where statistics are of the step itself."""
        if self.memory is None:
            return memory_S
        known_KF, step_KF = memory_S[..., 1:].flatten(0, 1), sums[..., 1:].flatten(0, 1)
        return _beside(memory_S, group_sums.faded(step_KF, known_KF, self.memory))

    def _strength(self, facts: Mapping[str, Tensor], like: Tensor) -> Tensor:
        full = like.new_tensor(self.strength)
        if not self.warmup:
            return full
        return full * (group_sums.done(facts, like).to(like.dtype) / self.warmup).clamp(max=1.0)


def _apart(mean_YGC: Tensor, seen_YG: Tensor, count_YG: Tensor, steepest: float | None = None) -> tuple[Tensor, Tensor]:
    """The mean over C labels of KL from the most frequent group's mean, and its gradient by each mean [Y G, C].

    `steepest`: at which the gradient of each single KL is cut.
    """
    labels = mean_YGC.shape[-1]
    most_Y1 = count_YG.argmax(dim=1, keepdim=True)
    at_YGC = most_Y1.unsqueeze(2).expand(-1, 1, labels)
    held_YGC = mean_YGC.clamp(min=LEAST)
    first_Y1C = held_YGC.gather(1, at_YGC)
    others_YG = seen_YG.to(mean_YGC.dtype).scatter(1, most_Y1, 0.0) * seen_YG.gather(1, most_Y1)
    weight_YG1 = (others_YG / others_YG.sum(dim=1, keepdim=True).clamp(min=1) / labels).unsqueeze(2)
    log_YGC = (held_YGC / first_Y1C).log()
    penalty = (weight_YG1 * held_YGC * log_YGC).sum()
    by_other_YGC, ratio_YGC = log_YGC + 1, held_YGC / first_Y1C
    if steepest is not None:
        by_other_YGC, ratio_YGC = by_other_YGC.clamp(-steepest, steepest), ratio_YGC.clamp(max=steepest)
    slope_YGC = weight_YG1 * by_other_YGC
    by_first_Y1C = -(weight_YG1 * ratio_YGC).sum(dim=1, keepdim=True)
    slope_YGC = slope_YGC.scatter(1, at_YGC, by_first_Y1C)
    return penalty, (slope_YGC * (mean_YGC >= LEAST)).flatten(0, 1)


def _beside(memory_S: Tensor, sums_KF: Tensor) -> Tensor:
    """A memory that counts the data as this one does."""
    return torch.cat([memory_S[..., :1], sums_KF.view(*memory_S.shape[:2], -1)], dim=2)


def _cells(facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
    return facts["labels"] * memory_S.shape[1] + facts["group"]


def _probabilities(said: Said) -> Tensor:
    """Among the labels: of a causal model `log_p_BC` are shares of its whole vocabulary."""
    assert said.log_p_BC is not None
    return torch.softmax(said.log_p_BC, dim=-1)
