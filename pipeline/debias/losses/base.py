"""What every loss is: from what a model said, and what is known of samples, a loss [B]. B samples, S numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from debias.readouts.said import Said

EVERY_LABEL, HIDDEN, LOGITS = "every_label", "hidden", "logits"
OF_READOUT = frozenset({EVERY_LABEL, HIDDEN, LOGITS})  # what a loss reads that is no fact, and a readout is asked for


@dataclass(frozen=True)
class Loss:
    """A loss of each sample; subclasses are frozen dataclasses whose fields are the settings of the `loss:` block.

    Both gradients are weighted sums of the gradients of this loss: `main` of its mean, `bias` of its mean under the
    bias weights. So the loss of a sample may not depend on which samples share its micro-batch. `reads`: the facts it
    needs beside `labels`, EVERY_LABEL where it needs `said.log_p_BC`, HIDDEN for `said.hidden_BH`, and LOGITS beside
    EVERY_LABEL for `said.log_z_B`, which classifiers have alone. `learns`: its memory changes with the steps, and
    belongs into checkpoints; else it is as `begin` makes it. One that learns, and does not know how long its memory is
    before it has seen a batch, begins with none, or `grows`: what it began with stays its first columns.
    `within_labels`: it compares the groups of a label with each other. `compares`: it compares kinds of samples by what
    a step has of each. Rows of like length may be of one kind, so that steps are of rows in random order.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    learns: ClassVar[bool] = False
    grows: ClassVar[bool] = False
    within_labels: ClassVar[bool] = False
    compares: ClassVar[bool] = False

    def __call__(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """`loss_B`, differentiable; `memory_S` is what the loss began with, and has learned since."""
        raise NotImplementedError

    def for_labels(self, labels: Sequence[str]) -> "Loss":
        """This loss for a run with these labels, in their order; most know of none. ValueError: it does not fit."""
        return self

    def begin(self, facts: Mapping[str, Tensor]) -> Tensor:
        """`memory_S` float64 before the first step, from the facts of the whole training set [N]; most keep nothing.

        Among them is `seen` where an order does not see every example once: how often it does, on average.
        """
        return torch.zeros(0, dtype=torch.float64)

    @property
    def ahead(self) -> bool:
        """Whether it reads statistics of the step itself: `sums` of the whole step come before its first loss."""
        return False

    @property
    def in_rows(self) -> bool:
        """Whether its `sums` are rows, one of each sample, put one after another: a statistic that is no sum.

        The first column is 0 or more. Only of a loss that is `ahead`.
        """
        return False

    def sums(self, said: Said, facts: Mapping[str, Tensor], memory_S: Tensor) -> Tensor:
        """What `learn` and `of_step` need of a micro-batch, [S] float64 sums over its samples, to be added over
        micro-batches and ranks.
        """
        return torch.zeros(0, dtype=torch.float64)

    def of_step(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """Of a loss that is `ahead`, what its samples are given as `memory_S` in a step of which `sums` are whole."""
        return memory_S

    def learn(self, sums: Tensor, memory_S: Tensor) -> Tensor:
        """`memory_S` after a step that was applied."""
        return memory_S


class StepPenalty(Loss):
    """A loss with a penalty of many samples at once: by those of the step itself, or by those of the steps before.

    `memory`, a setting of each: how much is kept of the steps before; None: nothing, statistics are of the step itself.
    """

    compares: ClassVar[bool] = True
    memory: float | None

    @property
    def ahead(self) -> bool:
        """Whether statistics are of the step itself."""
        return self.memory is None
