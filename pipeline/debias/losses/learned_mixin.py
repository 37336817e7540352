"""Learned-mixin: how far a bias model is trusted is learned, sample by sample (Clark et al., EMNLP 2019).

Shapes: B samples, C labels, H hidden columns, S numbers that are learned (`learned_linear`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.losses import learned_linear
from debias.losses.base import EVERY_LABEL, HIDDEN, Loss
from debias.readouts.said import Said


@dataclass(frozen=True)
class LearnedMixin(Loss):
    """Cross-entropy of `log p + g(x) log p_b` over the labels, with `g(x) = softplus(w h(x) + c)`, w and c learned.

    The product with a bias model (`logit_correction`), in which each sample says how far the bias model is believed.
    `h(x)` are the last hidden states, averaged over the sample's tokens (of a causal model over the prompt, for its
    answer would tell the label); the gradient of the loss goes through it into the model, as in the paper. `penalty`
    times the entropy of `softmax(g log p_b)` is added (+H): else g may become so small that the bias is ignored, and
    the model learns it. With w and c at 0, where they begin, g is 0.69 everywhere.

    w and c belong to the loss and not to the model: no optimizer of the run knows them, they are in every checkpoint,
    and the trained model does without. After each step Adam moves them by `step_size` along the gradient of the step's
    mean loss, over micro-batches and ranks; the paper trains them with the model's own optimizer and rate. Bias weights
    and rules do not touch them. The paper's h is the pooled state of its encoder.

    Needs a bias model, a model of transformers, and of a causal model answers of one token. Costs the bias model's
    fit and 24 bytes of a hidden column. Fails without `penalty` where g learns to ignore the bias model; the paper
    chose it on test data whose bias is known.

    Source: Clark et al., Don't Take the Easy Way Out: Ensemble Based Methods for Avoiding Known Dataset Biases, EMNLP
    2019, arXiv 1909.03683.
    """

    name: ClassVar[str] = "learned_mixin"
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p", EVERY_LABEL, HIDDEN})
    learns: ClassVar[bool] = True
    penalty: float = 0.0
    step_size: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("penalty", "step_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        log_p_BC, hidden_BH = _heard(said)
        scaled_BC = _trust(hidden_BH, memory_S).unsqueeze(1) * facts["bias_log_p"].to(log_p_BC.dtype)
        mixed_BC = torch.log_softmax(log_p_BC + scaled_BC, dim=-1)
        loss_B = -mixed_BC.gather(1, facts["labels"].unsqueeze(1)).squeeze(1)
        if self.penalty:
            log_q_BC = torch.log_softmax(scaled_BC, dim=-1)
            loss_B = loss_B - self.penalty * (log_q_BC.exp() * log_q_BC).sum(dim=-1)
        return loss_B

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """The gradient of the summed loss by w and c, and how many samples there are.

        By g it is `E_r log p_b - log p_b(y)`, with r the mixed probabilities, less `penalty g Var_q log p_b`, with
        `q = softmax(g log p_b)`.
        """
        log_p_BC, hidden_BH = (one.detach().double() for one in _heard(said))
        bias_BC = facts["bias_log_p"].double()
        trust_B = _trust(hidden_BH, memory_S)
        r_BC = torch.softmax(log_p_BC + trust_B.unsqueeze(1) * bias_BC, dim=-1)
        own_B = bias_BC.gather(1, facts["labels"].unsqueeze(1)).squeeze(1)
        by_trust_B = (r_BC * bias_BC).sum(dim=-1) - own_B
        q_BC = torch.softmax(trust_B.unsqueeze(1) * bias_BC, dim=-1)
        off_mean_BC = bias_BC - (q_BC * bias_BC).sum(dim=-1, keepdim=True)
        by_trust_B = by_trust_B - self.penalty * trust_B * (q_BC * off_mean_BC**2).sum(dim=-1)
        by_score_B = by_trust_B * -torch.expm1(-trust_B)  # softplus' is sigmoid, which is 1 - exp(-softplus)
        return learned_linear.summed(by_score_B, hidden_BH)

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """One step of Adam on w and c."""
        return learned_linear.step(sums, memory_S, self.step_size)


def _heard(said: Said) -> tuple[Tensor, Tensor]:
    """What was asked of the readout; ValueError where it was not."""
    if said.log_p_BC is None or said.hidden_BH is None:
        raise ValueError("loss learned_mixin reads every label and hidden states; ask for them: said(..., hidden=True)")
    return said.log_p_BC, said.hidden_BH.to(said.log_p_BC.dtype)


def _trust(hidden_BH: Tensor, memory_S: Tensor) -> Tensor:
    """g(x) [B], of the dtype of the hidden states."""
    return torch.nn.functional.softplus(learned_linear.score(hidden_BH, memory_S))
