"""DiGraP: Directional Gradient Projection for robust fine-tuning (Huang et al., ICLR 2025, arXiv 2502.15895)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.methods.base import CANCELLED, Gram, Rule, StepFacts, Vector, divide, each_row, totals

EPS = 1e-8  # Adam's own, torch's default: keeps a slope of rounding size from being a whole step


@dataclass(frozen=True)
class DiGraP(Rule):
    """Where the update leads away from the weights it started from, take a learnt share of that direction out of it.

    Tensor by tensor, with `g` the main gradient and `m = theta - theta_0`:

        proj_t = (<g_t, m_t> / |m_t|^2) m_t
        omega_t = clip(Adam(omega_(t-1), slope_t, mu), 0, 1),   omega_1 = 0
        update = g_t - omega_t proj_t   where <g_t, m_t> < 0, else g_t

    The step before moved the weights by `lr_(t-1) omega proj_(t-1)` more than the gradient alone would, so the loss's
    derivative by omega is `<g_t, lr_(t-1) proj_(t-1)>`: the hypergradient that Adam descends, with step size `mu` and
    `beta1`, `beta2`. The paper normalises it; here, one number a tensor, that is the cosine of the two vectors (each
    scaled to length 1, 0 where one of them is zero). The learning rate therefore only matters where it is 0, in the
    first step of a warm-up, whose projection moved nothing. The sign of the condition is lost in print; this is the
    one of both prototypes by the authors, and the only one under which the projection holds weights back.

    Adam counts the steps of a tensor from its second on: in the first there is no step before. For LoRA theta_0 is B
    at 0 and A at its drawn values. The bias gradient is not looked at: an ordinary backward pass is enough.

    Needs a starting point worth staying near (pretrained weights), and no labels of the bias. Costs two float32 copies
    of what it acts on, and no second gradient. Fails where the start itself has the shortcut: it knows of distance, not
    of bias.

    Source: Huang et al., Directional Gradient Projection for Robust Fine-Tuning of Foundation Models, ICLR 2025, arXiv
    2502.15895.
    """

    name: ClassVar[str] = "digrap"
    looks_at: ClassVar[tuple[Vector, ...]] = (Vector.MAIN, Vector.MOVED, Vector.MOVED_BEFORE)
    # Steps taken, omega, Adam's two moments, and what lr * proj was as a multiple of `moved`.
    memory: ClassVar[int] = 5
    mu: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if self.mu < 0:
            raise ValueError(f"mu is {self.mu:g}, expected 0 or more")
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"{name} is {beta:g}, expected 0 or more and less than 1")

    def advance(self, gram: Gram, memory_S: Tensor, step: StepFacts) -> tuple[tuple[Tensor, ...], Tensor]:
        """See `Rule.advance`; the Gram of (main, moved, moved before) has six columns."""
        gg, gm, gb, mm, _, bb = (product.squeeze(-1) for product in totals(gram))
        taken, omega, mean, square, reach = memory_S.unbind(dim=-1)
        slope = divide(reach.sign() * gb, gg.sqrt() * bb.sqrt())
        mean, square = self._blend(mean, slope, self.beta1), self._blend(square, slope * slope, self.beta2)
        # Both moments are 0 in a tensor's first step, and so is what `divide` makes of them.
        spread = divide(square, 1 - self.beta2**taken).sqrt()
        omega = (omega - self.mu * divide(mean, 1 - self.beta1**taken) / (spread + EPS)).clamp(0.0, 1.0)
        along = divide(gm, mm)
        # Of a cosine that is nothing but rounding the sign would depend on the order of summation.
        certain = gm.abs() > CANCELLED * gg.sqrt() * mm.sqrt()
        reach = step.learning_rate * along * certain
        taken_out = (omega * along.clamp(max=0.0)).unsqueeze(-1)
        coefficients = (each_row(gram, 1.0), each_row(gram, -taken_out), each_row(gram, 0.0))
        return coefficients, torch.stack([taken + 1, omega, mean, square, reach], dim=-1)

    @staticmethod
    def _blend(before: Tensor, now: Tensor, beta: float) -> Tensor:
        return beta * before + (1 - beta) * now
