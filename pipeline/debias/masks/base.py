"""What every row is: how many elements a step moves, among which they are chosen, and when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from debias.masks.choosing import count_of, largest


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

    def chosen(self, gradients: Sequence[Tensor]) -> Iterator[Tensor]:
        """Of each gradient, in turn and before the next one is asked for, a mask that is true where an element is
        among the largest. It hangs on their numbers alone (`largest`), and so is the same on all ranks.
        """
        whole = sum(gradient.numel() for gradient in gradients)
        if self.scope == "model":
            yield from largest(gradients, count_of(self.share, whole)) if whole else ()
            return
        for gradient in gradients:
            if not gradient.numel():
                yield torch.zeros_like(gradient, dtype=torch.bool)
                continue
            yield from largest([gradient], count_of(self.share, gradient.numel()))
