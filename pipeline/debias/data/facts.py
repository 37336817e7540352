"""What is known of examples beside their texts, as tensors that losses and weights read. Shapes: N examples."""

from collections.abc import Sequence

import torch
from torch import Tensor

from debias.data.examples import Example


def facts_of(examples: Sequence[Example]) -> dict[str, Tensor]:
    """`labels` and `index` [N] int64; where all examples have one, `bias_weight` and `group` (see `group_names`)."""
    facts = {"labels": torch.tensor([example.label for example in examples]), "index": torch.arange(len(examples))}
    if examples and all(example.bias_weight is not None for example in examples):
        facts["bias_weight"] = torch.tensor([example.bias_weight for example in examples])
    if examples and all(example.group is not None for example in examples):
        number = {name: place for place, name in enumerate(group_names(examples))}
        facts["group"] = torch.tensor([number[str(example.group)] for example in examples])
    return facts


def group_names(examples: Sequence[Example]) -> list[str]:
    """The groups that occur, in the order of their numbers."""
    return sorted({example.group for example in examples if example.group is not None})
