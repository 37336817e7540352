"""BLIND: what is foreseeable counts less (Orgad & Belinkov, ACL 2023, arXiv 2212.10563).

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
class Blind(Loss):
    """`-(1 - q(s))^gamma log p(y)`: a sample counts less, the surer a linear detector is of whether the model is right.

    `s` is whether the model's likeliest label is the right one, and `q` what the success detector says of it,
    `sigmoid((w h + c) / temperature)` for right: where a linear look at the model's own hidden states foresees its
    success or its mistake, it has something easy to go by. h are the last hidden states, averaged over the sample's
    tokens (of a causal model over the prompt), and no gradient goes through the detector into the model. w and c, at 0
    where they begin, belong to the loss: after each step Adam moves them by `step_size` down the detector's own
    cross-entropy, over micro-batches and ranks, and they are in every checkpoint. At `gamma` 0 it is cross-entropy.

    Needs a model of transformers, and of a causal model answers of one token; no bias model and no group. Costs 24
    bytes of a hidden column. Fails where the model is right on nearly all of the training data: the detector then
    foresees success everywhere, and everything counts little. The paper's h is the state of the first token, its
    detector learns from a batch before it weighs it (here from the steps before), and its recipes have `gamma` 16.

    Source: Orgad & Belinkov, BLIND: Bias Removal With No Demographics, ACL 2023, arXiv 2212.10563, and its authors'
    code, whose release weighs by the detector's probability of a group label in the place of `s`.
    """

    name: ClassVar[str] = "blind"
    reads: ClassVar[frozenset[str]] = frozenset({EVERY_LABEL, HIDDEN})
    learns: ClassVar[bool] = True
    gamma: float = 2.0
    temperature: float = 1.0
    step_size: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("gamma", "step_size"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, expected more than 0")

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        right_B, hidden_BH = _heard(said, facts)
        score_B = learned_linear.score(hidden_BH, memory_S) / self.temperature
        missed_B = torch.sigmoid(torch.where(right_B, -score_B, score_B))  # what the detector left open of s
        return -(missed_B**self.gamma).to(said.log_p_B.dtype) * said.log_p_B

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """The gradient of the detector's cross-entropy by w and c, `sigmoid(score) - s`, and how many samples."""
        right_B, hidden_BH = _heard(said, facts)
        wide_BH = hidden_BH.double()
        return learned_linear.summed(torch.sigmoid(learned_linear.score(wide_BH, memory_S)) - right_B.double(), wide_BH)

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """One step of Adam on w and c."""
        return learned_linear.step(sums, memory_S, self.step_size)


def _heard(said: Said, facts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Whether the model is right [B], and hidden states without their graph; ValueError where none were asked for."""
    if said.log_p_BC is None or said.hidden_BH is None:
        raise ValueError("loss blind reads every label and hidden states; ask for them: said(..., hidden=True)")
    return said.log_p_BC.argmax(dim=1) == facts["labels"], said.hidden_BH.detach()
