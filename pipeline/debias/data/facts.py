"""What is known of examples beside their texts, as tensors that losses and weights read. Shapes: N examples."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from debias.data.examples import NO_GROUP, Example, InColumns


def facts_of(examples: Sequence[Example]) -> dict[str, Tensor]:
    """`labels` and `index` [N] int64; where all examples have one, `bias_weight` and `group` (see `group_names`)."""
    if isinstance(examples, InColumns):
        return _of_columns(examples)
    facts = {"labels": torch.tensor([example.label for example in examples]), "index": torch.arange(len(examples))}
    if examples and all(example.bias_weight is not None for example in examples):
        facts["bias_weight"] = torch.tensor([example.bias_weight for example in examples])
    if examples and all(example.group is not None for example in examples):
        number = {name: place for place, name in enumerate(group_names(examples))}
        facts["group"] = torch.tensor([number[str(example.group)] for example in examples])
    return facts


def _of_columns(examples: InColumns) -> dict[str, Tensor]:
    label_N, weight_N, group_N = (examples.column(name) for name in ("label", "weight", "group"))
    facts = {"labels": torch.from_numpy(label_N.astype(np.int64)), "index": torch.arange(len(label_N))}
    if not np.isnan(weight_N).any():
        facts["bias_weight"] = torch.from_numpy(weight_N).to(torch.get_default_dtype())
    if (group_N != NO_GROUP).all():
        there, place_N = np.unique(group_N, return_inverse=True)
        number = {name: place for place, name in enumerate(group_names(examples))}
        number_G = np.array([number[examples.groups[one]] for one in there], dtype=np.int64)
        facts["group"] = torch.from_numpy(number_G[place_N])
    return facts


def group_names(examples: Sequence[Example] | InColumns) -> list[str]:
    """The groups that occur, in the order of their numbers."""
    if isinstance(examples, InColumns):
        there = np.unique(examples.column("group"))
        return sorted(examples.groups[number] for number in there if number != NO_GROUP)
    return sorted({example.group for example in examples if example.group is not None})
