"""How much each label counts in a loss. Shapes: C labels, N training examples.

The weights multiply the losses of samples, and with them both gradients, and nothing else: the denominator stays the
number of samples (or answer tokens). A sample's share of a step then does not depend on which samples share the step,
and micro-batches and ranks add up. `torch.nn.CrossEntropyLoss(weight=...)` divides by the sum of the weights in its
batch instead, so that a batch of one label alone is not weighted at all.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from debias.losses import group_sums

BALANCED: Literal["balanced"] = "balanced"
# By label's name, in the order of the labels, or balanced.
ClassWeights = Literal["balanced"] | tuple[float, ...] | dict[str, float] | None


def check_weights(weights: ClassWeights) -> None:
    """ValueError for a weight below 0, or for none above it."""
    values = list(weights.values()) if isinstance(weights, Mapping) else weights
    if values is None or isinstance(values, str):
        return
    if not any(value > 0 for value in values) or any(value < 0 for value in values):
        raise ValueError(f"class_weights is {weights}, expected weights of 0 or more, one of them more than 0")


def in_order(weights: ClassWeights, labels: Sequence[str]) -> ClassWeights:
    """The weights in the order of `labels`; ValueError where they are not one for each."""
    if weights is None or isinstance(weights, str):
        return weights
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in labels]
        missing = [name for name in labels if name not in weights]
        if unknown or missing:
            told = f"{unknown[0]!r} is no label" if unknown else f"{missing[0]!r} is missing"
            raise ValueError(f"class_weights: {told}; give a weight for each of {', '.join(labels)}")
        return tuple(weights[name] for name in labels)
    if len(weights) != len(labels):
        raise ValueError(f"class_weights are {len(weights)}, expected one for each of {', '.join(labels)}")
    return weights


def weights_of(weights: ClassWeights, facts: Mapping[str, Tensor]) -> Tensor:
    """The weights [C], float64. Balanced: `N / (C n_c)` of the labels that occur, so that their mean over what an epoch
    sees is 1 and the loss keeps its size; KeyError without the `labels` of the whole training set.
    """
    if weights is None:
        return torch.zeros(0, dtype=torch.float64)
    if isinstance(weights, Mapping):
        raise ValueError("class_weights names labels; outside of a run give them as a list, in the labels' order")
    if not isinstance(weights, str):
        return torch.tensor(weights, dtype=torch.float64)
    count_C = counts(facts)
    occurs_C = count_C > 0
    return torch.where(occurs_C, count_C.sum() / (occurs_C.sum() * count_C.masked_fill(~occurs_C, 1.0)), 0.0)


def counts(facts: Mapping[str, Tensor]) -> Tensor:
    """How many samples of each label up to the last that occurs an epoch sees, on average, float64.

    Those of the training set, as often as the run's order sees them: where it has evened the labels, nothing is left
    to be corrected.
    """
    return group_sums.counted(facts["labels"].cpu(), facts)


def log_counts(facts: Mapping[str, Tensor]) -> Tensor:
    """`log n` of the labels up to the last that occurs, float64; of one that does not, as if it did once."""
    count_C = counts(facts)
    return count_C.masked_fill(count_C == 0, 1.0).log()
