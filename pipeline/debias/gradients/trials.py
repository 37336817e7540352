"""Backward passes beside those of a step, of which single_pass makes its comparison."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from debias.gradients.base import GradientSource

# Statistics that a layer keeps are small; the packed weights of a quantizer, which are buffers too, are not.
LARGEST_BUFFER = 1 << 20

Watch = AbstractContextManager[None]
NOBODY: Watch = nullcontext()


class Trials(Protocol):
    """What an engine can do with a backward pass beside those of a step."""

    # All ranks run every pass together (DeepSpeed), so that they must decide together as well.
    lockstep: bool

    def aside(self, loss: Tensor, watch: Watch = NOBODY) -> None:
        """Backpropagate `loss`, keep its graph, and leave every gradient as it was; `watch` is entered meanwhile."""

    def leaves(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        """The tensors, by the same names, at which autograd leaves the gradients of these parameters."""

    def agree(self, numbers: Tensor) -> Tensor:
        """The sum over all ranks that look at this moment."""


class LocalTrials:
    """Gradients in `p.grad`: one process, or DistributedDataParallel, whose ranks agree at the end of the step."""

    lockstep = False

    def __init__(self, source: GradientSource) -> None:
        self.source = source

    def aside(self, loss: Tensor, watch: Watch = NOBODY) -> None:
        trainable = trainable_of(self.source.model)
        with spared(leaves_of(loss, trainable)), muted(trainable), dropping(trainable), watch:
            loss.backward(retain_graph=True)

    def leaves(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        return parameters

    def agree(self, numbers: Tensor) -> Tensor:
        return numbers


def trainable_of(model: nn.Module) -> list[nn.Parameter]:
    """Every parameter that trains, once."""
    held = (p for module in model.modules() for p in module._parameters.values() if p is not None)
    return list({id(p): p for p in held if p.requires_grad}.values())


def leaves_of(loss: Tensor, known: Iterable[Tensor]) -> list[Tensor]:
    """Every leaf that a backward pass of `loss` would give a gradient, and those that are `known` to be reached.

    Leaves inside reentrant checkpointing cannot be seen from outside.
    """
    found = {id(leaf): leaf for leaf in known}
    seen: set[Any] = set()
    todo: list[Any] = [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            found[id(leaf)] = leaf
        todo.extend(following for following, _ in node.next_functions)
    return list(found.values())


@contextmanager
def spared(leaves: Iterable[Tensor]) -> Iterator[None]:
    """The gradients of these leaves are afterwards the very tensors that they were."""
    kept = [(leaf, leaf.grad) for leaf in leaves]
    for leaf, _ in kept:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, grad in kept:
            leaf.grad = grad


@contextmanager
def muted(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Hooks on these parameters are not called inside: whoever counts or clips gradients must see no trial."""
    hooks: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for p in parameters:
        held: Any = p
        for kind in (held._backward_hooks, held._post_accumulate_grad_hooks):
            if kind:
                hooks.append((kind, dict(kind)))
                kind.clear()
    try:
        yield
    finally:
        for kind, before in hooks:
            kind.update(before)


@contextmanager
def dropping(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, a gradient of these parameters is given up as soon as it is whole: nobody reads it."""
    handles = [p.register_post_accumulate_grad_hook(_drop) for p in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Random states and the buffers of `model` (running statistics) are afterwards what they were.

    A backward pass changes them where activation checkpointing runs layers again.
    """
    devices = sorted({p.device.index or 0 for p in trainable_of(model) if p.device.type == "cuda"})
    with same_buffers(model), torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def same_buffers(model: nn.Module) -> Iterator[None]:
    """The buffers of `model` (running statistics) are afterwards what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if buffer.numel() <= LARGEST_BUFFER]
    versions = [buffer._version for buffer, _ in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for (buffer, before), version in zip(buffers, versions, strict=True):
                if buffer._version != version:
                    buffer.copy_(before)
