"""What a process sends: calls and bytes of `torch.distributed` functions, by kind."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import Tensor

# The argument that holds the whole of what a collective moves, by position and by name, and the kind it counts as.
WHOLE = {
    "all_reduce": (0, "tensor", "all_reduce"),
    "all_gather": (0, "tensor_list", "all_gather"),
    "all_gather_into_tensor": (0, "output_tensor", "all_gather"),
    "reduce_scatter": (1, "input_list", "reduce_scatter"),
    "reduce_scatter_tensor": (1, "input", "reduce_scatter"),
    "broadcast": (0, "tensor", "broadcast"),
    "reduce": (0, "tensor", "reduce"),
    "all_to_all_single": (0, "output", "all_to_all"),
}


@dataclass
class Traffic:
    """Payload in bytes and calls by kind: the whole tensor of a collective, whatever each rank has to send of it."""

    payload: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def install(self) -> None:
        """Count from now on, for the life of the process; before a library takes hold of the functions."""
        for name in WHOLE:
            setattr(dist, name, self._counting(getattr(dist, name), name))

    def take(self) -> dict[str, dict[str, int]]:
        """What was counted since the last call, as `{"payload": {kind: bytes}, "calls": {kind: calls}}`."""
        taken = {"payload": dict(sorted(self.payload.items())), "calls": dict(sorted(self.calls.items()))}
        self.payload.clear()
        self.calls.clear()
        return taken

    def _counting(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        position, keyword, kind = WHOLE[name]

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            whole = args[position] if len(args) > position else kwargs[keyword]
            self.payload[kind] = self.payload.get(kind, 0) + _bytes(whole)
            self.calls[kind] = self.calls.get(kind, 0) + 1
            return function(*args, **kwargs)

        return counted


def _bytes(whole: Tensor | Iterable[Tensor]) -> int:
    tensors = [whole] if isinstance(whole, Tensor) else whole
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
