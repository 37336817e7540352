"""Resampling by group or label (Idrissi et al., CLeaR 2022, arXiv 2110.14503). Shapes: N examples, G groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from debias.data.order import Order


@dataclass(frozen=True)
class Resampled(Order):
    """As many draws as there are examples: each draws a group at random, then one of its examples, with replacement.

    Every group is seen equally often, whatever its size (RWG of the paper; `by: label` is its balancing of classes).
    Needs groups of all examples for `by: group`. Costs nothing more. Fails where a group is tiny: its examples are seen
    so often that they are learned by heart.

    Source: Idrissi et al., Simple data balancing achieves competitive worst-group-accuracy, CLeaR 2022, arXiv
    2110.14503.
    """

    name: ClassVar[str] = "resampled"
    by: Literal["group", "label"] = "group"

    @property
    def fact(self) -> str:
        """What the groups are read from."""
        return "group" if self.by == "group" else "labels"

    def epoch(self, facts: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        groups, group_N = facts[self.fact].unique(return_inverse=True)
        count_G = torch.bincount(group_N)
        sorted_N = group_N.argsort(stable=True)
        first_G = count_G.cumsum(0) - count_G
        size = self.size(facts)
        drawn = torch.randint(len(groups), (size,), generator=generator)
        place = torch.rand(size, generator=generator, dtype=torch.float64) * count_G[drawn]
        return sorted_N[first_G[drawn] + place.long()]
