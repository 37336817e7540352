"""MGDA, the multiple-gradient descent algorithm (Désidéri 2012; Sener & Koltun, NeurIPS 2018), for two gradients."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.methods.base import CANCELLED, Gram, Rule, divide, each_row, totals


@dataclass(frozen=True)
class MGDA(Rule):
    """The shortest vector between the two gradients of a tensor: the step that makes neither loss larger.

        update = gamma main + (1 - gamma) bias
        gamma = <bias - main, bias> / |main - bias|^2,   at least 0 and at most 1

    Its inner product with each gradient is `|update|^2` or more (Sener & Koltun, Algorithm 1). Where one gradient is
    short and the other does not conflict with it, the update is the short one; where one is zero so is the update, for
    then nothing makes both losses smaller. Where the two are equal it is main. The paper takes one gamma for all shared
    weights, here each tensor has its own; its authors' code stops at shares of 0.001 and 0.999.

    Needs a bias weight (`bias_weight`), whose loss is a task like any other. Costs one backward pass in all with
    `gradients: single_pass`, two otherwise. Fails as a debiaser where the gradients agree: what it follows is then the
    shorter one, which may be that of the bias; and steps shrink as the two come to conflict.

    Source: Sener & Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018, arXiv 1810.04650, after
    Désidéri, Multiple-gradient descent algorithm, Comptes Rendus Mathématique 2012.
    """

    name: ClassVar[str] = "mgda"

    def coefficients(self, gram: Gram) -> tuple[Tensor, Tensor]:
        mm, mb, bb = totals(gram)
        apart = mm - 2 * mb + bb
        equal = apart <= CANCELLED * (mm + bb)
        gamma = divide(bb - mb, apart.masked_fill(equal, 0.0)).clamp(0.0, 1.0).masked_fill(equal, 1.0)
        gamma = gamma + 0 * apart  # what is not finite must be seen, not masked
        return each_row(gram, gamma), each_row(gram, 1 - gamma)
