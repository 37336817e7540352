"""Gradients taken elsewhere than at the weights: these move up, both gradients are taken, and they are put back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from debias.engines.random_state import RandomState, gpus_of, random_state, set_random_state
from debias.engines.wrapping import Guard
from debias.gradients import GradientSource, MicroBatch, no_grad_weight
from debias.gradients.trials import leaves_of, muted, spared
from debias.readouts.router import router_loss_of
from debias.sharpness import Sharpness


def refuse_second_pass(name: str, model: nn.Module, *, deepspeed: bool) -> None:
    """ValueError, in one line, where a run has what `sharpness` of that name cannot go with."""
    if deepspeed:
        raise ValueError(
            f"sharpness {name} moves the weights within a step, and DeepSpeed holds them; remove one of the two"
        )
    if router_loss_of(model) is not None:
        raise ValueError(
            f"sharpness {name}: the load balancing loss (router_aux_loss_coef) is of the batch and has no second pass;"
            " set it to 0, or remove sharpness"
        )


class SecondPass:
    """A first backward pass of each micro-batch that says where its gradients are taken, for gradients in `p.grad`.

    The random state before the model's forward pass is remembered and set again before the second one's, so that both
    passes see one dropout; what is drawn afterwards is drawn as if there were no first pass. Of several calls of the
    model since the last micro-batch the first counts: what else is asked of it is asked under `torch.no_grad`. Running
    statistics follow the first pass alone.
    """

    def __init__(self, model: nn.Module, sharpness: Sharpness) -> None:
        self.sharpness = sharpness
        self._gpus: list[int] | None = None  # looked up in the first call, when the model lies where it trains
        self._statistics = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._began: RandomState | None = None
        self._repeat: RandomState | None = None  # while `again` runs, until it calls the model
        self._guard = model.register_forward_pre_hook(Guard(self._see))

    def detach(self) -> None:
        """Leave the model as it was."""
        self._guard.remove()
        self._began = None

    def forget(self) -> None:
        """The step begins anew: the next forward pass is the first of a micro-batch."""
        self._began = None

    def backward(self, batch: MicroBatch, source: GradientSource, trainable: Mapping[str, nn.Parameter]) -> None:
        """As `source.backward`, of the forward pass that `batch.again` runs where the weights have moved to.

        ValueError where there is no such pass to run, or a loss of the whole batch; RuntimeError where the model was
        not called since the last micro-batch.
        """
        again, began, name = batch.again, self._began, self.sharpness.name
        self._began = None
        if again is None:
            raise ValueError(
                f"sharpness {name} needs backward(..., again=f), f() -> (loss_B, weight_B) of a new forward pass"
            )
        if batch.batch_loss is not None:
            raise ValueError(f"sharpness {name}: a loss of the batch (batch_loss) has no second pass; leave it out")
        if began is None:
            raise RuntimeError(
                f"sharpness {name}: the model was not called before backward, in training and with gradients, so that"
                " its dropout cannot be repeated; call the model that was given to attach"
            )
        weights, moves = self._up(batch.loss_B, trainable)
        held = [buffer for module in self._statistics for buffer in module.buffers(recurse=False)]
        try:
            with restored([*weights, *held]):
                if moves:
                    torch._foreach_add_(weights, moves)
                moves.clear()
                self._repeat = began
                loss_B, weight_B = again()
                weight_B = no_grad_weight(weight_B, loss_B)
                source.backward(MicroBatch(loss_B, weight_B, again, batch.sample_index))
        finally:
            self._began = self._repeat = None  # of the second forward pass

    def _up(self, loss_B: Tensor, trainable: Mapping[str, nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
        """Weights, and how far each is to move; none where there is no way up. No gradient is left behind."""
        loss, parameters = loss_B.sum(), list(trainable.values())
        with spared(leaves_of(loss, parameters)), muted(parameters):
            loss.backward()
            gradients = {name: p.grad for name, p in trainable.items() if p.grad is not None}
        weights = {name: trainable[name].detach() for name in gradients}  # in whose place autograd sees no change
        moves = self.sharpness.moves(weights, list(gradients.values()))
        return list(weights.values()) if moves else [], moves

    def _see(self, model: nn.Module, inputs: Any) -> None:
        """A forward pre-hook: the first call since the last micro-batch is the one that `again` repeats."""
        if self._repeat is not None:
            set_random_state(self._repeat)
            self._repeat = None
        if self._began is None and model.training and torch.is_grad_enabled():
            if self._gpus is None:
                self._gpus = gpus_of(model)
            self._began = random_state(self._gpus)


@contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[None]:
    """These tensors are afterwards what they were, to the bit: copies are put back, nothing is subtracted."""
    kept = [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        if kept:
            torch._foreach_copy_(list(tensors), kept)
