"""Component-wise gradient norm clipping (Yang & Ma, EMNLP 2022, arXiv 2210.10325)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.methods.base import Gram, Rule, Vector, divide, each_row, totals


@dataclass(frozen=True)
class ComponentClip(Rule):
    """The ordinary gradient, each tensor's clipped by its own norm: `main min(1, max_norm / |main|)`.

    Layers and modules converge at different speeds, and one norm for all lets a large gradient of one component hold
    all others back; that one (`max_grad_norm`) is taken afterwards, of the result. The authors' code clips each
    micro-batch's gradient, this one that of the whole step, so that it does not matter how a step is cut; and there a
    fresh head's tensors are clipped too, here with `debias_head: true`. The norm 0.15 is ours: their code has none by
    default, and its script tries 0.01, 0.05, 0.1, 0.5, 1 and 5 (0.15 stands there for an optimizer that clips single
    elements).

    Needs nothing beside the labels. Costs nothing more: no bias gradient is computed. Fails where a shortcut explains
    the labels: it makes fine-tuning steadier over seeds, and does not know what is easy. Under Adam, which scales each
    element by itself, it acts in steps whose gradient is larger than usual, and in no others.

    Source: Yang & Ma, Improving Stability of Fine-Tuning Pretrained Language Models via Component-Wise Gradient Norm
    Clipping, EMNLP 2022, arXiv 2210.10325, and its authors' code.
    """

    name: ClassVar[str] = "component_clip"
    looks_at: ClassVar[tuple[Vector, ...]] = (Vector.MAIN,)
    max_norm: float = 0.15

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if self.max_norm <= 0:
            raise ValueError(f"max_norm is {self.max_norm:g}, expected more than 0")

    def coefficients(self, gram: Gram) -> tuple[Tensor, ...]:
        (mm,) = totals(gram)
        within = mm <= self.max_norm**2
        share = divide(self.max_norm + 0 * mm, mm.sqrt()).masked_fill(within, 1.0)  # what is not finite must be seen
        return (each_row(gram, share),)
