"""What a loss remembers of groups: how often each occurs, and sums over its samples that fade with the steps.

Shapes: B samples, G groups, N training examples, W sums of a group (the first is how many samples), F = W - 1 of them
without it, S numbers of a loss's memory: G, the G groups' shares of the training data, and G W sums.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

NONE = 1e-12  # samples of a group so long ago that nothing is left of them


def begun(facts: Mapping[str, Tensor]) -> Tensor:
    """How many groups the training data [N] has, and their shares: a memory that has seen no step."""
    count_G = torch.bincount(facts["group"]).double()
    return torch.cat([count_G.new_tensor([len(count_G)]), count_G / count_G.sum()])


def parts(memory_S: Tensor) -> tuple[Tensor, Tensor]:
    """Shares [G], and sums [G, W]; W is 0 before the first step."""
    groups = int(memory_S[0])
    return memory_S[1 : 1 + groups], memory_S[1 + groups :].view(groups, -1)


def summed(values_BF: Tensor, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
    """[S] float64: of each group how many samples, and the sum of their values; nothing where the shares are."""
    share_G, _ = parts(memory_S)
    wide_BF = values_BF.detach().double()
    sums_GW = wide_BF.new_zeros(len(share_G), 1 + wide_BF.shape[1])
    sums_GW.index_add_(0, facts["group"], torch.cat([torch.ones_like(wide_BF[:, :1]), wide_BF], dim=1))
    return torch.cat([sums_GW.new_zeros(1 + len(share_G)), sums_GW.flatten()])


def faded(sums: Tensor, memory_S: Tensor, memory: float) -> Tensor:
    """The memory after a step: what was seen before counts `memory` times, and the step once."""
    share_G, _ = parts(memory_S)
    head = 1 + len(share_G)
    if len(sums) == head:  # of ranks that have seen no sample yet
        return memory_S
    seen = sums[head:]
    held = memory_S[head:] if len(memory_S) == len(sums) else torch.zeros_like(seen)
    return torch.cat([memory_S[:head], memory * held + seen])


def means(memory_S: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each group [G, F], and whether anything of it was seen [G]."""
    _, sums_GW = parts(memory_S)
    count_G = sums_GW[:, 0]
    return sums_GW[:, 1:] / count_G.clamp(min=NONE).unsqueeze(1), count_G > NONE


def evened(memory_S: Tensor) -> Tensor:
    """What a sample of each group counts [G] so that the mean over the training data is a sum over groups of means."""
    share_G, _ = parts(memory_S)
    return 1 / share_G.clamp(min=NONE)


def apart(values_GF: Tensor, seen_G: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over pairs of groups that were seen of `|v_i - v_j|^2`, and its gradient [G, F]; 0 of less than two."""
    shown_GF, groups = values_GF * seen_G.unsqueeze(1), int(seen_G.sum())
    if groups < 2:
        return values_GF.new_zeros(()), torch.zeros_like(values_GF)
    pairs, centre_F = groups * (groups - 1) / 2, shown_GF.sum(dim=0) / groups
    off_GF = (shown_GF - centre_F) * seen_G.unsqueeze(1)
    return groups * off_GF.square().sum() / pairs, 2 * groups * off_GF / pairs


def check_memory(memory: float) -> None:
    """ValueError unless it is 0 or more and less than 1."""
    if not 0 <= memory < 1:
        raise ValueError(f"memory is {memory}, expected 0 or more and less than 1")
