"""SPARE's sampling (Yang et al., AISTATS 2024, arXiv 2305.18761). Shapes: N examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.data.order import Order, drawn_by_weight, seen_by_weight


@dataclass(frozen=True)
class SpareSampled(Order):
    """As many draws as there are examples, with replacement, small clusters of a label before large ones.

    In proportion to the weights that `groups: {name: spare}` gives: within a label `1 / size^power` of the example's
    cluster, and labels alike. Needs these groups, and so a first stage that keeps `log_p` (or a bias model). Costs
    padding: steps are of random rows, for of like length they would be full of one row's copies. Fails where a cluster
    is tiny, or made of what is hard: its examples are learned by heart.

    Source: Yang et al., Identifying Spurious Biases Early in Training through the Lens of Simplicity Bias, AISTATS
    2024, arXiv 2305.18761, and its authors' library.
    """

    name: ClassVar[str] = "spare"
    reads: ClassVar[frozenset[str]] = frozenset({"draw_weight"})

    def epoch(self, facts: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        return drawn_by_weight(facts["draw_weight"], self.size(facts), generator)

    def seen(self, facts: Mapping[str, Tensor]) -> Tensor | None:
        """In proportion to the weights."""
        return seen_by_weight(facts["draw_weight"], self.size(facts))
