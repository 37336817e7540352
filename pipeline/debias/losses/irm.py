"""Invariant risk minimization (Arjovsky et al., 2019, arXiv 1907.02893). Shapes: B samples, C labels, G groups.

Its memory S is that of `group_sums`, of one value.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses import group_sums
from debias.losses.base import EVERY_LABEL, StepPenalty
from debias.readouts.said import Said


@dataclass(frozen=True)
class IRM(StepPenalty):
    """The groups' mean of `L_g + strength D_g^2`, with `D_g` the slope of L_g by a factor on all logits, at 1: IRMv1.

    Where the slope is 0 in every group, no group would rather have the same logits larger or smaller: one classifier
    is right for all at once. A sample's slope is `d = sum_c p_c log p_c - log p_y` (cross-entropy less entropy), and
    D_g^2 the mean of d_i d_j over pairs of two samples of the group, of the whole step however it is cut: the authors
    multiply two halves of a batch, and this is the mean over all ways to halve it. A group of one sample in a step has
    no penalty there. `warmup`: until that share of training is done, `strength` is 1 at most (the authors' schedule).
    At `strength` 0 it is cross-entropy in which all groups of a step count the same. `memory`: D_g is that of the steps
    before (means over samples that fade by it each step), and a sample's penalty the tangent there, `2 D_g d - D_g^2`.

    Needs a group of each training example, of the data or inferred (`groups`), in which a shortcut holds unlike; and of
    a causal model answers of one token. Costs a forward pass more where a step has several micro-batches, with `memory`
    nothing. Fails where groups tell the label (the slope of one label is no test of a shortcut), where a step has few
    of a group, which then says little of it: draw groups alike (`order`; steps are of random rows, not of like length,
    which costs padding); and with a large `strength` from the start, which holds the model where it knows nothing. With
    `memory` and a large strength the pull is by slopes that are no longer those of the model (BENCHMARKS.md); shares of
    groups are then those of what an epoch sees.

    Source: Arjovsky et al., Invariant Risk Minimization, 2019, arXiv 1907.02893; all groups alike as in Yang et al.,
    Change is Hard: A Closer Look at Subpopulation Shift, ICML 2023, arXiv 2302.12254, and its authors' code.
    """

    name: ClassVar[str] = "irm"
    reads: ClassVar[frozenset[str]] = frozenset({"group", EVERY_LABEL})
    learns: ClassVar[bool] = True
    strength: float = 1.0
    warmup: float = 0.0
    memory: float | None = group_sums.memory_setting()

    def __post_init__(self) -> None:
        group_sums.check(self.strength, self.memory, self.warmup)

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        slope_B, group_B, dtype = _slope(said, facts), facts["group"], said.log_p_B.dtype
        known_G1, seen_G = group_sums.means(memory_S, group_sums.FEWEST if self.ahead else group_sums.NONE)
        known_B = (known_G1[:, 0] * seen_G)[group_B].to(dtype)
        penalty_B = 2 * known_B * slope_B - known_B**2
        if self.ahead:
            penalty_B = penalty_B - group_sums.off_by_chance((slope_B - known_B).unsqueeze(1), group_B, memory_S)
        even_B = group_sums.evened(memory_S)[group_B].to(dtype) / group_sums.occurring(memory_S)
        return even_B * (self._strength(facts, like=slope_B) * penalty_B - said.log_p_B)

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """`group_sums` of slopes: none seen."""
        return group_sums.begun(facts, values=1)

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """Of each group how many samples, and the sum of their slopes."""
        return group_sums.summed(_slope(said, facts).unsqueeze(1), facts["group"], len(memory_S))

    def of_step(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """The groups of the step."""
        return group_sums.of_step(sums)

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """What was seen fades, and the step is added; nothing where statistics are of the step itself."""
        return memory_S if self.memory is None else group_sums.faded(sums, memory_S, self.memory)

    def _strength(self, facts: Mapping[str, Tensor], like: Tensor) -> Tensor:
        full = like.new_tensor(self.strength)
        if not self.warmup:
            return full
        return torch.where(group_sums.done(facts, like) >= self.warmup, full, full.clamp(max=1.0))


def _slope(said: Said, facts: Mapping[str, Tensor]) -> Tensor:
    """Of cross-entropy among the labels, by a factor on the logits, at 1: [B]."""
    assert said.log_p_BC is not None
    log_p_BC = torch.log_softmax(said.log_p_BC, dim=-1)  # of a causal model they are shares of its whole vocabulary
    own_B = log_p_BC.gather(1, facts["labels"].unsqueeze(1)).squeeze(1)
    return (log_p_BC.exp() * log_p_BC).sum(dim=-1) - own_B
