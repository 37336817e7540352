"""Model soups (Wortsman et al., ICML 2022, arXiv 2203.05482): the average of several fine-tuned models' weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.merging.edits import Edit, LowRank


@dataclass(frozen=True)
class Soup(Edit):
    """The average of the changes of several adapters, `sum_i w_i b_i a_i`, with modules trained whole averaged too.

    Exact by putting the a's above each other and the b's side by side, so the rank is the sum of all ranks. (The
    average of the a's times the average of the b's is another matrix.) `weights`: one an adapter, divided by their sum;
    by default equal. `rank`: at most so many singular directions of the average are kept.

    Needs adapters on the same modules of the same base, from the same starting point: a head drawn with another seed is
    another starting point. Costs no data and no training, but the training of every adapter in it. Fails where the
    adapters do not lie in one basin, and against what they have all learned: a shortcut of each is one of the average.

    Source: Wortsman et al., Model soups, ICML 2022, arXiv 2203.05482: the uniform soup; the greedy one, which needs
    validation scores, is a loop over this.
    """

    name: ClassVar[str] = "soup"
    takes_several: ClassVar[bool] = True
    weights: tuple[float, ...] | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and not _are_weights(self.weights):
            raise ValueError(f"weights are {list(self.weights)}, expected numbers of 0 or more, one of them above 0")
        check_rank(self.rank)

    def check(self, adapters: int) -> None:
        """ValueError unless there is an adapter, and a weight for each if any."""
        if adapters < 1:
            raise ValueError("soup of no adapters; give at least one")
        if self.weights is not None and len(self.weights) != adapters:
            raise ValueError(f"weights: {len(self.weights)} of them for {adapters} adapters")

    def shares(self, adapters: int) -> list[float]:
        """The weights, with the sum 1."""
        weights = self.weights or (1.0,) * adapters
        return [weight / math.fsum(weights) for weight in weights]

    def change(self, changes: Sequence[LowRank]) -> LowRank:
        """The average, of the sum of the ranks or brought back to `rank`."""
        shares = self.shares(len(changes))
        a_RI = torch.cat([one.a_RI for one in changes], dim=-2)
        b_OR = torch.cat([one.b_OR * share for one, share in zip(changes, shares, strict=True)], dim=-1)
        average = LowRank(a_RI, b_OR)
        return average if self.rank is None else average.leading(self.rank)

    def whole(self, tensors: Sequence[Tensor]) -> Tensor:
        """The average in float64; what is not made of floating-point numbers is the first one's."""
        if not tensors[0].is_floating_point():
            return tensors[0]
        shares = self.shares(len(tensors))
        average = sum(tensor.double() * share for tensor, share in zip(tensors, shares, strict=True))
        return torch.as_tensor(average).to(tensors[0].dtype)


def check_rank(rank: int | None) -> None:
    """ValueError for a `rank` to keep that is none; without one all are kept."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}, expected 1 or more")


def _are_weights(weights: Sequence[float]) -> bool:
    return all(math.isfinite(one) and one >= 0 for one in weights) and any(one > 0 for one in weights)
