"""What logits and a bias model share within a label, penalised.

Shapes: B samples, C labels, S numbers that are learned; F is C as well, where a matrix has logits by log-probabilities.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses import group_sums
from debias.losses.base import EVERY_LABEL, StepPenalty
from debias.readouts.said import Said

NONE = 1e-12  # samples of a label so long ago that nothing is left of them


@dataclass(frozen=True)
class BiasCovariance(StepPenalty):
    """Cross-entropy and `strength` times `sum_y pi(y) |Cov(f, log p_b | y)|^2`: f may not follow the bias model.

    f are the logits (less their mean over the labels), and Cov is that among the samples of label y, whose share is pi.
    Within a label, for honest signal may well go along with the shortcut across labels: what a model does with the
    shortcut is what is left of both once the label is known. Cov is that of the whole step, however it is cut into
    micro-batches and ranks, and a sample's penalty the tangent there, `2 f^T Cov_y (log p_b - mean_y) - |Cov|^2`,
    linear in f: its sum has the penalty's value and gradient. `memory`: Cov is that of the steps before (sums over
    samples that fade by it each step); the mean is then the penalty less the square of what Cov has changed since.
    `tau`: cross-entropy of `log p + tau log p_b`, so that logit correction is penalised; at 0 it is plain.

    Needs a bias model (`bias_model`, or a first stage that keeps `log_p`), and of a causal model answers of one token.
    Costs its fit, padding (steps are of random rows, not of like length), a forward pass more where a step has several
    micro-batches, and memory of `C^2 (C + 2)` numbers about
    (with `memory` kept in checkpoints). Fails where the bias model holds honest signal that tells samples of one label
    apart, such as how clearly they have it; where a label is in a step seldom, whose covariance is then of few samples;
    and with a large `strength`, which slows learning. Only what is linear is seen. On Colored MNIST, five seeds with
    `first_learned` stopped at 0.2, the defaults did harm: 38 % right where the colour misleads, 54 % of plain training;
    and more with `memory: 0.9`, 18 % (BENCHMARKS.md).

    Source: no paper of its own; the covariance of a decision with a sensitive attribute of Zafar et al., Fairness
    Constraints: Mechanisms for Fair Classification, AISTATS 2017, arXiv 1507.05259, within each label, as a penalty and
    with a bias model in the attribute's place.
    """

    name: ClassVar[str] = "bias_covariance"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p", EVERY_LABEL})
    learns: ClassVar[bool] = True
    strength: float = 0.1
    tau: float = 0.0
    memory: float | None = group_sums.memory_setting()

    def __post_init__(self) -> None:
        group_sums.check(self.strength, self.memory)
        if self.tau < 0:
            raise ValueError(f"tau is {self.tau}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        assert said.log_p_BC is not None
        log_p_BC, label_B = said.log_p_BC, facts["labels"]
        bias_BC = facts["bias_log_p"].to(log_p_BC.dtype)
        loss_B = -said.log_p_B
        if self.tau:
            corrected_BC = torch.log_softmax(log_p_BC + self.tau * bias_BC, dim=-1)
            loss_B = -corrected_BC.gather(1, label_B.unsqueeze(1)).squeeze(1)
        mean_CC, cov_CFC, square = (one.to(log_p_BC.dtype) for one in _known(memory_S, log_p_BC.shape[1]))
        pull_BF = torch.einsum("bfc,bc->bf", cov_CFC[label_B], bias_BC - mean_CC[label_B])
        tangent_B = 2 * (_logits(log_p_BC) * pull_BF).sum(dim=1) - square
        return loss_B + self.strength * tangent_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """Nothing seen: of each label how many, the sums of f, of `log p_b`, and of their products."""
        labels = facts["bias_log_p"].shape[1]
        return torch.zeros(labels * (1 + 2 * labels + labels**2), dtype=torch.float64)

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """The same of a micro-batch."""
        assert said.log_p_BC is not None
        f_BF, bias_BC = _logits(said.log_p_BC.detach().double()), facts["bias_log_p"].double()
        products_BS = (f_BF.unsqueeze(2) * bias_BC.unsqueeze(1)).flatten(1)
        parts_BS = torch.cat([torch.ones_like(f_BF[:, :1]), f_BF, bias_BC, products_BS], dim=1)
        sums_CS = parts_BS.new_zeros(f_BF.shape[1], parts_BS.shape[1])
        return sums_CS.index_add_(0, facts["labels"], parts_BS).flatten()

    def of_step(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """The labels of the step."""
        return sums

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """What was seen fades, and the step is added; nothing where statistics are of the step itself."""
        return memory_S if self.memory is None else self.memory * memory_S + sums


def _logits(log_p_BC: Tensor) -> Tensor:
    """Up to what moves all of a sample alike."""
    return log_p_BC - log_p_BC.mean(dim=1, keepdim=True)


def _known(memory_S: Tensor, labels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each label the mean of `log p_b` [C, C] and Cov [C, F, C]; and `sum_y pi(y) |Cov_y|^2`."""
    count_C, f_CF, bias_CC, products_CS = memory_S.view(labels, -1).split([1, labels, labels, labels**2], dim=1)
    seen_C = count_C.clamp(min=NONE)
    mean_CF, mean_CC = f_CF / seen_C, bias_CC / seen_C
    product_CFC = (products_CS / seen_C).view(labels, labels, labels)
    cov_CFC = product_CFC - mean_CF.unsqueeze(2) * mean_CC.unsqueeze(1)
    share_C = count_C.flatten() / count_C.sum().clamp(min=NONE)
    return mean_CC, cov_CFC, (share_C * cov_CFC.square().sum(dim=(1, 2))).sum()
