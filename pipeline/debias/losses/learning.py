"""A loss that learns while a model trains: its memory, and what it has seen since the last step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from debias.losses.base import EVERY_LABEL, HIDDEN, OF_READOUT, Loss
from debias.readouts.said import Said

Told = Mapping[str, Tensor] | Callable[[], Mapping[str, Tensor]]


class LearningLoss:
    """A loss with its memory. Call it for each micro-batch, then `step` once a step, on every rank.

    `facts`: of the whole training set, on which a loss with a memory begins, or what gives them; they are read when the
    first batch comes, or a checkpoint, and may be added to until then.
    """

    def __init__(self, loss: Loss, facts: Told | None = None) -> None:
        self.loss = loss
        self._facts = {} if facts is None else facts
        self._sums: Tensor | None = None

    @functools.cached_property
    def memory_S(self) -> Tensor:
        """What the loss knows, float64: as it began, or as the steps have left it.

        Raises ValueError where a fact that it begins with was not given.
        """
        facts = self._facts() if callable(self._facts) else self._facts
        try:
            return self.loss.begin(facts)
        except KeyError as error:
            told = f"loss {self.loss.name} begins with {error} of the whole training set, and has {sorted(facts)}"
            raise ValueError(f"{told}; give it as facts") from None

    @property
    def learns(self) -> bool:
        """Whether a checkpoint must keep the memory."""
        return self.loss.learns

    @property
    def every_label(self) -> bool:
        """Whether the loss reads the log-probabilities of all labels."""
        return EVERY_LABEL in self.loss.reads

    @property
    def asks(self) -> dict[str, bool]:
        """What a readout's `said` is asked for beside the batch, as its arguments."""
        return {"every_label": self.every_label, **({"hidden": True} if HIDDEN in self.loss.reads else {})}

    def __call__(self, said: Said, facts: Mapping[str, Tensor], *, counts: bool = True) -> Tensor:
        """`loss_B`; `counts`: false for a second look at a micro-batch that was counted already.

        Raises ValueError, with its name, where a fact that the loss reads is not in the batch.
        """
        if missing := sorted(self.loss.reads - OF_READOUT - set(facts)):
            raise ValueError(f"loss {self.loss.name} reads {missing[0]!r}, which this batch lacks: {sorted(facts)}")
        memory_S = self.memory_S.to(said.log_p_B.device)
        if counts and self.learns:
            sums = self.loss.sums(said, facts, memory_S).cpu()
            self._sums = sums if self._sums is None else self._sums + sums
        return self.loss(said, facts, memory_S)

    def step(self, over_ranks: Callable[[Tensor], Tensor], *, applied: bool = True) -> None:
        """The end of a step: `over_ranks` sums a tensor over the ranks; a step that was not applied teaches nothing."""
        if not self.learns:
            return
        sums = torch.zeros_like(self.memory_S) if self._sums is None else self._sums
        self._sums = None
        whole = over_ranks(sums)
        if applied:
            self.memory_S = self.loss.learn(whole, self.memory_S)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"name": self.loss.name, "memory": self.memory_S.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; ValueError for one of another loss, or of other data."""
        held: Tensor = state["memory"]
        begun = self.memory_S.numel()  # 0 where the first step makes the memory
        longer = self.loss.grows and torch.equal(held[..., : self.memory_S.shape[-1]], self.memory_S)
        if state["name"] != self.loss.name or (begun and held.numel() != begun and not longer):
            raise ValueError(f"loss: the checkpoint is of {state['name']} with {held.numel()} numbers, not of this run")
        self.memory_S = held.clone()
