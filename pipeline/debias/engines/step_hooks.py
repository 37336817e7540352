"""What is done around each step of an optimizer, whoever calls it, by PyTorch's own hooks on it."""

import sys
from collections.abc import Callable
from typing import Any

import torch

Around = Callable[[Any, Any, Any], None]


def inner(optimizer: Any) -> Any:
    """The optimizer that has hooks: itself, or what Accelerate's wrapper steps."""
    while not has_hooks(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def has_hooks(optimizer: Any) -> bool:
    """Whether it is one of PyTorch's, or of a class of them."""
    return isinstance(getattr(optimizer, "_optimizer_step_post_hooks", None), dict)


class AroundSteps:
    """Calls `before` and `after` around each step of an optimizer, once.

    A class whose `step` calls that of the class above it runs the hooks for both: these follow the outer one.
    """

    def __init__(self, optimizer: Any, before: Around | None, after: Around) -> None:
        self._before, self._after = before, after
        ends = (optimizer.register_step_pre_hook(self._enter), optimizer.register_step_post_hook(self._leave))
        self._ends: list[Callable[[], None]] = [end.remove for end in ends]

    def remove(self) -> None:
        """Leave the optimizer as it was."""
        for end in self._ends:
            end()
        self._ends = []

    def _enter(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._before is not None and not _is_inner(optimizer):
            self._before(optimizer, args, kwargs)

    def _leave(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not _is_inner(optimizer):
            self._after(optimizer, args, kwargs)


def _is_inner(optimizer: Any) -> bool:
    """Whether this runs in a step that another step of the same optimizer called, by the frames of PyTorch's hooks: a
    counter would be wrong after a step that ended in an error.
    """
    steps, module = 0, torch.optim.Optimizer.__module__
    frame: Any = sys._getframe()
    while frame is not None and steps < 2:
        if frame.f_code.co_name == "wrapper" and frame.f_globals.get("__name__") == module:
            steps += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return steps > 1
