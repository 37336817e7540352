"""Statistics of a whole step before its first loss: one pass without gradients over its micro-batches.

As gradient caching does (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP
2021, arXiv 2101.06983), but what is kept of the pass are sums over samples, and not their representations.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from debias.engines.random_state import RandomState, gpus_of, random_state, set_random_state
from debias.gradients.trials import same_buffers

Batch = dict[str, Any]


class LookAhead:
    """The micro-batches of a step, and the random states in which they were seen.

    A step of one micro-batch, on each of any number of ranks, has no such pass: its statistics are those of its one
    forward pass. Else the loss of each micro-batch is taken with the dropout masks with which it was seen; what is
    drawn beside is drawn as ever. Running statistics follow the passes with gradients alone.
    """

    def __init__(self) -> None:
        self._batches: Sequence[Batch] = ()
        self._states: deque[RandomState] = deque()

    def begin(self, batches: Sequence[Batch]) -> None:
        """A step of these micro-batches, on this rank, is next."""
        self._batches = batches
        self._states.clear()

    @property
    def is_one(self) -> bool:
        """Whether the step has one micro-batch."""
        return len(self._batches) <= 1

    def look(self, model: nn.Module, see: Callable[[Batch], None]) -> bool:
        """Before the first loss of a step of several micro-batches `see` each; whether that was now."""
        if self.is_one or self._states:
            return False
        gpus = gpus_of(model)
        with torch.no_grad(), same_buffers(model):
            for batch in self._batches:
                self._states.append(random_state(gpus))
                see(batch)
        return True

    @contextmanager
    def as_seen(self) -> Iterator[None]:
        """Inside, the next micro-batch is passed as it was seen."""
        if self.is_one:
            yield
            return
        state = self._states[0]
        now = random_state(list(state[1]))
        set_random_state(state)
        try:
            yield
        finally:
            set_random_state(now)
            self._states.popleft()


def refuse_look_ahead(name: str, sharpness: str | None) -> None:
    """ValueError, in one line, where a trainer has what a loss of that name, which looks ahead, cannot go with."""
    if sharpness is not None:
        raise ValueError(
            f"loss {name} takes statistics of the step at the weights, and sharpness {sharpness} takes gradients"
            " elsewhere; set loss.memory to 0.9 (statistics of the steps before), or remove one of the two"
        )
