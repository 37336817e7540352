"""The model's own confidence as the bias signal (EDGE as published, LfF). Shapes: B samples."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from debias.bias.weights import gce_weight
from debias.readouts.said import Said


@dataclass(frozen=True)
class SelfWeight:
    """The model's own confidence: `q * p^q` of the forward pass that made `said`."""

    q: float = 0.7

    def __call__(self, said: Said, facts: Mapping[str, Tensor]) -> Tensor:
        return gce_weight(said.confidence_B, self.q)
