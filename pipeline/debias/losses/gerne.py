"""GERNE, gradient extrapolation (Asaad et al., ICCV 2025). Shapes: B samples, C labels, G groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from debias.losses import group_sums
from debias.losses.base import Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class GERNE(Loss):
    """Cross-entropy extrapolated from a biased batch past a less biased one: `L_lb + beta (L_lb - L_b)`.

    With `a(y)` the share of a group among what is seen of label y, and A groups that occur with y, L_b is the
    loss of the data as they are, and L_lb that of data in which the share is `a + c (1/A - a)`. Both are taken of the
    same samples here, each sample counted as often as the share asks for; the paper draws two batches. A sample then
    weighs

        1 + c (1 + beta) (1 / (A a) - 1)

    so that `c (1 + beta)` alone matters: at 0 it is cross-entropy, at 1 all groups of a label count the same, above 1
    small groups count more than large ones. (Weights of that kind need no second gradient, and no rule.) How frequent
    labels are stays as it is.

    Needs a group of each training example, of the data or inferred (`groups`); the paper's form for unknown groups
    guesses them by a threshold, and is not here. Costs nothing more. Fails where groups are unknown or tiny; and a
    group of a share above `c (1 + beta) / (A (c (1 + beta) - 1))` gets a weight below 0, so that its loss is climbed.

    Source: Asaad et al., Gradient Extrapolation for Debiased Representation Learning, ICCV 2025, arXiv 2503.13236 (as
    its readers describe it; the paper's own tables were not reproduced).
    """

    name: ClassVar[str] = "gerne"
    reads: ClassVar[frozenset[str]] = frozenset({"group"})
    c: float = 0.5
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.c <= 1:
            raise ValueError(f"c is {self.c}, expected 0 to 1")
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        weight_B = memory_S[facts["labels"], facts["group"]]
        return -weight_B.to(said.log_p_B.dtype) * said.log_p_B

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """The weight of each label and group [C, G]; 0 of those that do not occur together."""
        labels_N, group_N = facts["labels"], facts["group"]
        labels, groups = (int(known.max()) + 1 for known in (labels_N, group_N))
        count_CG = group_sums.counted(labels_N * groups + group_N, facts, labels * groups).view(labels, groups)
        occurs_CG = count_CG > 0
        seen_C1 = count_CG.sum(dim=1, keepdim=True)  # less than once an epoch, where an order draws a label rarely
        share_CG = count_CG / seen_C1.masked_fill(seen_C1 == 0, 1.0)
        even_CG = 1 / (occurs_CG.sum(dim=1, keepdim=True) * share_CG.masked_fill(~occurs_CG, 1.0))
        return (1 + self.c * (1 + self.beta) * (even_CG - 1)) * occurs_CG
