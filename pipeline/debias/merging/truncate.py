"""Truncated changes ("Shortcuts in the Tail", arXiv 2606.07596): the first singular directions of what was learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.merging.edits import Edit, LowRank


@dataclass(frozen=True)
class Truncate(Edit):
    """`W_base + U_k S_k V_k^T`, where `U S V^T` is the change's SVD: the tail, where shortcuts are said to sit, goes.

    Give one of: `keep`, the directions kept of each module (each expert), or `energy`, the share of the squared
    singular values that has to stay (the fewest directions that reach it; of a stack of experts as many as its neediest
    expert asks for). `energy` again cuts again, `keep` does not.

    Needs one adapter and no data, groups or labels; a head that was trained whole stays. Costs one small SVD for each
    module. Fails where there is little tail to cut: the paper's case is full fine-tuning, a LoRA of rank 8 or 16 is
    short.

    Source: Shortcuts in the Tail, 2026, arXiv 2606.07596.
    """

    name: ClassVar[str] = "truncate"
    keep: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.energy is None):
            raise ValueError("keep and energy: give one of them, how many directions stay or what share of the energy")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep is {self.keep}, expected 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"energy is {self.energy}, expected a share above 0 and up to 1")

    def change(self, changes: Sequence[LowRank]) -> LowRank:
        """The first directions of the first change."""
        (change,) = changes
        if self.keep is not None:
            return change.leading(self.keep)
        assert self.energy is not None
        return change.leading(directions(change.svd()[1], self.energy))


def directions(s_K: Tensor, energy: float) -> int:
    """How many of the singular values hold a share of the sum of squares; at least 1, the most that any expert needs.

    A share that is missed by float64 rounding alone is reached.
    """
    total = s_K.square().sum(-1, keepdim=True)
    below_K = s_K.square().cumsum(-1) < (energy - 1e-12) * total
    return min(int(below_K.sum(-1).max()) + 1, s_K.shape[-1])
