"""What every row is: from weights and their gradients, how far to move before the gradients of a step are taken."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sharpness:
    """The way up from the weights: `rho T^2 g / |T g|` of gradient g, all tensors together, T a scale of each element.

    That is the largest first-order growth of the loss among moves e with `|e / T| <= rho`. Subclasses are frozen
    dataclasses whose fields are the settings of the `sharpness:` block. `rho`: the radius; at 0 nothing moves.
    """

    name: ClassVar[str]
    rho: float = 0.05

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if self.rho < 0:
            raise ValueError(f"rho is {self.rho:g}, expected 0 or more")

    def scale(self, name: str, weight: Tensor) -> Tensor | None:
        """T of the elements of the parameter `name`, None where it is 1 for all."""
        return None

    def moves(self, weights: Mapping[str, Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """How far each tensor moves, in the order of `weights`; made in the memory of `gradients`, which are used up.

        An empty list where there is no way up: all gradients are zero, or they are not finite (what has to be found by
        whoever checks the step must not become a step of its own).
        """
        scales = [self.scale(name, weight) for name, weight in weights.items()]
        scaled = [(g, T) for g, T in zip(gradients, scales, strict=True) if T is not None]
        for g, T in scaled:
            g.mul_(T)
        length = norm(gradients)
        if not math.isfinite(length) or length == 0.0:
            return []
        # Divided first: rho / length leaves float32 where gradients are tiny, and length does not.
        found = list(gradients)
        torch._foreach_div_(found, length)
        torch._foreach_mul_(found, self.rho)
        for g, T in scaled:
            g.mul_(T)
        return found


def norm(tensors: Sequence[Tensor]) -> float:
    """The Frobenius norm of all together, from float64 sums; 0 of none."""
    if not tensors:
        return 0.0
    first = tensors[0].device
    lengths = [torch.linalg.vector_norm(tensor, dtype=torch.float64).to(first) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(lengths)))
