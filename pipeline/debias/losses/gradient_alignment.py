"""Gradient alignment (Zhao et al., AAAI 2023, arXiv 2111.13108). Shapes: B samples, C labels."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses.base import Loss
from debias.losses.group_sums import counted
from debias.readouts.said import Said

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GradientAlignment(Loss):
    """Cross-entropy in which easy samples pull `1 / gamma` times as hard as the hard ones, however many there are.

    Hard are samples of which the bias model says `1 - p_b(y) >= threshold`. How hard a sample pulls is `1 - p(y)`, the
    length of its gradient by the right logit, so with the sums over hard and over easy samples

        easy samples weigh    sum over hard of (1 - p) / (gamma sum over easy of (1 - p)),    hard ones 1

    and all weights are divided by their mean. The sums are those of the step before (in the first, the numbers of hard
    and easy training examples), so that a sample's loss does not depend on how a step is cut into micro-batches and
    ranks; the paper takes those of the batch itself, and draws a fixed number of hard samples into each. A step without
    hard, or without easy, samples leaves the weights as they were.

    Needs a bias model; answers of a causal model may have any length. Its score stands in the place of the paper's ECS
    scores, which two networks trained beside each other make up: neither is here. Costs the bias model's fit, and
    padding: steps are of random rows, for of like length they may have one kind alone. Fails where no sample is hard,
    or every one: then all weigh the same, and a warning says so.

    Source: Zhao et al., Combating Unknown Bias with Effective Bias-Conflicting Scoring and Gradient Alignment, AAAI
    2023, arXiv 2111.13108, and its authors' code.
    """

    name: ClassVar[str] = "gradient_alignment"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p"})
    learns: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    gamma: float = 1.6
    threshold: float = 0.8

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"gamma is {self.gamma}, expected more than 0")
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}, expected between 0 and 1")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        weight_2 = self._weights(memory_S).to(said.log_p_B.dtype)
        return -weight_2[self._easy(facts).long()] * said.log_p_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """How hard hard samples and easy ones pull together, and how many of each an epoch sees."""
        easy_N = self._easy(facts)
        count_2 = counted(easy_N.long(), facts, least=2)
        if len(easy_N) > 1 and not count_2.all():
            which = "hard" if not count_2[0] else "easy"
            logger.warning(
                "loss gradient_alignment: no training example is %s at threshold %g: all weigh the same",
                which,
                self.threshold,
            )
        return torch.cat([count_2, count_2])

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """The same of this micro-batch, by the model's own answers."""
        pull_B = -torch.expm1(said.log_p_B.detach().double())
        both_2B = torch.stack([pull_B, torch.ones_like(pull_B)])
        return pull_B.new_zeros(2, 2).index_add(1, self._easy(facts).long(), both_2B).flatten()

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """The sums of the step that was taken, where it had samples of both kinds."""
        return sums if bool(sums[2:].all()) else memory_S

    def _easy(self, facts: Mapping[str, Tensor]) -> Tensor:
        own_B = facts["bias_log_p"].double().gather(1, facts["labels"].unsqueeze(1)).squeeze(1)
        return -torch.expm1(own_B) < self.threshold

    def _weights(self, memory_S: Tensor) -> Tensor:
        """Of hard samples and of easy ones, of mean 1 over those that were counted."""
        pull_hard, pull_easy, hard, easy = memory_S
        ratio = pull_hard / (self.gamma * pull_easy + 1e-10)
        ratio = torch.where((hard > 0) & (easy > 0), ratio, 1.0)
        return torch.stack([torch.ones_like(ratio), ratio]) * (hard + easy) / (hard + easy * ratio)
