"""Which tensors live when: bytes of every storage from the operation that makes it until nothing holds it any more."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Autograd asks each fake tensor for its device, more often than it computes anything.
WHERE = torch.ops.prim.device.default


class Live(TorchDispatchMode):
    """Inside, storages are followed through every operation; works on fake tensors, which hold no memory.

    What existed before counts nothing. `curve(without)` gives live bytes after each event.
    """

    def __init__(self) -> None:
        super().__init__()
        self._events: list[tuple[int, int]] = []  # (serial number of a storage, bytes that came or went)
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._serial = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is WHERE:
            return func(*args)
        for tensor in _tensors((*args, *(kwargs or {}).values())):
            self._meet(tensor, born=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors((result,)):
            self._meet(tensor, born=True)
        return result

    @property
    def events(self) -> int:
        """How many there have been: where in the curve we are."""
        return len(self._events)

    def serials(self, tensors: Iterable[Tensor]) -> set[int]:
        """The serial numbers of what holds these tensors."""
        keys = (tensor.untyped_storage()._cdata for tensor in tensors)
        return {self._known[key][0] for key in keys if key in self._known}

    def curve(self, without: frozenset[int] | set[int] = frozenset()) -> list[int]:
        """Live bytes after each event, leaving out the storages of those serial numbers."""
        now, found = 0, []
        for serial, change in self._events:
            now += 0 if serial in without else change
            found.append(now)
        return found

    def _meet(self, tensor: Tensor, *, born: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        serial = self._serial = self._serial + 1
        size = storage.nbytes() if born else 0
        if size:
            self._events.append((serial, size))

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            if size:
                self._events.append((serial, -size))

        self._known[key] = (serial, weakref.ref(storage, gone))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among what an operation takes or gives: tensors, lists of tensors, and what is neither."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def fake_in_place(model: torch.nn.Module) -> None:
    """Replace parameters and buffers of the meta device by empty ones of the CPU; under a FakeTensorMode they are free.

    Tied parameters stay tied.
    """
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    made[id(parameter)] = torch.nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
