"""Smoothness-inducing adversarial regularization (Jiang et al., ACL 2020, arXiv 1911.03437)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.smoothness.base import Ask, Smoothness, divergence


@dataclass(frozen=True)
class SMART(Smoothness):
    """The answer should hardly change within `radius` of the embeddings, where a few steps up find it to change most.

    Added to each sample's loss: `strength` times the symmetric KL between the answers at the embeddings and at a move
    away from them, `|move| <= radius` in every column. The move begins as normal noise of deviation `noise` and takes
    `steps` steps up that KL, each of `step_size` times its gradient, which is divided by its largest column, token by
    token, as in the authors' code (a gradient of zero moves nothing). Then it stays: the term's gradient is that of
    both answers, by the model's weights. The embeddings are what the first layer reads; of a perceptron the pixels.

    `step_size` and `noise` are the defaults of the authors' code, and `radius` is where one such step ends, for which
    their code has no bound. There each answer drops by itself (`masks: own`), and that is most of the term: on MiniLM
    with a fresh head it was 1e-3, and 2e-6 with one mask for both (`same`), where the move alone is left and a much
    larger `strength` or `step_size` is needed for it to be felt. Only the paper's smoothness term: its proximal point
    steps hold weights near those of the last steps, for which `method: l2_sp` (near the first ones) is the nearest
    here.

    Needs every label in one answer: a head, or of a causal model answers of one token; and 32 bits. Costs a forward and
    a backward pass for each step, and one of both for the term: more than three times the time of a step, and the
    activations of two passes at once. Fails where the shortcut is itself smooth: a cue that is there or not moves by
    more than any radius, so that nothing of it is penalised; and with a large `strength` it underfits.

    Source: Jiang et al., SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through
    Principled Regularized Optimization, ACL 2020, arXiv 1911.03437, and its authors' code.
    """

    name: ClassVar[str] = "smart"
    steps: int = 1
    step_size: float = 1e-3
    radius: float = 1e-3
    noise: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected 1 or more (r3f is the term without steps)")
        for name in ("step_size", "radius", "noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}, expected more than 0")

    @property
    def passes(self) -> int:
        return 2 + self.steps

    def move(self, like_D: Tensor, ask: Ask, log_p_BC: Tensor) -> Tensor:
        wide = torch.promote_types(like_D.dtype, torch.float32)
        move_D = self.noise * torch.randn(like_D.shape, dtype=wide, device=like_D.device)
        for _ in range(self.steps):
            move_D.requires_grad_(True)
            with torch.enable_grad():
                changes = divergence(log_p_BC, ask(move_D)).sum()
                (slope_D,) = torch.autograd.grad(changes, move_D)
            step_D = self.step_size * up_to_one(slope_D)
            move_D = (move_D.detach() + step_D).clamp(-self.radius, self.radius)
        return move_D


def up_to_one(slope_D: Tensor) -> Tensor:
    """Each token's columns over the largest of them (of what has no tokens, each sample's); 0 where all are 0."""
    if slope_D.dim() == 3:
        largest_D = slope_D.abs().amax(dim=-1, keepdim=True)
    else:
        largest_D = slope_D.abs().amax(dim=tuple(range(1, slope_D.dim())), keepdim=True)
    return (slope_D / largest_D.masked_fill(largest_D == 0, 1.0)).nan_to_num(0.0, 0.0, 0.0)
