"""PCGrad, gradient surgery (Yu et al., NeurIPS 2020, arXiv 2001.06782), for two gradients."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from debias.methods.base import Gram, Rule, divide, each_row, totals


@dataclass(frozen=True)
class PCGrad(Rule):
    """Where the two gradients of a tensor conflict (`<main, bias> < 0`), project each off the other (Algorithm 1).

    `keep="both"` is the published update, the sum of the two projected gradients, in which `bias` is a task like any
    other; `keep="main"` keeps only the projected main gradient, which never follows bias. The two differ wherever bias
    is not zero, so the name of the setting goes into every report.

    Needs a bias weight (`bias_weight`). Costs one backward pass in all with `gradients: single_pass`, two otherwise.
    Fails where the gradients do not conflict, as where both follow the shortcut: `both` then trains on the bias too,
    and `main` is plain training.

    Source: Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, arXiv 2001.06782.
    """

    name: ClassVar[str] = "pcgrad"
    keep: Literal["both", "main"] = "both"

    def coefficients(self, gram: Gram) -> tuple[Tensor, Tensor]:
        mm, mb, bb = totals(gram)
        conflict = torch.clamp(mb, max=0.0)
        off_bias = -divide(conflict, bb)  # main loses this much bias
        if self.keep == "main":
            return each_row(gram, 1.0), each_row(gram, off_bias)
        return each_row(gram, 1 - divide(conflict, mm)), each_row(gram, 1 + off_bias)
