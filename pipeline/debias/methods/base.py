"""What every rule is: a function of the row Gram alone. Shapes: O rows, I columns.

For row r of a parameter the Gram holds `mm = <main_r, main_r>`, `mb = <main_r, bias_r>` and `bb = <bias_r, bias_r>`;
the update is `x_r * main_r + y_r * bias_r`. Nothing else about the gradients is needed, so nothing has to be gathered
when they are sharded.
"""

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# A direction whose squared length is below this share of its parts is cancellation noise of the float64 sums, not a
# direction: float64 rounding leaves about 1e-16, float32 inputs that cancel exactly leave less.
CANCELLED = 1e-12


@dataclass(frozen=True)
class Rule:
    """How two gradients become one update. Subclasses are frozen dataclasses whose fields are the hyper-parameters."""

    name: ClassVar[str]

    def coefficients(self, gram_O3: Tensor) -> tuple[Tensor, Tensor]:
        """`(x_O, y_O)` float64 of the update `x * main + y * bias`, from one parameter's Gram [O, 3] (mm, mb, bb).

        Leading dimensions are parameters of one shape, each by itself: [K, O, 3] gives two [K, O].
        A zero norm drops its term, so the result is finite for every finite Gram; a non-finite Gram gives a
        non-finite result (it must reach the overflow check, not be masked).
        """
        raise NotImplementedError

    @property
    def uses_bias(self) -> bool:
        """False for a rule that never looks at the bias gradient, so that it need not be computed."""
        return True


def divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """`numerator / denominator` (broadcast), 0 where the denominator is exactly 0; NaN and inf pass through."""
    zero = denominator == 0
    return (numerator / denominator.masked_fill(zero, 1.0)).masked_fill(zero, 0.0)


def totals(gram_O3: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The whole tensor's `(mm, mb, bb)`, each [..., 1] float64 so that it broadcasts against rows."""
    mm, mb, bb = gram_O3.sum(dim=-2, keepdim=True).unbind(dim=-1)
    return mm, mb, bb


def each_row(gram_O3: Tensor, value: Tensor | float) -> Tensor:
    """`value` (a number, or [..., 1]) for each row, [..., O] float64."""
    return torch.as_tensor(value, dtype=gram_O3.dtype, device=gram_O3.device).expand(gram_O3.shape[:-1])
