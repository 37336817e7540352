"""The seam between loss and engine: one batch yields `main` in `p.grad` and `bias` beside it. Shapes: B samples."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

# A fresh forward pass on the same batch: (loss_B, weight_B).
Again = Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What a forward pass gives to the two gradients.

    `loss_B` [B] with its graph, summed over a sample's tokens; `weight_B` [B] its bias weights. `again` runs a new
    forward (two_pass only). `sample_index` [R, T] (-1: padding) is the sample of each token where rows are not samples.
    `batch_loss`, a scalar, is added to the loss of main alone: a loss of the batch and not of its samples.
    """

    loss_B: Tensor
    weight_B: Tensor
    again: Again | None = None
    sample_index: Tensor | None = None
    batch_loss: Tensor | None = None

    def main_loss(self) -> Tensor:
        """The scalar whose gradient is main."""
        total = self.loss_B.sum()
        return total if self.batch_loss is None else total + self.batch_loss


class Passes(Protocol):
    """How one backward pass is run, and which of the two gradients it adds to: the engine's part of a source."""

    def main(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        """Backpropagate the scalar `loss`, adding to the main gradient."""

    def bias(self, make_loss: Callable[[], Tensor]) -> None:
        """Backpropagate the scalar that `make_loss` returns, adding to the bias gradient and to nothing else."""


class GradientSource:
    """Accumulates sums, not means: `main` of `loss_B` into `p.grad`, `bias` of `weight_B * loss_B` into `self.bias`.

    The engine divides both by the one denominator when all micro-batches and ranks are in. `selected` maps names to the
    parameters that need both gradients; every other trainable parameter gets `main` only. An engine whose gradients do
    not live in `p.grad` puts `passes` of its own in the place of `LocalPasses`.
    """

    name: ClassVar[str]

    def __init__(self, model: nn.Module, selected: Mapping[str, nn.Parameter]) -> None:
        self.model = model
        self.selected = dict(selected)
        self.bias: dict[str, Tensor] = {}
        self.passes: Passes = LocalPasses(self)

    def backward(self, batch: MicroBatch) -> None:
        """Add this micro-batch's two gradients to what is accumulated."""
        raise NotImplementedError

    def bias_dtype(self, parameter: Tensor) -> torch.dtype:
        """Of the bias gradient that this source makes of a parameter."""
        return parameter.dtype

    def reset(self) -> None:
        """Forget the accumulated bias gradient (the engine owns `p.grad`)."""
        self.bias.clear()

    def detach(self) -> None:
        """Leave the model as it was."""
        self.reset()


class LocalPasses:
    """The ordinary backward pass; `main` in `p.grad`, `bias` in the source."""

    def __init__(self, source: GradientSource) -> None:
        self.source = source

    def main(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        loss.backward(retain_graph=retain_graph)

    def bias(self, make_loss: Callable[[], Tensor]) -> None:
        with self._into_bias():
            make_loss().backward()

    @contextmanager
    def _into_bias(self) -> Iterator[None]:
        """Inside, a backward pass adds to the bias gradient; every `p.grad` is untouched afterwards.

        Swapping `p.grad` instead of asking autograd for gradients keeps reentrant activation checkpointing working,
        which allows `.backward()` only.
        """
        source = self.source
        trainable = [p for p in source.model.parameters() if p.requires_grad]
        kept = [p.grad for p in trainable]
        for p in trainable:
            p.grad = None
        for name, p in source.selected.items():
            p.grad = source.bias.get(name)
        try:
            yield
            source.bias = {name: p.grad for name, p in source.selected.items() if p.grad is not None}
        finally:
            for p, grad in zip(trainable, kept, strict=True):
                p.grad = grad


class Plain(GradientSource):
    """The ordinary backward pass, for a rule that does not look at the bias gradient."""

    name: ClassVar[str] = "plain"

    def backward(self, batch: MicroBatch) -> None:
        self.passes.main(batch.main_loss())


class SharedForward(GradientSource):
    """One forward pass, two backward passes: exact for any model and any per-sample weight."""

    name: ClassVar[str] = "shared_forward"

    def backward(self, batch: MicroBatch) -> None:
        # One graph serves both passes: the second is the weighted sum over the same loss_B.
        self.passes.main(batch.main_loss(), retain_graph=True)
        self.passes.bias((batch.weight_B.detach() * batch.loss_B).sum)


class TwoPass(GradientSource):
    """Two forward and two backward passes: the oracle, and the only mode with two dropout masks (as published)."""

    name: ClassVar[str] = "two_pass"

    def backward(self, batch: MicroBatch) -> None:
        again = batch.again
        if again is None:
            raise ValueError(
                "gradients 'two_pass' needs backward(..., again=f), f() -> (loss_B, weight_B) of a new forward"
            )
        self.passes.main(batch.main_loss())

        def second() -> Tensor:
            second_loss_B, second_weight_B = again()
            return (no_grad_weight(second_weight_B, second_loss_B) * second_loss_B).sum()

        self.passes.bias(second)


def no_grad_weight(weight_B: Tensor, loss_B: Tensor) -> Tensor:
    """The weight detached, in float32 at least, on the loss's device; ValueError unless both are [B] of the same B."""
    if loss_B.dim() != 1:
        raise ValueError(f"loss_B has shape {tuple(loss_B.shape)}; expected one value for each sample, [B]")
    if weight_B.shape != loss_B.shape:
        raise ValueError(
            f"weight_B has shape {tuple(weight_B.shape)}, loss_B {tuple(loss_B.shape)}; they must be equal"
        )
    if not loss_B.requires_grad:
        raise ValueError("loss_B does not require grad: was it detached, or computed under no_grad?")
    dtype = torch.promote_types(weight_B.dtype, torch.float32)
    return weight_B.detach().to(device=loss_B.device, dtype=dtype)
