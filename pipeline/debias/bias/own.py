"""The model's own confidence as the bias signal (EDGE as published, LfF). Shapes: B samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from debias.readouts.said import SampleLosses


def gce_weight(log_p_B: Tensor, q: float = 0.7) -> Tensor:
    """Generalized cross-entropy's weight of each sample's cross-entropy, `q * p^q`, [B] float32, detached.

    `log_p_B` is the log-probability of the right answer. The factor q is the form of LfF (Nam et al., NeurIPS 2020) and
    of EDGE (Li et al., CCL 2025); the gradient of GCE itself (Zhang & Sabuncu, NeurIPS 2018) lacks it.
    """
    return q * torch.exp(q * log_p_B.detach().float())


@dataclass(frozen=True)
class SelfWeight:
    """The model's own confidence: `q * p^q` of the forward pass that made `losses`."""

    q: float = 0.7

    def __call__(self, losses: SampleLosses, batch: Mapping[str, Any]) -> Tensor:
        return gce_weight(losses.log_p_B, self.q)
