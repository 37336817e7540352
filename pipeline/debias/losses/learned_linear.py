"""A linear function of hidden states that a loss learns by itself, `w h + c`, with Adam of its own.

Shapes: B samples, H hidden columns, S numbers of a loss's memory: V = H + 1 weights, two moments of each and a count.
"""

import torch
from torch import Tensor

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # Adam's, as published


def score(hidden_BH: Tensor, memory_S: Tensor) -> Tensor:
    """`w h + c` [B], of the dtype of the hidden states; 0 before the first step, where the memory is empty."""
    if not memory_S.numel():
        return hidden_BH.new_zeros(len(hidden_BH))
    weights_V = memory_S[: hidden_BH.shape[1] + 1].to(hidden_BH.dtype)
    return hidden_BH @ weights_V[:-1] + weights_V[-1]


def summed(slope_B: Tensor, hidden_BH: Tensor) -> Tensor:
    """What `step` needs of a micro-batch: S numbers, first the gradient by w and c of a loss summed over its samples.

    `slope_B`: of each sample's loss by its score. The last number is how many samples there are.
    """
    slope_B, hidden_BH = slope_B.detach().double(), hidden_BH.detach().double()
    by_weights_V = torch.cat([slope_B @ hidden_BH, slope_B.sum().reshape(1)])
    moments = by_weights_V.new_zeros(2 * len(by_weights_V))
    return torch.cat([by_weights_V, moments, moments.new_tensor([len(slope_B)])])


def step(sums: Tensor, memory_S: Tensor, step_size: float) -> Tensor:
    """The memory after one step of Adam down the mean loss; as it was where nothing was seen."""
    if not sums.numel() or not sums[-1]:
        return memory_S
    memory_S = memory_S if memory_S.numel() else torch.zeros_like(sums)
    size, count = (len(sums) - 1) // 3, memory_S[-1] + 1
    weights_V, first_V, second_V = memory_S[:-1].split(size)
    gradient_V = sums[:size] / sums[-1]
    first_V = BETA1 * first_V + (1 - BETA1) * gradient_V
    second_V = BETA2 * second_V + (1 - BETA2) * gradient_V**2
    length_V = (second_V / (1 - BETA2**count)).sqrt() + EPSILON
    weights_V = weights_V - step_size * first_V / (1 - BETA1**count) / length_V
    return torch.cat([weights_V, first_V, second_V, count.reshape(1)])
