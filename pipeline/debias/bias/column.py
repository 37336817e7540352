"""A bias weight that came with the data. Shapes: B samples."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from debias.readouts.said import Said


@dataclass(frozen=True)
class ColumnWeight:
    """A weight that came with the data (a bias model's confidence, an annotator's): the fact `bias_weight` [B]."""

    def __call__(self, said: Said, facts: Mapping[str, Tensor]) -> Tensor:
        return facts["bias_weight"].detach().float()
