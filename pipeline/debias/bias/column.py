"""A bias weight that came with the data. Shapes: B samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from debias.readouts.said import SampleLosses


@dataclass(frozen=True)
class ColumnWeight:
    """A weight that came with the data (a bias model's confidence, an annotator's): the batch's `bias_weight` [B]."""

    def __call__(self, losses: SampleLosses, batch: Mapping[str, Any]) -> Tensor:
        weight_B: Tensor = batch["bias_weight"]
        return weight_B.detach().float()
