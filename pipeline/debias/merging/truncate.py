"""Truncated changes ("Shortcuts in the Tail", arXiv 2606.07596): the first singular directions of what was learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from torch import Tensor

from debias.merging.edits import Edit, LowRank

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Truncate(Edit):
    """`W_base + U_k S_k V_k^T`, where `U S V^T` is the change's SVD: the tail, where shortcuts are said to sit, goes.

    Give one of: `keep`, the directions kept of each module (each expert), or `energy`, the share of the squared
    singular values that has to stay (the fewest directions that reach it; of a stack of experts as many as its neediest
    expert asks for). `energy` again cuts again, `keep` does not. Of several numbers (`keep=[1,2,4,8]`) that one is
    taken with which the mean accuracy over pseudo groups of the run's validation rows is largest, of equals the
    smallest: cells of label and bias model's guess, as of `selection: pseudo_groups`.

    Needs one adapter; a head that was trained whole stays. Of one number it needs no data, groups or labels; of several
    the run's settings with `data.validation` and a `bias_model`, and no group: what the bias model said is read in the
    run's folder, or it is fitted anew. Costs one small SVD for each module; for each of several numbers a pass over the
    validation rows too, with the base loaded anew. Fails where there is little tail to cut: the paper's case is full
    fine-tuning, a LoRA of rank 8 or 16 is short. The paper does not say how a rank is chosen; the choice is of this
    project, and these rows are its own: what is claimed of the result is judged on a suite.

    Source: Shortcuts in the Tail, 2026, arXiv 2606.07596.
    """

    name: ClassVar[str] = "truncate"
    keep: int | tuple[int, ...] | None = None
    energy: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.energy is None):
            raise ValueError("keep and energy: give one of them, how many directions stay or what share of the energy")
        for name in ("keep", "energy"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} is [], expected a number, or several of which one is chosen")
        for keep in several(self.keep):
            if keep < 1:
                raise ValueError(f"keep is {keep}, expected 1 or more")
        for energy in several(self.energy):
            if not 0 < energy <= 1:
                raise ValueError(f"energy is {energy}, expected a share above 0 and up to 1")

    def variants(self) -> list[Edit]:
        """One for each number, the one that cuts most first."""
        return [
            *(Truncate(keep=keep) for keep in sorted(set(several(self.keep)))),
            *(Truncate(energy=energy) for energy in sorted(set(several(self.energy)))),
        ]

    def change(self, changes: Sequence[LowRank]) -> LowRank:
        """The first directions of the first change."""
        (change,) = changes
        assert not isinstance(self.keep, tuple)
        assert not isinstance(self.energy, tuple)
        if self.keep is not None:
            return change.leading(self.keep)
        assert self.energy is not None
        return change.leading(directions(change.svd()[1], self.energy))


def several(given: Number | tuple[Number, ...] | None) -> tuple[Number, ...]:
    """A setting that is one number, several, or not given."""
    return given if isinstance(given, tuple) else () if given is None else (given,)


def directions(s_K: Tensor, energy: float) -> int:
    """How many of the singular values hold a share of the sum of squares; at least 1, the most that any expert needs.

    A share that is missed by float64 rounding alone is reached.
    """
    total = s_K.square().sum(-1, keepdim=True)
    below_K = s_K.square().cumsum(-1) < (energy - 1e-12) * total
    return min(int(below_K.sum(-1).max()) + 1, s_K.shape[-1])
