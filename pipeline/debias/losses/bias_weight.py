"""The weight that makes a loss favour what is easy. Shapes: B samples."""

import torch
from torch import Tensor


def gce_weight(log_p_B: Tensor, q: float = 0.7) -> Tensor:
    """Generalized cross-entropy's weight of each sample's cross-entropy, `q * p^q`, [B] float32, detached.

    `log_p_B` is the log-probability of the right answer. The factor q is the form of LfF (Nam et al., NeurIPS 2020) and
    of EDGE (Li et al., CCL 2025); the gradient of GCE itself (Zhang & Sabuncu, NeurIPS 2018) lacks it.
    """
    return q * torch.exp(q * log_p_B.detach().float())
