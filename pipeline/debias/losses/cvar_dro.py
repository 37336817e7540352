"""CVaR DRO: the mean of the largest losses, by its dual (Levy et al., NeurIPS 2020). Shapes: B samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.base import Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class CVaRDRO(Loss):
    """`eta + max(loss - eta, 0) / alpha`: only samples worse than a threshold count, and that is learned too.

    The mean over samples, at the best eta, is the mean of the worst share `alpha` of the losses (conditional value at
    risk), the worst distribution that gives no sample more than `1 / alpha` times its weight; eta is then the smallest
    of those. After each step eta descends by its own derivative: `eta -= step_size (1 - share above eta / alpha)`, from
    0. The losses of a step see the eta that the steps before it left, so that they do not depend on how the step is cut
    into micro-batches and ranks: the dual form. The form of the paper's batches, which sorts the losses of one batch,
    would.

    Needs no groups and nothing beside the labels. Costs nothing more; samples below eta are computed for nothing. Fails
    where the worst samples are mislabelled, and where every loss goes to 0, for then there is no worse one. While eta
    is low, at first, losses are `1 / alpha` times those of cross-entropy: clip gradients.

    Source: Levy et al., Large-Scale Methods for Distributionally Robust Optimization, NeurIPS 2020, arXiv 2010.05893;
    the dual is that of Rockafellar & Uryasev, Optimization of conditional value-at-risk, Journal of Risk 2000.
    """

    name: ClassVar[str] = "cvar_dro"
    learns: ClassVar[bool] = True
    alpha: float = 0.1
    step_size: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, expected a share above 0 and up to 1")
        if self.step_size < 0:
            raise ValueError(f"step_size is {self.step_size}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        eta = memory_S[0].to(said.log_p_B.dtype)
        return eta + (-said.log_p_B - eta).clamp(min=0) / self.alpha

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """Eta, and a place for the second of `sums`."""
        return torch.zeros(2, dtype=torch.float64)

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """How many samples are above eta, and how many there are."""
        above_B = -said.log_p_B.detach().double() > memory_S[0]
        return torch.stack([above_B.sum(), torch.tensor(len(above_B), device=above_B.device)]).double()

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """One step of eta down its derivative."""
        above, count = sums
        slope = 1 - above / (self.alpha * count.clamp(min=1))
        return torch.stack([memory_S[0] - self.step_size * slope * (count > 0), memory_S[1]])
