"""Logit correction: a product of experts with a bias model that is given (Clark et al., EMNLP 2019, arXiv 1909.03683).

Shapes: B samples, C labels, N training examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from debias.losses.base import EVERY_LABEL, Loss
from debias.losses.group_sums import mean_seen
from debias.readouts.said import DONE, Said

CLIP = 20.0


@dataclass(frozen=True)
class LogitCorrection(Loss):
    """Cross-entropy of `log p + tau log p_b` over the labels: what the bias model explains need not be learned.

    At `tau` 1 the bias product (Clark et al.), or logit adjustment of each sample (Menon et al., ICLR 2021, arXiv
    2007.07314): its gradient is that of cross-entropy, less what the bias model says already. At 0, without the options
    below, it is the loss `cross_entropy` itself (of a causal model over all tokens). Needs a bias model (`bias_model`,
    or a first stage that keeps `log_p`), and of a causal model answers of one token. Costs its fit. Fails where the
    bias model holds honest signal too: that is left unlearned, and a smaller `tau` leaves less of it so.

    - `tau_end`: tau goes there in a straight line over training (annealing, Utama et al., EMNLP 2020, from 1 to 0.8).
    - `cross_entropy`: so much of plain cross-entropy over the labels is added (0.3 in Bias Experts, Jeon et al., 2023).
    - `weights`: what a tau below 1 leaves uncorrected is made up for by weights `(pi(y) / p_b(y))^(1 - tau)`, at most
      `clip`, of mean 1 over what an epoch sees. If the bias model's feature and the honest one are independent given
      the label, every tau then has one optimum, `log P(honest | y) + log pi(y)`; weights cost effective samples,
      correction fades once logits are large.
    - `prior`: pi, `uniform` over the labels or as the training data has them (`labels`). It is that of the bias model's
      answers, whatever the run's order sees: beside an order that evens labels out, `labels` corrects them once.

    Source: Clark et al., Don't Take the Easy Way Out: Ensemble Based Methods for Avoiding Known Dataset Biases, EMNLP
    2019, arXiv 1909.03683; the weights are ours.
    """

    name: ClassVar[str] = "logit_correction"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p", EVERY_LABEL})
    tau: float = 1.0
    tau_end: float | None = None
    cross_entropy: float = 0.0
    weights: bool = False
    clip: float = CLIP
    prior: Literal["uniform", "labels"] = "uniform"

    def __post_init__(self) -> None:
        for name in ("tau", "tau_end", "cross_entropy"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}, expected 0 or more")
        if self.clip <= 0:
            raise ValueError(f"clip is {self.clip}, expected more than 0")
        if self.weights and self.tau_end is not None:
            raise ValueError("tau_end goes without weights, whose mean over the training set is that of one tau")
        if self.weights and self.tau >= 1:
            raise ValueError(f"weights have no effect at tau {self.tau}; choose a tau below 1, or remove them")
        if self.clip != CLIP and not self.weights:
            raise ValueError(f"clip is {self.clip} and cuts off weights, of which there are none; set weights: true")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        if self._is_plain:
            return -said.log_p_B
        assert said.log_p_BC is not None
        labels_B1, kind = facts["labels"].unsqueeze(1), said.log_p_BC.dtype
        over_prior_BC = facts["bias_log_p"].to(kind)
        if memory_S.numel():
            over_prior_BC = over_prior_BC - memory_S[1:].to(kind)
        corrected_BC = said.log_p_BC + self._tau(facts) * over_prior_BC
        loss_B = -torch.log_softmax(corrected_BC, dim=-1).gather(1, labels_B1).squeeze(1)
        if self.weights:
            loss_B = loss_B * self._clipped(-over_prior_BC.gather(1, labels_B1).squeeze(1)) / memory_S[0].to(kind)
        if self.cross_entropy:
            plain_BC = torch.log_softmax(said.log_p_BC, dim=-1)
            loss_B = loss_B - self.cross_entropy * plain_BC.gather(1, labels_B1).squeeze(1)
        return loss_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """The mean of the clipped weights, then `log pi` of each label [C]; both of the whole training set.

        Nothing where neither is read: a uniform prior moves all logits alike.
        """
        if not self.weights and self.prior == "uniform":
            return super().begin(facts)
        log_p_NC, labels_N = facts["bias_log_p"].double(), facts["labels"]
        prior_C = torch.full((log_p_NC.shape[1],), 1 / log_p_NC.shape[1], dtype=torch.float64)
        if self.prior == "labels":  # a label that does not occur counts as if it did once
            prior_C = (labels_N.unsqueeze(1) == torch.arange(len(prior_C))).sum(dim=0).double().clamp(min=1)
        log_prior_C = (prior_C / prior_C.sum()).log()
        own_N = (log_prior_C - log_p_NC).gather(1, labels_N.unsqueeze(1)).squeeze(1)
        mean = mean_seen(self._clipped(own_N), facts) if self.weights else torch.ones((), dtype=torch.float64)
        return torch.cat([mean.reshape(1), log_prior_C])

    @property
    def _is_plain(self) -> bool:
        """Whether nothing is corrected or added: the end of a sweep over tau is then plain fine-tuning to the bit."""
        return self.tau == 0 and not self.tau_end and not self.weights and self.cross_entropy == 0

    def _clipped(self, log_ratio_B: Tensor) -> Tensor:
        """`(pi / p_b)^(1 - tau)` of logarithms of the ratio, at most `clip`."""
        return torch.exp((1 - self.tau) * log_ratio_B).clamp(max=self.clip)

    def _tau(self, facts: Mapping[str, Tensor]) -> Tensor | float:
        """Of this step: `tau_end` is where the end of training would have it, as a linear learning rate ends at 0."""
        if self.tau_end is None:
            return self.tau
        if DONE not in facts:
            raise ValueError("loss.tau_end: this batch does not say how much of training is done, the fact 'done'")
        return self.tau + (self.tau_end - self.tau) * facts[DONE]
