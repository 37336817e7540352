"""What a loss remembers of groups: how often each occurs, and sums over its samples that fade with the steps.

Shapes: B samples, G groups, N training examples, F values of a sample. A memory is a matrix [G, 2 + F] float64: a
group's share of what an epoch sees, how many of its samples were seen, and sums of their values. Nothing here looks at
numbers to decide what to do: a plan traces it without any. Of the step itself (`of_step`) shares are those in the step,
so that a mean over its samples is a mean over groups of means.
"""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

import torch
from torch import Tensor

from debias.config.blocks import WAS
from debias.readouts.said import DONE

NONE = 1e-12  # samples of a group so long ago that nothing is left of them
BEFORE = 0.9  # what is kept of the steps before, once the default
FEWEST = 2  # of a group in a step, or its penalty is left out of the step


def begun(facts: Mapping[str, Tensor], values: int | None = None) -> Tensor:
    """The groups' shares of what an epoch sees [N]; nothing seen of `values` values, or of none that are known."""
    share_G = shares(facts)
    nothing_GF = share_G.new_zeros(len(share_G), 0 if values is None else 1 + values)
    return torch.cat([share_G.unsqueeze(1), nothing_GF], dim=1)


def shares(facts: Mapping[str, Tensor]) -> Tensor:
    """Of the training data as often as an epoch sees it, each group's share [G], float64."""
    seen_G = counted(facts["group"], facts)
    return seen_G / seen_G.sum()


def counted(group_N: Tensor, facts: Mapping[str, Tensor], least: int = 0) -> Tensor:
    """How many samples of each group an epoch sees, on average, float64, of `least` groups or more."""
    return torch.bincount(group_N, weights=facts.get("seen"), minlength=least).double()


def mean_seen(values_N: Tensor, facts: Mapping[str, Tensor]) -> Tensor:
    """The mean of what an epoch sees of a value of each training example."""
    if "seen" not in facts:
        return values_N.mean()
    return (values_N * facts["seen"]).sum() / facts["seen"].sum()


def summed(values_BF: Tensor, group_B: Tensor, groups: int) -> Tensor:
    """As a memory, of a micro-batch: of each group how many samples, the sums of their values, and no share."""
    wide_BF = values_BF.detach().double()
    head_B2 = torch.cat([torch.zeros_like(wide_BF[:, :1]), torch.ones_like(wide_BF[:, :1])], dim=1)
    sums_GF = wide_BF.new_zeros(groups, 2 + wide_BF.shape[1])
    return sums_GF.index_add_(0, group_B, torch.cat([head_B2, wide_BF], dim=1))


def faded(sums_GF: Tensor, memory_GF: Tensor, memory: float) -> Tensor:
    """The memory after a step: what was seen before counts `memory` times, and the step once."""
    if sums_GF.shape[1] == 1:  # of ranks that have seen no sample yet
        return memory_GF
    held_GF = memory_GF[:, 1:] if memory_GF.shape == sums_GF.shape else torch.zeros_like(sums_GF[:, 1:])
    return torch.cat([memory_GF[:, :1], memory * held_GF + sums_GF[:, 1:]], dim=1)


def of_step(sums_GF: Tensor) -> Tensor:
    """The memory that a step makes by itself: of each group its share of the step's samples, how many, and sums."""
    count_G1 = sums_GF[:, 1:2]
    return torch.cat([count_G1 / count_G1.sum().clamp(min=NONE), sums_GF[:, 1:]], dim=1)


def means(memory_GF: Tensor, fewest: float = NONE) -> tuple[Tensor, Tensor]:
    """The mean of each group [G, F], and whether as many samples of it were seen, or more [G]."""
    count_G = memory_GF[:, 1]
    return memory_GF[:, 2:] / count_G.clamp(min=NONE).unsqueeze(1), count_G >= fewest


def off_by_chance(off_BF: Tensor, group_B: Tensor, memory_GF: Tensor) -> Tensor:
    """Of each sample [B], the squared length of `off_BF` over its group's samples less one; 0 in a group of one.

    Of values less their group's mean: what the square of a mean of so few is too large by, on average over the group.
    """
    count_B = memory_GF[:, 1].to(off_BF.dtype)[group_B]
    return (count_B >= FEWEST) * off_BF.square().sum(dim=1) / (count_B - 1).clamp(min=1)


def evened(memory_GF: Tensor) -> Tensor:
    """What a sample of each group counts [G] so that the mean over the training data is a sum over groups of means."""
    return 1 / memory_GF[:, 0].clamp(min=NONE)


def occurring(memory_GF: Tensor) -> Tensor:
    """How many groups occur in the training data: numbers may have gaps."""
    return (memory_GF[:, 0] > 0).sum()


def apart(values_GF: Tensor, seen_G: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over pairs of groups that were seen of `|v_i - v_j|^2`, and its gradient [G, F]; 0 of less than two."""
    seen_G1, groups = seen_G.unsqueeze(1).to(values_GF.dtype), seen_G.sum()
    centre_F = (values_GF * seen_G1).sum(dim=0) / groups.clamp(min=1)
    off_GF = (values_GF - centre_F) * seen_G1
    of_each = groups / (groups * (groups - 1) / 2).clamp(min=1)
    return of_each * off_GF.square().sum(), 2 * of_each * off_GF


def memory_setting() -> Any:
    """The field `memory`: null, statistics of the step itself; or the share of the steps before that each step keeps.

    Runs of versions in which there were the steps before alone, and 0.9 was the default, keep their digests.
    """
    return field(default=None, metadata={WAS: BEFORE})


def check(strength: float, memory: float | None, warmup: float = 0.0) -> None:
    """ValueError, naming the setting, where the strength of a penalty is below 0, or everything is kept."""
    if not 0 <= warmup <= 1:
        raise ValueError(f"warmup is {warmup}, expected 0 to 1, a share of training")
    if strength < 0:
        raise ValueError(f"strength is {strength}, expected 0 or more")
    if memory is not None and not 0 <= memory < 1:
        raise ValueError(f"memory is {memory}, expected 0 or more and less than 1, or null: of the step itself")


def done(facts: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """The share of training that is done, for a `warmup`; ValueError where a batch does not say it."""
    if DONE not in facts:
        raise ValueError("loss.warmup: this batch does not say how much of training is done, the fact 'done'")
    return facts[DONE].to(like.device)
