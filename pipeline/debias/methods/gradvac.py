"""Gradient Vaccine (Wang et al., ICLR 2021, arXiv 2010.05874), for two gradients."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.methods.base import CANCELLED, Gram, Rule, StepFacts, divide, each_row, totals


@dataclass(frozen=True)
class GradVac(Rule):
    """Bring the two gradients of a tensor to the cosine they have had on average, wherever it is smaller (Algorithm 1).

    With `phi` the cosine of main and bias in this step, and `target` its moving average over the steps before:

        update = main' + bias'
        main' = main + |main|/|bias| (target sqrt(1 - phi^2) / sqrt(1 - target^2) - phi) bias   where phi < target
        target_(t+1) = (1 - beta) target_t + beta phi_t,   target_1 = 0

    and bias' the same with the two changed about; elsewhere both stay. The cosine of main' and bias, and of bias' and
    main, is then `target` exactly. With `beta` 0 the target stays 0, and the update is that of `pcgrad`. A gradient of
    zero has the cosine 0.

    Needs a bias weight (`bias_weight`), whose loss is a task like any other. Costs one backward pass in all with
    `gradients: single_pass`, two otherwise, and one number a tensor. Fails as a debiaser by design: it makes the two
    gradients agree more than they do, and trains on the bias too. It stands here to be compared with.

    Source: Wang et al., Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively Multilingual
    Models, ICLR 2021, arXiv 2010.05874.
    """

    name: ClassVar[str] = "gradvac"
    memory: ClassVar[int] = 1
    reads_rate: ClassVar[bool] = False
    beta: float = 0.01

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is {self.beta:g}, expected 0 or more and less than 1")

    def advance(self, gram: Gram, memory_S: Tensor, step: StepFacts) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Rule.advance`."""
        main, both, bias = totals(gram)
        main_norm, bias_norm = main.sqrt(), bias.sqrt()
        target = memory_S
        phi = divide(both, main_norm * bias_norm).clamp(-1.0, 1.0)
        lean = divide(target * _sine(phi), _sine(target)) - phi
        lean = torch.where(phi < target, lean, 0.0) + 0 * phi  # what is not finite must be seen, not masked
        x = 1 + lean * divide(bias_norm, main_norm)
        y = 1 + lean * divide(main_norm, bias_norm)
        after_S = (1 - self.beta) * target + self.beta * phi
        return (each_row(gram, x), each_row(gram, y)), after_S


def _sine(cosine: Tensor) -> Tensor:
    """`sqrt(1 - cosine^2)`; 0 where that is the rounding of a cosine of 1 or -1."""
    square = 1 - cosine * cosine
    return square.masked_fill(square <= CANCELLED, 0.0).sqrt()
