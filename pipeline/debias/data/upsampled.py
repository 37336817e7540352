"""Upsampling of what an earlier run got wrong (JTT: Liu et al., ICML 2021, arXiv 2107.09044). Shapes: N examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.data.order import Order


@dataclass(frozen=True)
class Upsampled(Order):
    """Every example once an epoch, and those that the first stage got wrong `times` times: the second stage of JTT.

    Just Train Twice: `first_stage: {keep: errors, settings: {...}}` trains plainly for a short while, and this order
    sees its errors more often (`times` is the paper's lambda_up). Needs a first stage, no groups. Costs that run,
    an epoch that is longer by the errors, and padding: steps are of random rows, for of like length they would be full
    of one row's copies. Fails where the first stage gets everything right, or errs at random (noise
    in labels is upsampled too).

    Source: Liu et al., Just Train Twice: Improving Group Robustness without Training Group Information, ICML 2021,
    arXiv 2107.09044.
    """

    name: ClassVar[str] = "upsampled"
    also_called: ClassVar[tuple[str, ...]] = ("jtt",)
    reads: ClassVar[frozenset[str]] = frozenset({"error"})
    times: int = 6

    def __post_init__(self) -> None:
        if self.times < 1:
            raise ValueError(f"times is {self.times}, expected 1 or more")

    @property
    def repeats(self) -> bool:
        """Errors, unless they are seen once like all others."""
        return self.times > 1

    def size(self, facts: Mapping[str, Tensor]) -> int:
        """Examples of an epoch, each as often as it is seen."""
        return int(self._times(facts).sum())

    def epoch(self, facts: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        repeated = torch.arange(len(facts["index"])).repeat_interleave(self._times(facts))
        return repeated[torch.randperm(len(repeated), generator=generator)]

    def seen(self, facts: Mapping[str, Tensor]) -> Tensor | None:
        """Once, and errors `times` times."""
        return self._times(facts).double()

    def _times(self, facts: Mapping[str, Tensor]) -> Tensor:
        return 1 + (self.times - 1) * facts["error"].long()
