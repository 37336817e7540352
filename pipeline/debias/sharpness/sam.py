"""Sharpness-aware minimization (Foret et al., ICLR 2021, arXiv 2010.01412)."""

from dataclasses import dataclass
from typing import ClassVar

from debias.sharpness.base import Sharpness


@dataclass(frozen=True)
class SAM(Sharpness):
    """The gradients of a step are taken where the loss of the same samples is higher: at `w + rho g / |g|`.

    `g` is the gradient of the run's loss at the weights `w`, of all that trains together (equation 2, p = 2); both
    gradients of the rule are then taken at the moved weights, the weights put back, and the rule and the optimizer
    work as ever. So it goes with every rule, loss, bias weight and adapter. `rho` is 0.05 in the paper; 0.02 to 0.2 are
    tried.

    Each micro-batch of each rank has a `g` of its own, as each accelerator of the paper has (its section 4.1): how a
    step is cut changes what is trained, on purpose, for the paper finds smaller parts to generalise better (m-
    sharpness). Both passes of a micro-batch see the same dropout: else `g` would be the slope of another function. What
    a loss learns (the weights of groups) it learns from the first pass; the loss in the log is that at the weights.

    Needs what is trained to be whole on each rank (one process, or DistributedDataParallel). Costs a second forward and
    backward pass in each micro-batch, twice the time of a step, and one copy of what trains. Fails where the loss is
    flat already, and knows nothing of shortcuts: a flat minimum may be the shortcut's. The ball lies in the parameters:
    with LoRA around A and B, not around their product, and while B is zero only B moves. With `rho` too large it does
    not learn.

    Source: Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021, arXiv
    2010.01412.
    """

    name: ClassVar[str] = "sam"
