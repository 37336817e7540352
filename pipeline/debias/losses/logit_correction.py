"""Logit correction: a product of experts with a bias model that is given (Clark et al., EMNLP 2019, arXiv 1909.03683).

Shapes: B samples, C labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.base import EVERY_LABEL, Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class LogitCorrection(Loss):
    """Cross-entropy of `log p + tau log p_b` over the labels: what the bias model explains need not be learned.

    At `tau` 1 the bias product (Clark et al.), or logit adjustment of each sample (Menon et al., ICLR 2021, arXiv
    2007.07314): its gradient is that of cross-entropy, less what the bias model says already. At 0 it is cross-entropy
    over the labels. Needs a bias model (`bias_model`, or a first stage that keeps `log_p`), and of a causal model
    answers of one token. Costs its fit. Fails where the bias model holds honest signal too: that is left unlearned, and
    a smaller `tau` leaves less of it so.

    Source: Clark et al., Don't Take the Easy Way Out: Ensemble Based Methods for Avoiding Known Dataset Biases, EMNLP
    2019, arXiv 1909.03683.
    """

    name: ClassVar[str] = "logit_correction"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p", EVERY_LABEL})
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.tau < 0:
            raise ValueError(f"tau is {self.tau}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        assert said.log_p_BC is not None
        corrected_BC = said.log_p_BC + self.tau * facts["bias_log_p"].to(said.log_p_BC.dtype)
        log_p_BC = torch.log_softmax(corrected_BC, dim=-1)
        return -log_p_BC.gather(1, facts["labels"].unsqueeze(1)).squeeze(1)
