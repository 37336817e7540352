"""What every row is: a place near what a model reads, and how far its answer changes there.

Shapes: B samples, C labels; D of what a model reads, [B, T, H] or [B, ...]: T tokens, H columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

# What the model says of every label, [B, C] logs, where what it reads has moved by a tensor of its shape.
Ask = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Smoothness:
    """`strength` times the symmetric KL between a sample's answer and its answer near by. Rows are frozen dataclasses
    whose fields are the settings of the `smoothness:` block.

    The term is a sample's own, so it is the same however a step is cut into micro-batches and ranks, up to what is
    drawn, as of any dropout. `masks`: `own`, each answer drops by itself, as in the authors' code; `same`: both answers
    have one dropout and differ by the move alone.
    """

    name: ClassVar[str]
    strength: float = 1.0
    masks: Literal["same", "own"] = "own"

    def __post_init__(self) -> None:
        """ValueError for a setting out of range."""
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength:g}, expected 0 or more")

    @property
    def passes(self) -> int:
        """Forward and backward passes of a micro-batch in all, the ordinary one among them."""
        return 2

    def move(self, like_D: Tensor, ask: Ask, log_p_BC: Tensor) -> Tensor:
        """How far what the model reads moves, of the shape and on the device of `like_D`, without a graph.

        `log_p_BC`: what it says where it is, without a graph.
        """
        raise NotImplementedError

    def term(self, log_p_BC: Tensor, near_BC: Tensor) -> Tensor:
        """What is added to each sample's loss, [B]."""
        return self.strength * divergence(log_p_BC, near_BC)


def divergence(log_p_BC: Tensor, log_q_BC: Tensor, *, held: bool = False) -> Tensor:
    """KL(p, q) + KL(q, p) of each sample over the labels, [B] in float32 at least; each is normalised over them first.

    As `sum (p - q)(log p - log q)`, no term of which is negative: a difference of two KLs would be lost in rounding
    where the two are near each other. `held`: each KL has no gradient by its first argument, the target.
    """
    log_p_BC, log_q_BC = (torch.log_softmax(_wide(one), dim=-1) for one in (log_p_BC, log_q_BC))
    apart_BC = log_p_BC.exp() - log_q_BC.exp()
    return ((apart_BC.detach() if held else apart_BC) * (log_p_BC - log_q_BC)).sum(dim=-1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
