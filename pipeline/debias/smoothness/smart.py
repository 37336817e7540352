"""Smoothness-inducing adversarial regularization (Jiang et al., ACL 2020, arXiv 1911.03437)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from debias.smoothness.base import Ask, Smoothness, divergence

RADIUS = 1e-3
# Of the authors' code: in odds, and beside what moves are divided by.
EPSILON = 1e-6


@dataclass(frozen=True)
class SMART(Smoothness):
    """The answer should hardly change near the embeddings, where a few steps up find it to change most.

    Added to each sample's loss: `strength` times the symmetric KL between the answers at the embeddings and at a move
    away from them. The move begins as normal noise of deviation `noise` and takes `steps` steps up that KL. Then it
    stays: the term's gradient is that of both answers, by the model's weights. The embeddings are what the first layer
    reads; of a perceptron the pixels. Paper and authors' code have other moves:

    - `form: paper`, each step is of `step_size` times the gradient, which is divided by its largest column, token by
      token (a gradient of zero moves nothing), and ends within `radius` in every column: the paper's Algorithm 1. The
      radius 1e-3 is ours, where one step of 1e-3 ends.
    - `form: code`, each step adds `step_size` times the gradient as it is, and divides the whole move by its largest
      column, token by token, so that a move is of about 1, whatever `step_size` is: that says how much of its direction
      is the gradient's and how much the noise's. There is no radius, the gradient is that of `2 sum q (odds q - odds
      p)` with log odds held fast, and each of the two KL holds its target fast (near each other that is half of the
      gradient). The code's `step_size` is 1e-3, or 1e-5 in its program.

    On MiniLM with a fresh head the term was 2e-4 in both forms where each answer drops by itself (`masks: own`, as in
    the code), and 7e-8 (`paper`) and 2e-5 (`code`) with one mask for both (`same`): most of it is what another mask
    does, and with the form `paper` all; there the move alone wants a much larger `strength`, or `step_size` and
    `radius`, to be felt. Only the smoothness term: SMART's proximal point steps hold weights near those of the last
    steps, for which `method: l2_sp` (near the first ones) is the nearest here.

    Needs every label in one answer: a head, or of a causal model answers of one token; and 32 bits. Costs a forward and
    a backward pass for each step, and one of both for the term: more than three times the time of a step, and the
    activations of two passes at once. Fails where the shortcut is itself smooth: a cue that is there or not moves by
    more than any radius, so that nothing of it is penalised; and with a large `strength` it underfits.

    Source: Jiang et al., SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through
    Principled Regularized Optimization, ACL 2020, arXiv 1911.03437; `form: code` is its authors' (mt-dnn).
    """

    name: ClassVar[str] = "smart"
    steps: int = 1
    step_size: float = 1e-3
    radius: float = RADIUS
    noise: float = 1e-5
    form: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected 1 or more (r3f is the term without steps)")
        for name in ("step_size", "radius", "noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name):g}, expected more than 0")
        if self.form == "code" and self.radius != RADIUS:
            raise ValueError(f"radius is {self.radius:g}, and form code has none; leave it out, or take form paper")

    @property
    def passes(self) -> int:
        return 2 + self.steps

    def move(self, like_D: Tensor, ask: Ask, log_p_BC: Tensor) -> Tensor:
        wide = torch.promote_types(like_D.dtype, torch.float32)
        move_D = self.noise * torch.randn(like_D.shape, dtype=wide, device=like_D.device)
        for _ in range(self.steps):
            move_D.requires_grad_(True)
            with torch.enable_grad():
                near_BC = ask(move_D)
                changes_B = divergence(log_p_BC, near_BC) if self.form == "paper" else odds_apart(log_p_BC, near_BC)
                (slope_D,) = torch.autograd.grad(changes_B.sum(), move_D)
            move_D = move_D.detach()
            if self.form == "paper":
                move_D = (move_D + self.step_size * up_to_one(slope_D)).clamp(-self.radius, self.radius)
            else:
                move_D = move_D + self.step_size * slope_D.nan_to_num(0.0, 0.0, 0.0)
                move_D = move_D / (_largest(move_D) + EPSILON)
        return move_D

    def term(self, log_p_BC: Tensor, near_BC: Tensor) -> Tensor:
        return self.strength * divergence(log_p_BC, near_BC, held=self.form == "code")


def up_to_one(slope_D: Tensor) -> Tensor:
    """Each token's columns over the largest of them (of what has no tokens, each sample's); 0 where all are 0."""
    largest_D = _largest(slope_D)
    return (slope_D / largest_D.masked_fill(largest_D == 0, 1.0)).nan_to_num(0.0, 0.0, 0.0)


def odds_apart(log_p_BC: Tensor, near_BC: Tensor) -> Tensor:
    """What the authors' code climbs, [B] float64: `2 sum q (odds q - odds p)`, log odds without a gradient."""
    p_BC, q_BC = (torch.softmax(one.double(), dim=-1) for one in (log_p_BC, near_BC))
    odds_p_BC, odds_q_BC = (-(1 / (one.detach() + EPSILON) - 1 + EPSILON).log() for one in (p_BC, q_BC))
    return 2 * (q_BC * (odds_q_BC - odds_p_BC)).sum(dim=-1)


def _largest(move_D: Tensor) -> Tensor:
    """Of each token's columns, or of each sample's where there are no tokens, the largest without its sign."""
    over = -1 if move_D.dim() == 3 else tuple(range(1, move_D.dim()))
    return move_D.abs().amax(dim=over, keepdim=True)
