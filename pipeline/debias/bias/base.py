"""The weight that makes a loss favour what is easy. Shapes: B samples."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from debias.readouts.said import SampleLosses


class BiasWeightSource(Protocol):
    """Where bias weights come from. A seam of its own: rules and gradients never know which source is in use."""

    def __call__(self, losses: SampleLosses, batch: Mapping[str, Any]) -> Tensor:
        """The weight [B] of each sample of this batch, detached."""
