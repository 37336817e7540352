"""How many tensors of one kind are combined together, and how many rows get their coefficients at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# A parameter's name with what the rule looks at of it, its main gradient first.
Looked = tuple[str, Sequence[Tensor]]

# On an accelerator each call is a launch: tensors of one kind are stacked up to this many elements; more would only
# cost memory.
STACK_ELEMENTS = 1 << 22
# On a CPU a stack is a copy, which pays for small tensors alone, and while it stays in the cache.
CPU_STACK_ELEMENTS, CPU_LARGE = 1 << 17, 1 << 15
# On a CPU, rows whose coefficients are made together: what is in between stays in the cache.
CPU_ROWS = 1 << 15


def together(elements: int, device: torch.device) -> int:
    """How many tensors of so many elements are stacked."""
    if device.type != "cpu":
        return max(1, STACK_ELEMENTS // max(1, elements))
    return 1 if elements >= CPU_LARGE else CPU_STACK_ELEMENTS // max(1, elements)


def blocks(gram_KOG: Tensor) -> list[slice]:
    """Which of the K parameters of a Gram [K, O, G] get their coefficients together."""
    members, rows, _ = gram_KOG.shape
    size = max(1, CPU_ROWS // max(1, rows)) if gram_KOG.device.type == "cpu" else max(1, members)
    return [slice(start, start + size) for start in range(0, members, size)]


def groups_of_one_shape(looked: Sequence[Looked]) -> Iterator[list[Looked]]:
    """Parameters of equal shape and dtypes together, as many as are to be stacked."""
    groups: dict[Any, list[Looked]] = {}
    for name, vectors in looked:
        kind = (vectors[0].shape, vectors[0].device, *(vector.dtype for vector in vectors))
        groups.setdefault(kind, []).append((name, vectors))
    for group in groups.values():
        first = group[0][1][0]
        size = together(first.numel(), first.device)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def stacked(tensors: list[Tensor]) -> Tensor:
    """[K, O, I]; a single large tensor is not copied."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0].unsqueeze(0)
