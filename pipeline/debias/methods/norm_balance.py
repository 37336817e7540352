"""Norm balance: easy and hard samples pull with the same strength on each tensor. Shapes: O rows."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.methods.base import CANCELLED, Gram, Rule, divide, each_row, totals


@dataclass(frozen=True)
class NormBalance(Rule):
    """`|main| (u_b + u_c) / 2` with the unit vectors of `bias` and of the rest of main, `main - bias`.

    With a bias weight of 0 to 1, `bias` is the part of `main` that comes from samples the bias model explains, and
    `main - bias` that of all others: the update goes where EDGE's shared direction of these two lies, tensor by tensor,
    however much longer one of them is. Where either is zero (or the rest is what rounding leaves of two equal ones)
    there is nothing to balance, and the update is main.

    Needs a bias weight from 0 to 1 that is large where the shortcut decides (`bias_weight: {source: bias_model, form:
    confidence}`), and a loss that corrects for it (`logit_correction`): on plain cross-entropy it is weak. Costs one
    backward pass in all with `gradients: single_pass`, two otherwise. Fails where one part is noise: it is made as long
    as the other.

    Source: no paper of its own; after the shared direction of Li et al., EDGE, CCL 2025, 2025.ccl-1.68, taken between
    easy and hard samples in the place of main and bias.
    """

    name: ClassVar[str] = "norm_balance"

    def coefficients(self, gram: Gram) -> tuple[Tensor, Tensor]:
        mm, mb, bb = totals(gram)
        left = mm - 2 * mb + bb
        cc = left.masked_fill(left <= CANCELLED * (mm + bb), 0.0)
        alone = (bb == 0) | (cc == 0)
        half = mm.sqrt() / 2
        of_bias, of_rest = divide(half, bb.sqrt()), divide(half, cc.sqrt())
        x = of_rest.masked_fill(alone, 1.0) + 0 * left  # what is not finite must be seen, not masked
        y = (of_bias - of_rest).masked_fill(alone, 0.0)
        return each_row(gram, x), each_row(gram, y)
