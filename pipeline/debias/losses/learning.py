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

    One that is `ahead` reads statistics of the whole step: `gather` what is said of each of its micro-batches (without
    gradients will do), `settle`, and then call it for each. A step of one micro-batch in one process needs neither.

    `facts`: of the whole training set, on which a loss with a memory begins, or what gives them; they are read when the
    first batch comes, or a checkpoint, and may be added to until then.
    """

    def __init__(self, loss: Loss, facts: Told | None = None) -> None:
        self.loss = loss
        self._facts = {} if facts is None else facts
        self._sums: Tensor | None = None
        self._step_S: Tensor | None = None  # of a loss that is ahead: what it knows in this step
        self._left = 0  # micro-batches of the step that were gathered, and whose losses were not taken yet
        self._settled = False

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
    def ahead(self) -> bool:
        """Whether a step's statistics must be whole before its first loss."""
        return self.loss.ahead

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

        Raises ValueError, with its name, where a fact that the loss reads is not in the batch; RuntimeError for a
        micro-batch of which the step's statistics do not know.
        """
        self._check(facts)
        if self.ahead:
            return self.loss(said, facts, self._of_step(said, facts, counts=counts).to(said.log_p_B.device))
        if counts and self.learns:
            self._add(said, facts)
        return self.loss(said, facts, self.memory_S.to(said.log_p_B.device))

    def gather(self, said: Said, facts: Mapping[str, Tensor]) -> None:
        """Count a micro-batch whose loss is taken later in the step, where the loss is `ahead`."""
        self._check(facts)
        self._add(said, facts)
        self._left += 1

    def settle(self, over_ranks: Callable[[Tensor], Tensor], joined: Callable[[Tensor], Tensor] | None = None) -> None:
        """All micro-batches of the step are gathered; `over_ranks` as in `step`.

        `joined`: puts the rows of all ranks one after another, which only a loss that is `in_rows` asks for. Without it
        RuntimeError where there is more than one rank.
        """
        if not self.loss.in_rows:
            self._sums = over_ranks(self._whole())
        elif joined is not None:
            self._sums = joined(self._whole())
        else:
            self._checked(self._whole(), over_ranks)
        self._step_S, self._settled = self.loss.of_step(self._whole(), self.memory_S), True

    def _of_step(self, said: Said, facts: Mapping[str, Tensor], *, counts: bool) -> Tensor:
        if self._step_S is None and not counts:  # of no step
            return self.loss.of_step(self._sums_of(said, facts), self.memory_S)
        if self._step_S is None:  # nobody gathered: this is the whole step
            self.gather(said, facts)
            self._step_S = self.loss.of_step(self._whole(), self.memory_S)
        self._left -= counts
        if self._left < 0:
            raise RuntimeError(
                f"loss {self.loss.name} takes statistics of the whole step, and this micro-batch is not in them; gather"
                " each one of the step and settle before the first loss, or set loss.memory to 0.9 (the steps before)"
            )
        return self._step_S

    def _check(self, facts: Mapping[str, Tensor]) -> None:
        if missing := sorted(self.loss.reads - OF_READOUT - set(facts)):
            raise ValueError(f"loss {self.loss.name} reads {missing[0]!r}, which this batch lacks: {sorted(facts)}")

    def _add(self, said: Said, facts: Mapping[str, Tensor]) -> None:
        sums = self._sums_of(said, facts)
        if self._sums is not None:
            sums = torch.cat([self._sums, sums]) if self.loss.in_rows else self._sums + sums
        self._sums = sums

    def _sums_of(self, said: Said, facts: Mapping[str, Tensor]) -> Tensor:
        return self.loss.sums(said, facts, self.memory_S.to(said.log_p_B.device)).cpu()

    def _whole(self) -> Tensor:
        return torch.zeros_like(self.memory_S) if self._sums is None else self._sums

    def step(self, over_ranks: Callable[[Tensor], Tensor], *, applied: bool = True) -> None:
        """The end of a step: `over_ranks` sums a tensor over the ranks; a step that was not applied teaches nothing."""
        if not self.learns:
            return
        own, settled = self._whole(), self._settled
        self._sums, self._step_S, self._left, self._settled = None, None, 0, False
        whole = own if settled else self._checked(own, over_ranks)
        if applied:
            self.memory_S = self.loss.learn(whole, self.memory_S)

    def _checked(self, own: Tensor, over_ranks: Callable[[Tensor], Tensor]) -> Tensor:
        """The sums of all ranks, of a step that was not settled; RuntimeError where its losses have read one rank's."""
        mine = torch.tensor(float(len(own))) if self.loss.in_rows else own
        whole = over_ranks(mine.clone())
        if self.ahead and not torch.allclose(whole, mine, equal_nan=True):
            raise RuntimeError(
                f"loss {self.loss.name} takes statistics of the whole step, and took those of one rank; gather each"
                " micro-batch and settle before the first loss, or set loss.memory to 0.9 (the steps before)"
            )
        return own if self.loss.in_rows else whole

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
