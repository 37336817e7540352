"""What every row is: how many elements a step moves, among which they are chosen, and when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from debias.masks.choosing import Ranks, count_of, largest, largest_of_each


@dataclass(frozen=True)
class Mask:
    """`share` of the elements that train get the step's gradient, all others one of zero. Subclasses are frozen
    dataclasses whose fields are the settings of the `gradient_mask:` block.

    `scope`: the share is of all elements together, by one threshold (`model`), or of each tensor's own (`tensor`).
    """

    name: ClassVar[str]
    share: float = 0.1
    scope: Literal["model", "tensor"] = "model"

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if self.share == 1:
            raise ValueError("share is 1: every element would train, as without gradient_mask; leave the block out")
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share:g}, expected a number between 0 and 1, neither of them")

    @property
    def measures(self) -> int:
        """The first so many steps train nothing, and choose the elements once; 0: chosen anew in each step."""
        return 0

    @property
    def holds(self) -> bool:
        """Whether the other elements are put back after the optimizer's step, whatever it did to them."""
        return False

    def chosen(self, gradients: Sequence[Tensor], ranks: Ranks | None = None) -> Iterator[Tensor]:
        """Of each gradient, in turn and before the next one is asked for, a mask that is true where an element is
        among the largest. It hangs on their numbers alone (`largest`), and so is the same on all ranks; of gradients
        that are dealt out over `ranks`, each of them gets its piece of each mask.
        """
        sizes = torch.tensor([gradient.numel() for gradient in gradients])
        if ranks is not None:
            sizes = ranks.counts(sizes).sum(0)
        if self.scope == "model":
            whole = int(sizes.sum())
            yield from largest(gradients, count_of(self.share, whole), ranks) if whole else map(nowhere, gradients)
            return
        some = [(gradient, size) for gradient, size in zip(gradients, sizes.tolist(), strict=True) if size]
        counts = [count_of(self.share, size) for _, size in some]
        masks = largest_of_each([gradient for gradient, _ in some], counts, ranks)
        for gradient, size in zip(gradients, sizes.tolist(), strict=True):
            yield next(masks) if size else nowhere(gradient)


def nowhere(gradient: Tensor) -> Tensor:
    """The mask that is true nowhere."""
    return torch.zeros_like(gradient, dtype=torch.bool)
