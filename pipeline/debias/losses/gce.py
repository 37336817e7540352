"""Generalized cross-entropy (Zhang & Sabuncu, NeurIPS 2018, arXiv 1805.07836)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.base import Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class GCE(Loss):
    """`(1 - p(y)^q) / q`: of a sample the gradient of cross-entropy times `p(y)^q`, so that what is easy counts more.

    Between cross-entropy (`q` near 0) and `1 - p(y)` (at 1). It was made for wrong labels, which it hardly follows; on
    clean data it favours what is learned first, and so makes a model lean on a shortcut: not for the run itself, but
    for a first stage that is to be biased (`first_stage: {keep: log_p, settings: {loss: gce}}`), as in LfF.

    Needs nothing; answers of a causal model may have any length, whose p is their product. Costs nothing. Fails where
    hard samples matter: they are left alone, the more the larger `q` is.

    Source: Zhang & Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels, NeurIPS
    2018, arXiv 1805.07836; to make a biased model of Nam et al., NeurIPS 2020, arXiv 2007.02561.
    """

    name: ClassVar[str] = "gce"
    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise ValueError(f"q is {self.q}, expected above 0 and up to 1")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        return -torch.expm1(self.q * said.log_p_B) / self.q
