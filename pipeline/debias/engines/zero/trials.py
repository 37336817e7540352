"""Backward passes on a DeepSpeed engine beside those of a step, at the first micro-batch of a step."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from debias.engines.zero.homes import rewind
from debias.gradients.trials import NOBODY, Watch, leaves_of, spared


class Runner(Protocol):
    """What runs the engine's backward pass: the hook."""

    engine: Any

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """What trains, by name."""

    def run(self, loss: Tensor, *, alone: bool, retain_graph: bool = False) -> None:
        """A backward pass; `alone`: not added to what the engine has accumulated."""

    def forget_passes(self) -> None:
        """Drop what this step's passes gave."""


class ZeroTrials:
    """See `debias.gradients.trials.Trials`; every rank runs each of these passes, and learns what the others found."""

    lockstep = True

    def __init__(self, hook: Runner) -> None:
        self.hook = hook

    def aside(self, loss: Tensor, watch: Watch = NOBODY) -> None:
        own = {id(p) for p in self.hook.trainable.values()}
        outside = [leaf for leaf in leaves_of(loss, ()) if id(leaf) not in own]
        again = rewind(self.hook.engine)
        try:
            with spared(outside), watch:
                self.hook.run(loss, alone=True, retain_graph=True)
        finally:
            self.hook.forget_passes()
            again()

    def leaves(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        return parameters

    def agree(self, numbers: Tensor) -> Tensor:
        everywhere = numbers.to(self.hook.engine.device)
        dist.all_reduce(everywhere, group=getattr(self.hook.engine, "seq_data_parallel_group", None))
        return everywhere.cpu()
