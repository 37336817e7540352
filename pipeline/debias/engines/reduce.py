"""Sums over ranks, a bucket at a time."""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_ELEMENTS = 1 << 24  # 64 MiB of float32: large enough to fill a link, small enough to be no second copy


def all_reduce_sum(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Sum each tensor over the group, in place; every rank must bring the same shapes in the same order."""
    for bucket in _buckets(tensors):
        flat = torch.cat([t.reshape(-1) for t in bucket])
        dist.all_reduce(flat, group=group)
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def broadcast_first(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> None:
    """Every tensor as the group's first rank has it, in place; shapes and order as in `all_reduce_sum`."""
    first = 0 if group is None else dist.get_global_rank(group, 0)
    with torch.no_grad():
        for bucket in _buckets([tensor for tensor in tensors if tensor.numel()]):
            flat = torch.cat([t.detach().reshape(-1) for t in bucket])
            dist.broadcast(flat.view(torch.uint8), first, group=group)  # as bytes: backends do not know all types
            for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > BUCKET_ELEMENTS
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket
