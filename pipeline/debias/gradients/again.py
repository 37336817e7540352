"""Whether a graph can be run backward more than once, measured, and shared_forward that asks before it does.

A fused kernel may write its result into the tensors that it saved for its backward pass (Liger's SwiGLU and GEGLU do,
from Triton, where autograd's version counter sees nothing). The first backward pass through such a graph is right; the
second reads what the first has left, and is garbage without a word. Shapes: B samples.
"""

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from debias.gradients.base import MicroBatch, SharedForward, TwoPass, no_grad_weight
from debias.gradients.proof import tolerance, watching
from debias.gradients.samples import NotExact
from debias.gradients.trials import LocalTrials, Trials, unchanged

logger = logging.getLogger(__name__)

WHY = (
    "the graph of this model's forward pass cannot be run backward twice: two equal passes gave different gradients (a"
    " fused kernel writes into what it saved, as Liger's SwiGLU does)"
)
CURE = "switch that kernel off, or turn on gradient checkpointing, which makes its input anew"


class Prints:
    """Norm and sum of gradients by parameter's name: what two equal backward passes must have in common."""

    def __init__(self, gradients: Mapping[str, Tensor] | None = None) -> None:
        self.dtypes: set[torch.dtype] = set()
        self.of: dict[str, list[Tensor]] = {}
        for name, gradient in (gradients or {}).items():
            self._arrived(name, gradient)

    def watch(self, parameters: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Inside, each gradient that arrives at one of these parameters leaves its print."""
        return watching(parameters, self._arrived)

    def _arrived(self, name: str, gradient: Tensor) -> None:
        self.dtypes.add(gradient.dtype)
        gradient = gradient.detach()
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
        self.of.setdefault(name, []).append(torch.stack([norm, gradient.sum(dtype=torch.float64)]))

    def numbers(self) -> dict[str, tuple[float, float]]:
        """The length of what arrived, and the sum; of several gradients (reentrant checkpointing) of all together."""
        found = {name: torch.stack(prints).cpu() for name, prints in self.of.items()}
        return {name: (float(two[:, 0].norm()), float(two[:, 1].sum())) for name, two in found.items()}


def differ(first: Prints, second: Prints) -> bool | None:
    """Whether two passes gave other gradients, by more than rounding; None where they say nothing (none, or no number).

    The rounding of 16 bits, and sums whose order changes on a GPU, are far below `proof.tolerance`.
    """
    one, other = first.numbers(), second.numbers()
    lengths = [length for prints in (one, other) for length, _ in prints.values()]
    if not lengths or not max(lengths) or not all(math.isfinite(length) for length, _ in one.values()):
        return None
    relative, floor = tolerance(first.dtypes | second.dtypes)
    for name in one.keys() | other.keys():
        (length, total), (length2, total2) = one.get(name, (0.0, 0.0)), other.get(name, (0.0, 0.0))
        allowed = max(relative * length, floor * max(length for length, _ in one.values()))
        if not (abs(length - length2) <= allowed and abs(total - total2) <= allowed):
            return True
    return False


def agreed(trials: Trials, found: bool | None) -> bool | None:
    """What any rank that looks at this moment has found is found by all; None where nobody is sure."""
    wrong, sure = trials.agree(torch.tensor([found is True, found is not None], dtype=torch.float64)).tolist()
    return bool(wrong) if sure else None


def anew(batch: MicroBatch) -> MicroBatch:
    """The same samples with a graph that nobody has run; NotExact where there is no way to make one."""
    if batch.again is None:
        raise NotExact(f"{WHY}; call backward(..., again=f), f() -> (loss_B, weight_B) of a new forward, or {CURE}")
    loss_B, weight_B = batch.again()
    return replace(batch, loss_B=loss_B, weight_B=no_grad_weight(weight_B, loss_B))


class OnceOnly(TwoPass):
    """`TwoPass` for a graph that must not be run again; its first micro-batch comes with one that was."""

    def __init__(self, model: nn.Module, selected: Mapping[str, nn.Parameter]) -> None:
        super().__init__(model, selected)
        self._ruined = True

    def backward(self, batch: MicroBatch) -> None:
        if batch.again is None or self._ruined:
            batch = anew(batch)
        self._ruined = False
        super().backward(batch)


class ProvenSharedForward(SharedForward):
    """`SharedForward` that first runs one micro-batch's ordinary backward pass twice, and compares.

    Where they differ two_pass takes over for the rest of the run, from that micro-batch on, and `name` is its name;
    where shared_forward was asked for by name NotExact is raised.
    """

    def __init__(self, model: nn.Module, selected: Mapping[str, nn.Parameter], *, may_change: bool) -> None:
        super().__init__(model, selected)
        self.trials: Trials = LocalTrials(self)
        self._may_change = may_change
        self._proven = False
        self._instead: OnceOnly | None = None

    def backward(self, batch: MicroBatch) -> None:
        if not self._proven and self._instead is None:
            self._prove(batch)
        if self._instead is None:
            super().backward(batch)
            return
        self._instead.passes = self.passes
        self._instead.backward(batch)

    def _prove(self, batch: MicroBatch) -> None:
        prints = Prints(), Prints()
        leaves = self.trials.leaves(self.selected)
        with unchanged(self.model):
            for one in prints:
                self.trials.aside(batch.main_loss(), one.watch(leaves))
        found = agreed(self.trials, differ(*prints))
        self._proven = found is False
        if found:
            if not self._may_change:
                raise NotExact(f"gradients 'shared_forward' is not exact here: {WHY}; use two_pass, or {CURE}")
            logger.warning("gradients: auto falls back to two_pass; %s", WHY)
            self._instead = OnceOnly(self.model, self.selected)
            self.name = OnceOnly.name  # type: ignore[misc]  # of this instance, from now on
