"""What one optimizer step did: the figures every engine reports, all from sums that the combination needs anyway."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class GramSums:
    """Running float64 sums over the parameters that a rule acts on; scalars on the parameters' device."""

    mm: Tensor | float = 0.0
    mb: Tensor | float = 0.0
    bb: Tensor | float = 0.0
    removed: Tensor | float = 0.0  # |main - update|^2

    def add(self, gram_O3: Tensor, x_O: Tensor, y_O: Tensor) -> None:
        """Add parameters: their Gram [..., O, 3] and the coefficients [..., O] of their update."""
        mm_O, mb_O, bb_O = gram_O3.unbind(dim=-1)
        lost_O = 1 - x_O
        self.mm = self.mm + mm_O.sum()
        self.mb = self.mb + mb_O.sum()
        self.bb = self.bb + bb_O.sum()
        self.removed = self.removed + (lost_O**2 * mm_O - 2 * lost_O * y_O * mb_O + y_O**2 * bb_O).sum()


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


def report(sums: GramSums, scale: float, samples: float, grad_norm: Tensor) -> StepReport:
    """The figures of a step whose sums were taken on gradients that still need the factor `scale`."""
    values = [torch.as_tensor(v, dtype=torch.float64, device=grad_norm.device) for v in vars(sums).values()]
    # One transfer from the device for all figures.
    mm, mb, bb, removed, norm = torch.stack([*values, grad_norm.double()]).tolist()
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
