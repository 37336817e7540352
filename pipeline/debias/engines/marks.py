"""Whether somebody beside a hook wrote to the gradients of a step: main would change, and bias would not."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Of each gradient so many elements are remembered, evenly spaced. What is done to gradients from outside (a scale taken
# off, a sum over ranks) is done to all of them.
SAMPLED = 12
WAITS = frozenset({"cpu"})  # where to ask costs nothing
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Marks:
    """Where each gradient lies, how often it was written to and what is in it, between the micro-batches of a step.

    The count of writes (autograd's version) sees what ordinary operations do; `p.grad.data`, GradScaler.unscale_ and
    torch.distributed write past it, and change values alone. These are compared where they lie, and on an accelerator
    asked for once a step, for to ask is to wait.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self._taken: dict[str, tuple[int, int] | None] | None = None
        self._begun: dict[str, tuple[int, int] | None] = {}  # the zeros that a step began with
        self._values: dict[torch.device, tuple[list[str], Tensor]] = {}
        self._changed: list[tuple[list[str], Tensor]] = []

    def take(self) -> None:
        """Remember the gradients as they are."""
        self._taken = self._now()
        self._values = self._sampled()

    def forget(self) -> None:
        """A step begins anew."""
        self._taken, self._begun = None, {}
        self._values, self._changed = {}, []

    @property
    def is_fresh(self) -> bool:
        """Whether no micro-batch of this step was seen."""
        return self._taken is None

    def untouched(self, name: str) -> bool:
        """Whether a gradient is still the zeros that were there before the step (`zero_grad(set_to_none=False)`)."""
        before = self._begun.get(name)
        return before is not None and before == _place(self.parameters[name].grad)

    def check(self, *, last: bool = True) -> None:
        """RuntimeError, naming the parameter, where a gradient is not as it was, or a step does not begin with none.

        `last`: at the end of a step; before, what differs on an accelerator may be kept until then.
        """
        if self._taken is None:
            held = ((name, p.grad) for name, p in self.parameters.items())
            touched = next((name for name, grad in held if grad is not None and bool(_here(grad).any())), None)
            self._begun = self._now()
        else:
            now = self._now()
            touched = next((name for name in now if now[name] != self._taken.get(name)), None)
            if touched is None:  # the same gradients, so that their elements lie in the same places
                touched = self._other_values(last)
        if touched is not None:
            raise RuntimeError(
                f"the gradient of {touched} was changed beside hook.backward (loss.backward(), zero_grad() or clipping"
                " of your own, GradScaler.unscale_, a sum or mean over ranks); clear the gradients, then let the hook"
                " alone write them until its step (of a loss scaler: see attach)"
            )

    def _other_values(self, last: bool) -> str | None:
        for device, (names, values) in self._sampled().items():
            self._changed.append((names, values != self._values[device][1]))
        asked = last or all(device.type in WAITS for device in self._values)
        while asked and self._changed:
            names, changed = self._changed.pop()
            if bool(changed.any()):
                return names[int(changed.nonzero()[0, 0])]
        return None

    def _sampled(self) -> dict[torch.device, tuple[list[str], Tensor]]:
        """By device the names of its gradients, and of each SAMPLED elements as bits, so that NaN is itself: [N, S]."""
        found: dict[tuple[torch.device, torch.dtype], tuple[list[str], list[Tensor]]] = {}
        with torch.no_grad():
            for name, grad in ((name, _here(p.grad)) for name, p in self.parameters.items() if p.grad is not None):
                if grad.numel():
                    names, samples = found.setdefault((grad.device, grad.dtype), ([], []))
                    names.append(name)
                    samples.append(_sample(grad))
            return _by_device((device, names, torch.stack(samples)) for (device, _), (names, samples) in found.items())

    def _now(self) -> dict[str, tuple[int, int] | None]:
        return {name: _place(p.grad) for name, p in self.parameters.items()}


def _place(gradient: Any) -> tuple[int, int] | None:
    """Where it lies, and how often it was written to."""
    if gradient is None:
        return None
    here = _here(gradient)
    return here.data_ptr(), here._version


def _sample(gradient: Tensor) -> Tensor:
    """SAMPLED of its elements, evenly spaced; a short one's are taken more than once."""
    size = gradient.numel()
    if size < SAMPLED or not gradient.is_contiguous():
        return gradient.flatten()[torch.arange(SAMPLED, device=gradient.device) * size // SAMPLED]
    return gradient.as_strided((SAMPLED,), (size // SAMPLED,))  # one call, and no copy


def _by_device(
    parts: Iterable[tuple[torch.device, list[str], Tensor]],
) -> dict[torch.device, tuple[list[str], Tensor]]:
    found: dict[torch.device, tuple[list[str], Tensor]] = {}
    for device, names, values in parts:
        bits = values.view(_BITS[values.element_size()]).long()
        known, before = found.get(device, ([], bits[:0]))
        found[device] = ([*known, *names], torch.cat([before, bits]))
    return found


def _here(gradient: Any) -> Tensor:
    """What of a gradient lies on this rank."""
    if not hasattr(gradient, "to_local"):
        found: Tensor = gradient
        return found
    with torch.no_grad():
        found = gradient.to_local()
        return found
