"""CAGrad, conflict-averse gradient descent (Liu et al., NeurIPS 2021, arXiv 2110.14048), for two gradients."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from debias.methods.base import CANCELLED, Gram, Rule, divide, each_row, totals


@dataclass(frozen=True)
class CAGrad(Rule):
    """Of all steps near the average of the two gradients of a tensor, the one that helps the worse served loss most.

        update = argmax over d of min(<main, d>, <bias, d>)   with |d - g_0| <= c |g_0|,   g_0 = (main + bias) / 2
               = g_0 + c |g_0| g_w / |g_w|,   g_w = w main + (1 - w) bias
        w = argmin over [0, 1] of <g_w, g_0> + c |g_0| |g_w|

    (Algorithm 1). For two gradients w has a closed form, which is taken here; the paper searches for it. With `c` 0 the
    update is the average. `form: paper` is the update as above; `code` is that of the authors' programs, divided by
    `1 + c^2`, which Adam does not see and clipping does. The paper takes one w for all shared weights, here each tensor
    has its own.

    Needs a bias weight (`bias_weight`), whose loss is a task like any other. Costs one backward pass in all with
    `gradients: single_pass`, two otherwise. Fails as a debiaser: with or without conflict half of each step is bias's.
    It stands here to be compared with.

    Source: Liu et al., Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021, arXiv 2110.14048.
    """

    name: ClassVar[str] = "cagrad"
    c: float = 0.5
    form: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if not 0 <= self.c < 1:
            raise ValueError(f"c is {self.c:g}, expected 0 or more and less than 1")

    def coefficients(self, gram: Gram) -> tuple[Tensor, Tensor]:
        mm, mb, bb = totals(gram)
        average = (mm + 2 * mb + bb) / 4
        reach = self.c * average.masked_fill(average <= CANCELLED * (mm + bb), 0.0).sqrt()
        w = _share_of_main(mm, mb, bb, reach)
        length = (w * w * mm + 2 * w * (1 - w) * mb + (1 - w) * (1 - w) * bb).clamp(min=0.0).sqrt()
        more = divide(reach, length) + 0 * average  # what is not finite must be seen, not masked
        whole = 1 + self.c * self.c if self.form == "code" else 1.0
        return each_row(gram, (0.5 + more * w) / whole), each_row(gram, (0.5 + more * (1 - w)) / whole)


def _share_of_main(mm: Tensor, mb: Tensor, bb: Tensor, reach: Tensor) -> Tensor:
    """The w of [0, 1] where `<g_w, g_0> + reach |g_w|` is smallest.

    Along the line of g_w, at a distance of t steps `u = main - bias` from the foot of its perpendicular from 0, that is
    `slope t + reach sqrt(uu t^2 + hh)` and a constant: convex, with its least value where its derivative is 0, or at
    the end that the slope points to where the slope is the steeper of the two.
    """
    uu = mm - 2 * mb + bb
    uu = uu.masked_fill(uu <= CANCELLED * (mm + bb), 0.0)
    slope = (mm - bb) / 2
    hh = divide(mm * bb - mb * mb, uu).clamp(min=0.0)
    curved = uu * reach * reach - slope * slope
    t = -slope * (divide(hh, uu * curved.clamp(min=0.0))).sqrt()
    inside = (t + divide(bb - mb, uu)).clamp(0.0, 1.0)
    return torch.where(curved > 0, inside, (slope < 0).to(slope.dtype))
