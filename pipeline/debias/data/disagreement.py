"""Resampling by how far a bias model disagrees with the label (DPR: Han et al., NeurIPS 2024). Shapes: N examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.data.order import Order, drawn_by_weight, seen_by_weight


@dataclass(frozen=True)
class Disagreement(Order):
    """As many draws as there are examples, with replacement, each in proportion to `1 - p_b(y)`: DPR's resampling.

    `p_b` is what the bias model gives the right label, so that examples which its shortcut explains are seen seldom.
    The expected loss is that of weights `1 - p_b(y)`, in batches that are full of what is hard. With two labels that
    balances a cue exactly, where the bias model knows it; with three it falls short: the label that a cue goes along
    with 9 times in 10 is still that of 49 % of what is seen of it.

    Needs a bias model, or a first stage that keeps `log_p`; no groups. Costs the bias model, and padding:
    steps are of random rows, for of like length they would be full of one row's copies. Fails where the bias model is
    sure of honest signal too, or where labels are wrong: mislabelled examples are seen most. The paper trains its
    bias model with generalized cross-entropy, begins the second run from that model's weights, and augments pictures;
    here the bias model is any of the table, and the run begins from its own base.

    Source: Han et al., Mitigating Spurious Correlations via Disagreement Probability, NeurIPS 2024, arXiv 2411.01757.
    """

    name: ClassVar[str] = "disagreement"
    also_called: ClassVar[tuple[str, ...]] = ("dpr",)
    reads: ClassVar[frozenset[str]] = frozenset({"bias_log_p"})

    def epoch(self, facts: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        return drawn_by_weight(_doubt(facts), self.size(facts), generator)

    def seen(self, facts: Mapping[str, Tensor]) -> Tensor | None:
        """In proportion to `1 - p_b(y)`."""
        return seen_by_weight(_doubt(facts), self.size(facts))


def _doubt(facts: Mapping[str, Tensor]) -> Tensor:
    own_N = facts["bias_log_p"].gather(1, facts["labels"].unsqueeze(1)).squeeze(1)
    return -torch.expm1(own_N.double())
