"""Resampling by group or label (Idrissi et al., CLeaR 2022, arXiv 2110.14503). Shapes: N examples, G groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from debias.data.order import Order, drawn_by_weight, seen_by_weight

MOST = 10  # of an exponent: beyond it one group is all that is seen


@dataclass(frozen=True)
class Resampled(Order):
    """As many draws as there are examples: each draws a group at random, then one of its examples, with replacement.

    Every group is seen equally often, whatever its size (RWG of the paper; `by: label` is its balancing of classes).
    `exponent`: a group with n examples is drawn in proportion to `n^exponent`. 0 is equally often, 1 as often as it is
    there, 0.5 between the two (square-root sampling, of Kang et al.), and below 0 small groups are seen more often than
    large ones. Needs groups of all examples for `by: group`, those of the data or inferred ones (`groups`). Costs
    padding: steps are of random rows, for of like length they would be full of one row's copies. Fails where a group is
    tiny: its examples are seen so often that they are learned by heart; an exponent above 0 sees them less.

    Source: Idrissi et al., Simple data balancing achieves competitive worst-group-accuracy, CLeaR 2022, arXiv
    2110.14503; the exponent of Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR
    2020, arXiv 1910.09217.
    """

    name: ClassVar[str] = "resampled"
    by: Literal["group", "label"] = "group"
    exponent: float = 0.0

    def __post_init__(self) -> None:
        if abs(self.exponent) > MOST:
            raise ValueError(f"exponent is {self.exponent}, expected a number from {-MOST} to {MOST}; 0 is all alike")

    @property
    def fact(self) -> str:
        """What the groups are read from."""
        return "group" if self.by == "group" else "labels"

    def epoch(self, facts: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        group_N, count_G = self._groups(facts)
        sorted_N = group_N.argsort(stable=True)
        first_G = count_G.cumsum(0) - count_G
        size = self.size(facts)
        if self.exponent:
            drawn = drawn_by_weight(self._weight(count_G), size, generator)
        else:
            drawn = torch.randint(len(count_G), (size,), generator=generator)
        place = torch.rand(size, generator=generator, dtype=torch.float64) * count_G[drawn]
        return sorted_N[first_G[drawn] + place.long()]

    def seen(self, facts: Mapping[str, Tensor]) -> Tensor | None:
        """A group's draws, spread over its examples."""
        group_N, count_G = self._groups(facts)
        return (seen_by_weight(self._weight(count_G), self.size(facts)) / count_G)[group_N]

    def _groups(self, facts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The number of each example's group among those that occur [N], and their sizes [G]."""
        group_N = facts[self.fact].unique(return_inverse=True)[1]
        return group_N, torch.bincount(group_N)

    def _weight(self, count_G: Tensor) -> Tensor:
        return (count_G / count_G.max()).double() ** self.exponent


def reads_groups(order: Order) -> bool:
    """Whether an order sees to the groups of examples."""
    return "group" in order.reads or (isinstance(order, Resampled) and order.by == "group")
