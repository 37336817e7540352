"""The elements of largest magnitude, exactly as many as are asked for, without sorting and in bounded memory.

Magnitudes are compared as float32, whose bits, read as a whole number (the key), are in the order of the magnitudes.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor

CHUNK = 1 << 22  # elements that are looked at together: 16 MB of keys
DIGITS = (11, 10, 10)  # bits of a key, without its sign, that each pass counts by


def count_of(share: float, elements: int) -> int:
    """How many elements a share is, rounded down, of the number as it is written (0.29 of 100 is 29); one at least."""
    return max(1, int(Fraction(str(share)) * elements))


@torch.no_grad()
def largest(tensors: Sequence[Tensor], count: int) -> Iterator[Tensor]:
    """Where the `count` elements of largest magnitude lie in all tensors together: a mask [...] of each, in order.

    Exactly `count` elements; of equal ones those of earlier tensors come first, and in a tensor the earlier ones in
    row-major order. So it hangs on nothing but the numbers: ranks with equal tensors get equal masks. Magnitudes that
    float32 does not tell apart are equal. No element may be NaN. A mask is made when it is asked for, from a tensor
    that must not have changed until then.
    """
    key, ties = _last(tensors, count)
    for tensor in tensors:
        mask = torch.empty(tensor.shape, dtype=torch.bool, device=tensor.device)
        start = 0
        for keys in _keys(tensor):
            part = keys > key
            if ties:
                equal = keys == key
                found = int(equal.sum())
                if found > ties:
                    equal &= equal.cumsum(0, dtype=torch.int32) <= ties
                ties -= min(found, ties)
                part |= equal
            mask.view(-1)[start : start + len(part)] = part
            start += len(part)
        yield mask


def _last(tensors: Sequence[Tensor], count: int) -> tuple[int, int]:
    """The key of the last element that is taken, and how many elements of that key are."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1 and sum(tensor.numel() for tensor in tensors) <= CHUNK:
        every = torch.cat([keys for tensor in tensors for keys in _keys(tensor)])
        key = every.topk(count, sorted=False).values.amin()
        return int(key), count - int((every > key).sum())
    prefix, left = 0, sum(DIGITS)
    for bits in DIGITS:  # the key's digits from the first on, each by a pass over all tensors
        left -= bits
        counts = _counts(tensors, prefix, left, bits)
        from_above = counts.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_above, count))
        digit = len(counts) - 1 - place
        count -= int(from_above[place] - counts[digit])
        prefix = (prefix << bits) | digit
    return prefix, count


def _counts(tensors: Sequence[Tensor], prefix: int, left: int, bits: int) -> Tensor:
    """Of the elements whose key begins with `prefix`, how many there are of each next digit of `bits` bits."""
    found: dict[torch.device, Tensor] = {}
    for tensor in tensors:
        for keys in _keys(tensor):
            shifted = keys >> left
            digits = shifted[(shifted >> bits) == prefix] & ((1 << bits) - 1)
            counts = torch.bincount(digits, minlength=1 << bits)
            found[tensor.device] = counts + found.get(tensor.device, 0)
    return torch.stack([counts.cpu() for counts in found.values()]).sum(0)


def _keys(tensor: Tensor) -> Iterator[Tensor]:
    """The keys of a tensor's elements in row-major order, CHUNK of them at a time."""
    for part in tensor.reshape(-1).split(CHUNK):
        yield part.abs().float().view(torch.int32)
