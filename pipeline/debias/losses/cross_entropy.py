"""Cross-entropy: the ordinary loss. Shapes: B samples, C classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from debias.losses.base import Loss
from debias.readouts.said import Said


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy of each sample, [B] float32, computed in float32 whatever the logits' dtype."""
    return nn.functional.cross_entropy(logits_BC.float(), labels_B, reduction="none")


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Minus the log-probability of the right answer, summed over its tokens (empirical risk minimisation).

    Needs nothing beside the labels. Costs nothing more. Fails where a shortcut explains the labels: it is the easiest
    way to a small loss.

    Source: Vapnik, Principles of risk minimization for learning theory, NIPS 1991 (the principle, with this loss).
    """

    name: ClassVar[str] = "cross_entropy"

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        return -said.log_p_B
