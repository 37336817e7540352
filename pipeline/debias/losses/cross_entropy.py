"""Cross-entropy: the ordinary loss. Shapes: B samples, C classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn

from debias.config.blocks import EXPECTS
from debias.losses.base import Loss
from debias.losses.class_weights import ClassWeights, check_weights, in_order, weights_of
from debias.readouts.said import Said, check_labels

NO_LABEL = -(2**62)


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy of each sample, [B] float32, computed in float32 whatever the logits' dtype.

    ValueError for a label that is no class's number: -100 would count as a sample of loss 0, in main and in bias.
    """
    if logits_BC.ndim == 2 and not labels_B.is_floating_point():  # probabilities of all classes have no such number
        check_labels(labels_B, logits_BC)
    # No label is left out (-100 is PyTorch's own choice): the sample would stay in the count.
    return nn.functional.cross_entropy(logits_BC.float(), labels_B, reduction="none", ignore_index=NO_LABEL)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Minus the log-probability of the right answer, summed over its tokens (empirical risk minimisation).

    `class_weights`: how much each label counts, in both gradients: a mapping of labels to numbers, or `balanced`,
    `N / (C n_c)` of N training examples, n_c of them with the label, and C labels. The denominator stays the number of
    samples, so a sample's share does not depend on its batch; the mean of balanced weights is 1. Needs nothing beside
    the labels. Costs nothing more. Fails where a shortcut explains the labels: it is the easiest way to a small loss.

    Source: Vapnik, Principles of risk minimization for learning theory, NIPS 1991 (the principle, with this loss).
    """

    name: ClassVar[str] = "cross_entropy"
    class_weights: ClassWeights = field(
        default=None, metadata={EXPECTS: "balanced, or a weight of 0 or more for each label"}
    )

    def __post_init__(self) -> None:
        check_weights(self.class_weights)

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        if self.class_weights is None:
            return -said.log_p_B
        return -memory_S.to(said.log_p_B.dtype)[facts["labels"]] * said.log_p_B

    def for_labels(self, labels: Sequence[str]) -> "CrossEntropy":
        """With its weights in the order of these labels; ValueError where they are not one for each."""
        return replace(self, class_weights=in_order(self.class_weights, labels))

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """The weights of the labels [C]; nothing without any."""
        return weights_of(self.class_weights, facts)
