"""Debiased focal loss (Karimi Mahabadi et al., ACL 2020, arXiv 1909.06321). Shapes: B samples, C labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.losses.annealing import bias_log_p, check_anneal_to, doubt
from debias.losses.base import Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class DebiasedFocal(Loss):
    """`-(1 - p_b(y))^gamma log p(y)`: a sample counts less, the surer the bias model is of its label.

    At `gamma` 1 the reweighting of Clark et al. (EMNLP 2019), without their division by a batch's weights: a sample may
    not count by who its neighbours are. At 0 it is cross-entropy. With `anneal_to` the bias model is believed less and
    less (`p_b^alpha` over its sum, alpha from 1 to there): self-debiasing by reweighting, annealed. Needs a bias model
    (`bias_model`, or a first stage that keeps `log_p`); answers of a causal model may have any length. Costs its fit.
    Fails with more than two labels: of a cue that is right nine times in ten, `gamma` 1 leaves too much and 2 turns it
    round, no exponent leaves every label the same mass; and where weights leave few samples to learn from.

    Source: Karimi Mahabadi et al., End-to-End Bias Mitigation by Modelling Biases in Corpora, ACL 2020, arXiv
    1909.06321; the annealing of Utama et al., EMNLP 2020, arXiv 2009.12303.
    """

    name: ClassVar[str] = "debiased_focal"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p"})
    gamma: float = 2.0
    anneal_to: float | None = None

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}, expected 0 or more")
        check_anneal_to(self.anneal_to)

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        log_p_BC = bias_log_p(facts, self.anneal_to, said.log_p_B)
        return -(doubt(log_p_BC, facts["labels"]) ** self.gamma) * said.log_p_B
