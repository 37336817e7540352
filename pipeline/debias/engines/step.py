"""What one optimizer step did: the figures every engine reports, all from sums that the combination needs anyway."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class NonFiniteGradients(RuntimeError):
    """More steps than allowed were skipped because their gradients were not finite."""


def check_skipped(skipped: int, allowed: int) -> None:
    """Log a skipped step; NonFiniteGradients if there were more than `allowed`."""
    logger.warning("gradients are not finite: step skipped (%d so far)", skipped)
    if skipped > allowed:
        raise NonFiniteGradients(
            f"{skipped} steps had non-finite gradients, more than max_nonfinite_steps={allowed};"
            " lower the learning rate, or train in bf16 or fp32 instead of fp16"
        )


def raise_silent(gradients: str, names: Sequence[str]) -> None:
    """A selected parameter with one gradient and not the other was used where the gradient source cannot see it."""
    if names:
        raise RuntimeError(
            f"{gradients}: {names[0]} got a main gradient and no bias gradient (its layer's weight was used without"
            " calling the layer); use gradients='shared_forward'"
        )


@dataclass
class GramSums:
    """Running float64 sums over the parameters that a rule acts on; scalars on the parameters' device."""

    mm: Tensor | float = 0.0
    mb: Tensor | float = 0.0
    bb: Tensor | float = 0.0
    removed: Tensor | float = 0.0  # |main - update|^2
    update: Tensor | float = 0.0  # |update|^2

    def add(self, gram_O3: Tensor, x_O: Tensor, y_O: Tensor) -> None:
        """Add parameters: their Gram [..., O, 3] and the coefficients [..., O] of their update."""
        mm_O, mb_O, bb_O = (side.reshape(-1) for side in gram_O3.unbind(dim=-1))
        x_O, y_O = x_O.reshape(-1), y_O.reshape(-1)
        lost_O = 1 - x_O
        self.mm = self.mm + mm_O.sum()
        self.mb = self.mb + mb_O.sum()
        self.bb = self.bb + bb_O.sum()
        # |x main + y bias|^2 over all rows, as dot products: a third less time than with a tensor for each term.
        cross_O, rest = y_O * mb_O, torch.dot(y_O * y_O, bb_O)
        self.removed = self.removed + torch.dot(lost_O * lost_O, mm_O) - 2 * torch.dot(lost_O, cross_O) + rest
        self.update = self.update + torch.dot(x_O * x_O, mm_O) + 2 * torch.dot(x_O, cross_O) + rest


@dataclass(frozen=True)
class StepReport:
    """One optimizer step. Norms are Frobenius norms over everything the rule acts on, of means over the whole batch.

    `cosine`: between main and bias. `removed_share`: |main - update| / |main|. `grad_norm`: of the update of all
    trainable parameters, before clipping. `finite`: False when the step was skipped.
    """

    finite: bool
    samples: float
    main_norm: float
    bias_norm: float
    cosine: float
    removed_share: float
    grad_norm: float


def report(
    sums: GramSums, scale: float, samples: float, *, grad_norm: Tensor | None = None, others: float = 0.0
) -> StepReport:
    """The figures of a step whose sums were taken on gradients that still need the factor `scale`.

    `grad_norm` as measured on the update itself; without it, of the sums and of `others`, the squared norm of what
    trains beside them, in the same units.
    """
    device = next((v.device for v in vars(sums).values() if isinstance(v, Tensor)), torch.device("cpu"))
    device = device if grad_norm is None else grad_norm.device
    values = [torch.as_tensor(v, dtype=torch.float64, device=device) for v in vars(sums).values()]
    if grad_norm is None:
        # Rounding may leave less than nothing of an update that cancels; NaN and inf must stay what they are.
        whole = values[-1] + others
        grad_norm = torch.where(whole < 0, 0.0, whole).sqrt() * abs(scale)
    # One transfer from the device for all figures.
    mm, mb, bb, removed, _, norm = torch.stack([*values, grad_norm.double()]).tolist()
    main, bias = abs(mm) ** 0.5, abs(bb) ** 0.5
    return StepReport(
        finite=math.isfinite(norm),
        samples=samples,
        main_norm=main * scale,
        bias_norm=bias * scale,
        cosine=mb / (main * bias) if main and bias else 0.0,
        removed_share=max(removed, 0.0) ** 0.5 / main if main else 0.0,
        grad_norm=norm,
    )
