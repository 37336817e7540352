"""Model Stock (Jang et al., ECCV 2024, arXiv 2403.19522): the average of fine-tuned models, drawn towards the base."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.merging.edits import Edit, LowRank
from debias.merging.soup import Soup, check_rank


@dataclass(frozen=True)
class ModelStock(Edit):
    """`W_base + t (average change)`, as far as the changes agree: the point of their plane nearest to their centre.

        t = N cos / (1 + (N - 1) cos),   cos the mean cosine of the changes of a weight, in pairs

    weight by weight (each expert by itself), so that a layer on which N adapters agree keeps its average, and one on
    which they are at right angles goes back to the base. Of more than two the paper does not say what the one angle is:
    the mean over pairs is what its readers take. A mean below 0 counts as 0. `rank`: at most so many singular
    directions of the result are kept; without it the rank is the sum of all ranks.

    Needs two adapters or more, which differ in their seeds alone, from the same starting point; no data. Costs no
    training but theirs. Fails where the adapters agree on a shortcut: it is kept, and what they do not agree on goes. A
    head that was trained whole has no start at hand to be drawn to, and is averaged as in `soup`.

    Source: Jang et al., Model Stock: All we need is just a few fine-tuned models, ECCV 2024, arXiv 2403.19522.
    """

    name: ClassVar[str] = "model_stock"
    takes_several: ClassVar[bool] = True
    rank: int | None = None

    def __post_init__(self) -> None:
        check_rank(self.rank)

    def check(self, adapters: int) -> None:
        """ValueError unless there are two adapters to take an angle between."""
        if adapters < 2:
            raise ValueError(f"model_stock is of two adapters or more, {adapters} given; `scale` draws one to its base")

    def change(self, changes: Sequence[LowRank]) -> LowRank:
        """The average times t, of the sum of the ranks or brought back to `rank`."""
        shrunk = Soup().change(changes).times(shrinkage(changes))
        return shrunk if self.rank is None else shrunk.leading(self.rank)

    def whole(self, tensors: Sequence[Tensor]) -> Tensor:
        """The average, as in a soup."""
        return Soup().whole(tensors)


def shrinkage(changes: Sequence[LowRank]) -> Tensor:
    """t of one weight's changes, [..., 1, 1]: a number for each expert of a stack."""
    pairs = list(itertools.combinations(changes, 2))
    cosine = torch.stack([_cosine(one, other) for one, other in pairs]).mean(dim=0).clamp(0.0, 1.0)
    count = len(changes)
    return (count * cosine / (1 + (count - 1) * cosine))[..., None, None]


def _cosine(one: LowRank, other: LowRank) -> Tensor:
    """Of the two changes themselves, without making them; 0 where one of them is zero."""
    lengths = (_inner(one, one) * _inner(other, other)).clamp(min=0.0).sqrt()
    return torch.where(lengths > 0, _inner(one, other) / lengths.masked_fill(lengths == 0, 1.0), 0.0)


def _inner(one: LowRank, other: LowRank) -> Tensor:
    """The sum of the products of the entries of `b a` and of `b' a'`: `tr(b^T b' a' a^T)`."""
    return ((one.b_OR.mT @ other.b_OR) * (one.a_RI @ other.a_RI.mT)).sum(dim=(-2, -1))
