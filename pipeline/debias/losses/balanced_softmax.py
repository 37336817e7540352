"""Balanced softmax (Ren et al., NeurIPS 2020, arXiv 2007.10740). Shapes: B samples, C labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.base import EVERY_LABEL, Loss
from debias.losses.class_weights import log_counts
from debias.readouts.said import Said


@dataclass(frozen=True)
class BalancedSoftmax(Loss):
    """Cross-entropy of `log p + log n`, with n how often an epoch sees each label.

    How frequent a label is need not be learned then: the model's own answers are those of evenly distributed labels. It
    is `logit_correction` with a bias model that knows nothing but the labels' frequencies. Needs nothing beside the
    labels, and of a causal model answers of one token. Costs nothing more. Fails where the labels are balanced: it is
    cross-entropy then, and no shortcut of the inputs is corrected.

    Source: Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition, NeurIPS 2020, arXiv 2007.10740 (its
    loss, without the meta sampler).
    """

    name: ClassVar[str] = "balanced_softmax"
    reads: ClassVar[frozenset[str]] = frozenset({EVERY_LABEL})

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        assert said.log_p_BC is not None
        missing = said.log_p_BC.shape[1] - len(memory_S)  # labels that do not occur: as if each did once
        log_n_C = torch.nn.functional.pad(memory_S, (0, missing)).to(said.log_p_BC.dtype)
        shifted_BC = torch.log_softmax(said.log_p_BC + log_n_C, dim=-1)
        return -shifted_BC.gather(1, facts["labels"].unsqueeze(1)).squeeze(1)

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """`log n` of the labels up to the last that occurs, one that does not as if it did once."""
        return log_counts(facts)
