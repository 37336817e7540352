"""The weight that makes a loss favour what is easy, apart from who says what is easy. Shapes: B samples, C labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from debias.readouts.said import Said

Form = Literal["gce", "confidence", "balanced"]


def gce_weight(log_p_B: Tensor, q: float = 0.7) -> Tensor:
    """Generalized cross-entropy's weight of each sample's cross-entropy, `q * p^q`, [B] float32, detached.

    `log_p_B` is the log-probability of the right answer. The factor q is the form of LfF (Nam et al., NeurIPS 2020) and
    of EDGE (Li et al., CCL 2025); the gradient of GCE itself (Zhang & Sabuncu, NeurIPS 2018) lacks it.
    """
    return q * torch.exp(q * log_p_B.detach().float())


def confidence_weight(log_p_B: Tensor) -> Tensor:
    """The probability of the right answer itself, [B] float32, detached."""
    return torch.exp(log_p_B.detach().float())


def balanced_weight(log_p_BC: Tensor, labels_B: Tensor) -> Tensor:
    """`1 - h / p(y)` with `1 / h = sum_c 1 / p(c)`, [B] float32 in [0, 1), detached.

    What it leaves of a sample, `h / p(y)`, leaves every label the same mass under `p` (generalised overlap weights, Li
    & Li, Annals of Applied Statistics 2019); `1 - p(y)` does so for two labels alone.
    """
    wide_BC = log_p_BC.detach().double()
    log_h_B = -torch.logsumexp(-wide_BC, dim=1)
    own_B = wide_BC.gather(1, labels_B.unsqueeze(1)).squeeze(1)
    return (1 - torch.exp(log_h_B - own_B)).clamp(min=0).float()


class BiasWeightSource(Protocol):
    """Where bias weights come from. A seam of its own: rules and gradients never know which source is in use."""

    def __call__(self, said: Said, facts: Mapping[str, Tensor]) -> Tensor:
        """The weight [B] of each sample of this batch, detached."""


@dataclass(frozen=True)
class ModelWeight:
    """The weight made of a bias model's log-probabilities, the fact `bias_log_p` [B, C]."""

    form: Form = "gce"
    q: float = 0.7

    def __call__(self, said: Said, facts: Mapping[str, Tensor]) -> Tensor:
        log_p_BC, labels_B = facts["bias_log_p"], facts["labels"]
        if self.form == "balanced":
            return balanced_weight(log_p_BC, labels_B)
        log_p_B = log_p_BC.gather(1, labels_B.unsqueeze(1)).squeeze(1)
        return gce_weight(log_p_B, self.q) if self.form == "gce" else confidence_weight(log_p_B)
