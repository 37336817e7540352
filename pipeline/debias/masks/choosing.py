"""The elements of largest magnitude, exactly as many as are asked for, without sorting and in bounded memory.

Magnitudes are compared as float32, whose bits, read as a whole number (the key), are in the order of the magnitudes.
Shapes: W ranks, K tensors, D digits.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

CHUNK = 1 << 22  # elements that are looked at together: 16 MB of keys
DIGITS = (11, 10, 10)  # bits of a key, without its sign, that each pass counts by


class Ranks(Protocol):
    """The ranks among which tensors are dealt out: of each a piece, in the order of the ranks, or nothing."""

    rank: int

    def counts(self, own: Tensor) -> Tensor:
        """The whole numbers of every rank, [W, ...], on the CPU. Collective."""


def count_of(share: float, elements: int) -> int:
    """How many elements a share is, rounded down, of the number as it is written (0.29 of 100 is 29); one at least."""
    return max(1, int(Fraction(str(share)) * elements))


def largest(tensors: Sequence[Tensor], count: int, ranks: Ranks | None = None) -> Iterator[Tensor]:
    """Where the `count` elements of largest magnitude lie in all tensors together: a mask [...] of each, in order.

    Exactly `count` elements; of equal ones those of earlier tensors come first, and in a tensor the earlier ones in
    row-major order. So it hangs on nothing but the numbers: ranks with equal tensors get equal masks, and ranks that
    have pieces of them (`ranks`) the pieces of these masks. Magnitudes that float32 does not tell apart are equal. No
    element may be NaN. A mask is made when it is asked for, from a tensor that must not have changed until then.
    """
    return _masks([tensors], [count], ranks)


def largest_of_each(tensors: Sequence[Tensor], counts: Sequence[int], ranks: Ranks | None = None) -> Iterator[Tensor]:
    """The same of each tensor by itself. With `ranks` it takes no more messages than all of them together do."""
    return _masks([[tensor] for tensor in tensors], counts, ranks)


@torch.no_grad()
def _masks(groups: Sequence[Sequence[Tensor]], counts: Sequence[int], ranks: Ranks | None) -> Iterator[Tensor]:
    if ranks is not None:
        yield from _pieces(groups, counts, ranks)
        return
    for tensors, count in zip(groups, counts, strict=True):
        key, ties = _last(tensors, count)
        for tensor in tensors:
            mask, taken = _mask(tensor, key, ties)
            ties -= taken
            yield mask


def _pieces(groups: Sequence[Sequence[Tensor]], counts: Sequence[int], ranks: Ranks) -> Iterator[Tensor]:
    """Of pieces: the ties of a tensor belong to the ranks in their order."""
    lasts = _last_of_each(groups, counts, ranks)
    known = [(tensor, key) for tensors, (key, _) in zip(groups, lasts, strict=True) for tensor in tensors]
    if not known:
        return
    equal_WK = ranks.counts(torch.tensor([sum(int((keys == key).sum()) for keys in _keys(t)) for t, key in known]))
    every_K, before_K = equal_WK.sum(0), equal_WK[: ranks.rank].sum(0)
    place = 0
    for tensors, (key, ties) in zip(groups, lasts, strict=True):
        left = ties
        for tensor in tensors:
            yield _mask(tensor, key, max(0, left - int(before_K[place])))[0]
            left -= int(every_K[place])
            place += 1


def _mask(tensor: Tensor, key: int, ties: int) -> tuple[Tensor, int]:
    """Where keys are larger than `key`, or equal to it and among the first `ties`; and how many of these there were."""
    mask = torch.empty(tensor.shape, dtype=torch.bool, device=tensor.device)
    start, left = 0, ties
    for keys in _keys(tensor):
        part = keys > key
        if left:
            equal = keys == key
            found = int(equal.sum())
            if found > left:
                equal &= equal.cumsum(0, dtype=torch.int32) <= left
            left -= min(found, left)
            part |= equal
        mask.view(-1)[start : start + len(part)] = part
        start += len(part)
    return mask, ties - left


def _last(tensors: Sequence[Tensor], count: int) -> tuple[int, int]:
    """The key of the last element that is taken, and how many elements of that key are."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) == 1 and sum(tensor.numel() for tensor in tensors) <= CHUNK:
        every = torch.cat([keys for tensor in tensors for keys in _keys(tensor)])
        key = every.topk(count, sorted=False).values.amin()
        return int(key), count - int((every > key).sum())
    return _last_of_each([tensors], [count], None)[0]


def _last_of_each(
    groups: Sequence[Sequence[Tensor]], counts: Sequence[int], ranks: Ranks | None
) -> list[tuple[int, int]]:
    """The same of each group of tensors, the key's digits from the first on, each by a pass over all of them."""
    found, left = [(0, count) for count in counts], sum(DIGITS)
    if not found:
        return found
    for bits in DIGITS:
        left -= bits
        pairs = zip(groups, found, strict=True)
        counts_KD = torch.stack([_counts(tensors, prefix, left, bits) for tensors, (prefix, _) in pairs])
        if ranks is not None:
            counts_KD = ranks.counts(counts_KD).sum(0)
        found = [_next(*one, counts_D, bits) for one, counts_D in zip(found, counts_KD, strict=True)]
    return found


def _next(prefix: int, count: int, counts_D: Tensor, bits: int) -> tuple[int, int]:
    """The prefix with one digit more, and how many elements are still to be taken of those that begin with it."""
    from_above = counts_D.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, count))
    digit = len(counts_D) - 1 - place
    return (prefix << bits) | digit, count - int(from_above[place] - counts_D[digit])


def _counts(tensors: Sequence[Tensor], prefix: int, left: int, bits: int) -> Tensor:
    """Of the elements whose key begins with `prefix`, how many there are of each next digit of `bits` bits."""
    found = torch.zeros(1 << bits, dtype=torch.int64)
    on_device: dict[torch.device, Tensor] = {}
    for tensor in tensors:
        for keys in _keys(tensor):
            shifted = keys >> left
            digits = shifted[(shifted >> bits) == prefix] & ((1 << bits) - 1)
            counts = torch.bincount(digits, minlength=1 << bits)
            on_device[tensor.device] = counts + on_device.get(tensor.device, 0)
    return found + sum(counts.cpu() for counts in on_device.values())


def _keys(tensor: Tensor) -> Iterator[Tensor]:
    """The keys of a tensor's elements in row-major order, CHUNK of them at a time."""
    for part in tensor.reshape(-1).split(CHUNK):
        yield part.abs().float().view(torch.int32)
