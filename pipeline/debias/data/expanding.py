"""Progressive data expansion (PDE: Deng et al., NeurIPS 2023, arXiv 2306.04949). Shapes: N examples, P pairs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.data.order import Order


@dataclass(frozen=True)
class Expanding(Order):
    """First a small part of the data in which every group is as large, again and again; then more of it, bit by bit.

    Of each pair of label and group as many examples as the smallest pair has, at most `cap`, are seen `warmup` times;
    then `added` random ones of the others join them and all are seen `rounds` times, `stages` times over (fewer, once
    everything has joined). All of that is one epoch, in that order: give `num_train_epochs: 1`, or the `max_steps` that
    it takes. What is learned first then is what holds in every group, and the rest is read in its light.

    Needs a group of each training example, of the data or inferred (`groups`). Costs nothing more, and padding, for
    batches are not of like length. Fails where a pair is tiny: its few examples are learned by heart before anything
    else; and where the rest goes on long enough to teach the shortcut after all. The authors' code can
    begin with a new optimizer where expansion begins, and stops by validation with groups: neither is here.

    Source: Deng et al., Robust Learning with Progressive Data Expansion Against Spurious Correlation, NeurIPS 2023,
    arXiv 2306.04949; cap, warm-up and additions of its authors' code for CivilComments.
    """

    name: ClassVar[str] = "expanding"
    also_called: ClassVar[tuple[str, ...]] = ("pde",)
    reads: ClassVar[frozenset[str]] = frozenset({"group"})
    sized_by: ClassVar[frozenset[str]] = frozenset({"group"})
    in_turn: ClassVar[bool] = True
    cap: int = 150
    warmup: int = 15
    added: int = 300
    rounds: int = 2
    stages: int = 10

    def __post_init__(self) -> None:
        for name in ("cap", "warmup", "added", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.stages < 0:
            raise ValueError(f"stages is {self.stages}, expected 0 or more")

    def size(self, facts: Mapping[str, Tensor]) -> int:
        """Examples of all stages, each as often as it is seen."""
        counts_P = _pairs(facts)[1]
        begun = self._of_each(counts_P) * len(counts_P)
        return self.warmup * begun + self.rounds * sum(self._sizes(begun, int(counts_P.sum())))

    def epoch(self, facts: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        pair_N, counts_P = _pairs(facts)
        drawn_N = torch.randperm(len(pair_N), generator=generator)
        sorted_N = drawn_N[pair_N[drawn_N].argsort(stable=True)]
        place_N = torch.arange(len(pair_N)) - (counts_P.cumsum(0) - counts_P).repeat_interleave(counts_P)
        first_N = place_N < self._of_each(counts_P)
        begun, others = sorted_N[first_N], sorted_N[~first_N]
        others = others[torch.randperm(len(others), generator=generator)]
        joined = torch.cat([begun, others])
        seen = [begun] * self.warmup
        for size in self._sizes(len(begun), len(joined)):
            seen += [joined[:size]] * self.rounds
        return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in seen])

    def seen(self, facts: Mapping[str, Tensor]) -> Tensor | None:
        """Over all stages: those of which every pair has as many from the start, of the others any as often."""
        pair_N, counts_P = _pairs(facts)
        each, whole = self._of_each(counts_P), len(pair_N)
        begun = each * len(counts_P)
        rounds = self.warmup + self.rounds * len(self._sizes(begun, whole))
        joined = self.rounds * sum(size - begun for size in self._sizes(begun, whole)) / max(whole - begun, 1)
        first_P = each / counts_P.double()
        return (first_P * rounds + (1 - first_P) * joined)[pair_N]

    def _of_each(self, counts_P: Tensor) -> int:
        return min(self.cap, int(counts_P.min()))

    def _sizes(self, begun: int, whole: int) -> list[int]:
        """How many examples each stage has."""
        found = [begun + self.added * stage for stage in range(1, self.stages + 1)]
        return [min(size, whole) for size in found if size - self.added < whole]


def _pairs(facts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Of each example the number of its pair of label and group [N], and how many examples each that occurs has [P]."""
    told_N2 = torch.stack([facts["labels"], facts["group"]], dim=1)
    _, pair_N, counts_P = told_N2.unique(dim=0, return_inverse=True, return_counts=True)
    return pair_N, counts_P
