"""Maximum mean discrepancy between the groups of one step, with exact kernels.

Shapes: B samples of a micro-batch, N of the step, H hidden columns. A step is a matrix [1 + N, 1 + H]: in its first row
the mean squared distance of two samples, and the penalty; in each other one a sample's group and its h.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from debias.losses.group_sums import FEWEST, NONE

GAMMAS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of each kernel, over the mean squared distance


def rows_of(hidden_BH: Tensor, group_B: Tensor) -> Tensor:
    """What a step knows of each of its samples, [B, 1 + H]."""
    return torch.cat([group_B.unsqueeze(1).double(), hidden_BH.detach().double()], dim=1)


def packed(rows_NF: Tensor, known: Tensor) -> Tensor:
    """The step of these samples; the distance is `known`, or their own where that is 0."""
    distance = torch.where(known > 0, known, distance_of(rows_NF))
    group_N, hidden_NH = rows_NF[:, 0], rows_NF[:, 1:]
    groups, count_N = Groups.of(group_N), _same(group_N, group_N).to(group_N.dtype).sum(dim=1)
    terms = _terms(hidden_NH, group_N, rows_NF, distance).sum() / 2  # a pair is in those of both its samples
    # A sample and itself are no pair: there all kernels are 1.
    with_itself = len(GAMMAS) * (groups.share_N / (count_N - 1).clamp(min=1)).sum()
    penalty = (distance > 0) * (terms - groups.of_pair * (groups.many - 1) * with_itself)
    first_F = torch.cat([torch.stack([distance, penalty]), rows_NF.new_zeros(rows_NF.shape[1] - 2)])
    return torch.cat([first_F.unsqueeze(0), rows_NF])


def tangent(hidden_BH: Tensor, group_B: Tensor, step: Tensor) -> Tensor:
    """Of each sample [B]: its mean over the step is the penalty, and so is the mean's gradient by each h."""
    rows_NF, dtype = step[1:].to(hidden_BH.dtype), hidden_BH.dtype
    distance, penalty = step[0, 0].to(dtype), step[0, 1].to(dtype)
    term_B = _terms(hidden_BH, group_B.to(dtype), rows_NF, distance)
    return penalty + len(rows_NF) * (term_B - term_B.detach())


def distance_of(rows_NF: Tensor) -> Tensor:
    """The mean squared distance of two samples; 0 where all are alike."""
    hidden_NH = rows_NF[:, 1:]
    variance = (hidden_NH - hidden_NH.mean(dim=0)).square().sum() / max(len(rows_NF) - 1, 1)
    return torch.where(variance > 1e-12 * hidden_NH.square().mean(), 2 * variance, 0.0)


class Groups(NamedTuple):
    """Of a step: what each sample counts in the mean of its group, 0 in a group of too few [N]; how many groups there
    are beside those; and what a pair of these counts, 0 where there is none.
    """

    share_N: Tensor
    many: Tensor
    of_pair: Tensor

    @classmethod
    def of(cls, group_N: Tensor) -> "Groups":
        """By the numbers of groups, whatever they are."""
        count_N = _same(group_N, group_N).to(group_N.dtype).sum(dim=1)
        share_N = (count_N >= FEWEST) / count_N.clamp(min=1)
        many = share_N.sum().round()
        return cls(share_N, many, (many > 1) / (many * (many - 1) / 2).clamp(min=1))


def _terms(hidden_BH: Tensor, group_B: Tensor, rows_NF: Tensor, distance: Tensor) -> Tensor:
    """What the pairs of each sample with those of the step, itself among them, add to the penalty, [B]."""
    group_N, hidden_NH = rows_NF[:, 0], rows_NF[:, 1:]
    # Distances are those from a common point, too; far from it their digits would be lost in the squares.
    middle_H = hidden_NH.mean(dim=0)
    hidden_BH, hidden_NH = hidden_BH - middle_H, hidden_NH - middle_H
    squares_BN = hidden_BH.square().sum(dim=1, keepdim=True) + hidden_NH.square().sum(dim=1)
    scaled_BN = (squares_BN - 2 * hidden_BH @ hidden_NH.T).clamp(min=0) / distance.clamp(min=NONE)
    kernel_BN = torch.stack([torch.exp(-gamma * scaled_BN) for gamma in GAMMAS]).sum(dim=0)
    groups, same_BN = Groups.of(group_N), _same(group_B, group_N)
    count_B = same_BN.to(group_N.dtype).sum(dim=1)
    own_B = (groups.many - 1) * (same_BN * kernel_BN).sum(dim=1) / (count_B * (count_B - 1)).clamp(min=1)
    other_B = (~same_BN * groups.share_N * kernel_BN).sum(dim=1) / count_B.clamp(min=1)
    return groups.of_pair * 2 * (count_B >= FEWEST) * (own_B - other_B)


def _same(group_B: Tensor, group_N: Tensor) -> Tensor:
    return group_B.unsqueeze(1) == group_N
