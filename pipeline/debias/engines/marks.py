"""Whether somebody beside a hook wrote to the gradients of a step: main would change, and bias would not."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Marks:
    """Where each gradient lies and how often it was written to, remembered between the micro-batches of a step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self._taken: dict[str, tuple[int, int] | None] | None = None

    def take(self) -> None:
        """Remember the gradients as they are."""
        self._taken = self._now()

    def forget(self) -> None:
        """A step begins anew."""
        self._taken = None

    @property
    def is_fresh(self) -> bool:
        """Whether no micro-batch of this step was seen."""
        return self._taken is None

    def check(self) -> None:
        """RuntimeError, naming the parameter, where a gradient is not as it was, or a step does not begin with none."""
        held = ((name, p.grad) for name, p in self.parameters.items())
        if self._taken is None:
            touched = next((name for name, grad in held if grad is not None and bool(_here(grad).any())), None)
        else:
            now = self._now()
            touched = next((name for name in now if now[name] != self._taken.get(name)), None)
        if touched is not None:
            raise RuntimeError(
                f"the gradient of {touched} was changed beside hook.backward (loss.backward(), zero_grad() or clipping"
                " of your own); clear the gradients, then let the hook alone write them until its step"
            )

    def _now(self) -> dict[str, tuple[int, int] | None]:
        held = ((name, p.grad) for name, p in self.parameters.items())
        here = ((name, None if grad is None else _here(grad)) for name, grad in held)
        return {name: None if grad is None else (grad.data_ptr(), grad._version) for name, grad in here}


def _here(gradient: Any) -> torch.Tensor:
    """What of a gradient lies on this rank."""
    if not hasattr(gradient, "to_local"):
        found: torch.Tensor = gradient
        return found
    with torch.no_grad():
        found = gradient.to_local()
        return found
