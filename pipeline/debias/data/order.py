"""In which order examples are seen, and how often. Shapes: N examples.

A new order is one file, one line in `ORDERS` and one row in tests/unit/data/test_orders.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

BLOCK = 50  # batches whose examples are sorted by length together


@dataclass(frozen=True)
class Order:
    """Which examples make an epoch; subclasses are frozen dataclasses whose fields are the settings of `order:`.

    `reads`: the facts it needs beside `index`. What it gives is a function of the facts and the generator alone, so
    that all ranks and a resumed run agree. `sized_by`: those of them that `size` needs. `in_turn`: what comes first is
    seen first, so that batches are not shuffled, nor made of examples of like length.

    Copies of a row are of one length, and would share a step of like length: where an order repeats rows, steps are of
    rows in random order.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    sized_by: ClassVar[frozenset[str]] = frozenset()
    in_turn: ClassVar[bool] = False

    @property
    def repeats(self) -> bool:
        """Whether an epoch may see a row more than once."""
        return True

    def size(self, facts: Mapping[str, Tensor]) -> int:
        """Examples of an epoch, each as often as it is seen."""
        return len(facts["index"])

    def epoch(self, facts: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Places in the training set, [size] int64, in random order."""
        raise NotImplementedError

    def seen(self, facts: Mapping[str, Tensor]) -> Tensor | None:
        """How often an epoch sees each example on average, [N] float64; None where it sees all once."""
        raise NotImplementedError


@dataclass(frozen=True)
class Shuffled(Order):
    """Every example once an epoch, in random order: the ordinary way.

    Needs nothing. Costs nothing. Fails where the data has too much of something: the model sees too much of it.

    Source: random reshuffling, as in Gürbüzbalaban et al., Why Random Reshuffling Beats SGD, 2015, arXiv 1510.08560.
    """

    name: ClassVar[str] = "shuffled"

    @property
    def repeats(self) -> bool:
        """Never."""
        return False

    def epoch(self, facts: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        return torch.randperm(self.size(facts), generator=generator)

    def seen(self, facts: Mapping[str, Tensor]) -> Tensor | None:
        """Once."""
        return None


def drawn_by_weight(weight_N: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Places in proportion to weights of 0 or more, one of them above 0, with replacement, [size] int64.

    By the sums up to each place: `torch.multinomial` takes no more than 2^24 of them.
    """
    upto_N = weight_N.double().cumsum(0)
    at = torch.rand(size, generator=generator, dtype=torch.float64) * upto_N[-1]
    # `right`: a place of weight 0 is passed over. What rounds up to the whole sum is the last place with a weight.
    last = int(torch.searchsorted(upto_N, upto_N[-1]))
    return torch.searchsorted(upto_N, at, right=True).clamp(max=last)


def seen_by_weight(weight_N: Tensor, size: int) -> Tensor:
    """How often `drawn_by_weight` gives each place on average, [N] float64."""
    return size * weight_N.double() / weight_N.double().sum()


class LengthBuckets(Sampler[int]):
    """Random order with examples of like length together; the order depends on seed and epoch alone.

    Within each random block of 50 batches the examples are sorted by length, so a batch has little padding and batches
    still come in random order. `order` says which examples make an epoch; by default all, once. Without `by_length`,
    and where the order repeats rows, a block is one batch: its rows are random, and sorted for its micro-batches alone.
    Of several `wordings` one is drawn for each example: i + k N is example i in wording k.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int32],
        batch_size: int,
        seed: int,
        order: Order | None = None,
        facts: Mapping[str, Tensor] | None = None,
        *,
        wordings: int = 1,
        by_length: bool = True,
    ) -> None:
        self.wordings = wordings
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.order = order or Shuffled()
        self.by_length = by_length and not self.order.repeats
        self.facts = facts or {"index": torch.arange(len(self.lengths))}
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer; makes a resumed epoch the same as the one that was interrupted."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.order.size(self.facts)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order_N = self.order.epoch(self.facts, generator).numpy().copy()
        if self.order.in_turn:
            return iter(self._worded(order_N, generator).tolist())
        length_N, block = np.asarray(self.lengths), (BLOCK if self.by_length else 1) * self.batch_size
        for start in range(0, len(order_N), block):
            part = order_N[start : start + block]
            order_N[start : start + block] = part[np.argsort(-length_N[part], kind="stable")]
        # A short batch can only come last, or the batches after it would be cut across lengths.
        whole = len(order_N) // self.batch_size
        shuffled = torch.randperm(whole, generator=generator).numpy() * self.batch_size
        order_N = self._worded(order_N, generator)
        return _in_turn(order_N, np.append(shuffled, whole * self.batch_size), self.batch_size)

    def _worded(self, order_N: NDArray[np.int64], generator: torch.Generator) -> NDArray[np.int64]:
        """Each example in one of its wordings; drawn last, so that one wording is seen as it was without others."""
        if self.wordings == 1:
            return order_N
        drawn: NDArray[np.int64] = torch.randint(self.wordings, (len(order_N),), generator=generator).numpy()
        return order_N + drawn * len(self.lengths)


def _in_turn(order_N: NDArray[np.int64], starts: NDArray[np.int64], batch_size: int) -> Iterator[int]:
    for start in starts:
        yield from order_N[start : start + batch_size].tolist()
