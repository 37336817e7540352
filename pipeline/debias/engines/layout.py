"""Which slice of each parameter a rank owns, and how full tensors become such slices. Shapes: W ranks, N elements.

A slice is of the flattened parameter: rows may straddle ranks, and a rank may own nothing of a small parameter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Piece:
    """Elements `[start, stop)` of a flattened parameter."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Layout(Protocol):
    """Where the reduced gradients of an engine lie."""

    @property
    def pieces(self) -> Mapping[str, Piece]:
        """What this rank owns, by parameter; a parameter of which it owns nothing is absent."""

    @property
    def sharded(self) -> bool:
        """False where every rank owns everything, so that sums over pieces are whole already."""

    def cuts(self, name: str) -> range:
        """Where in a flattened parameter one rank's piece ends and another's begins; the same on every rank."""

    def reduce(self, full: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """Sum full tensors over the ranks, with one collective; returns this rank's pieces, flat, float32.

        A parameter that is missing in `full` counts as zero. Every rank must call this.
        """


@dataclass(frozen=True)
class Replicated:
    """Stage 0: every rank holds every gradient whole. One all-reduce."""

    shapes: Shapes
    group: dist.ProcessGroup | None
    sharded: bool = False

    @property
    def pieces(self) -> dict[str, Piece]:
        """Everything."""
        return {name: Piece(0, shape.numel()) for name, shape in self.shapes.items()}

    def cuts(self, name: str) -> range:
        """Nowhere."""
        return range(0)

    def reduce(self, full: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """See `Layout.reduce`."""
        flat = torch.cat([_flat_or_zeros(full, name, shape, device) for name, shape in self.shapes.items()])
        dist.all_reduce(flat, group=self.group)
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return dict(zip(self.shapes, parts, strict=True))


@dataclass(frozen=True)
class Chunked:
    """Stage 3: each parameter is cut into W chunks of `ceil(N / W)`, the last ones short or empty."""

    shapes: Shapes
    rank: int
    world: int
    group: dist.ProcessGroup | None
    sharded: bool = True

    @property
    def pieces(self) -> dict[str, Piece]:
        """The rank's chunk of each parameter."""
        chunks = {name: self._chunk(shape) for name, shape in self.shapes.items()}
        ends = {name: min((self.rank + 1) * chunks[name], shape.numel()) for name, shape in self.shapes.items()}
        starts = {name: self.rank * chunk for name, chunk in chunks.items()}
        return {name: Piece(starts[name], ends[name]) for name in self.shapes if starts[name] < ends[name]}

    def cuts(self, name: str) -> range:
        """Every chunk's end."""
        shape = self.shapes[name]
        return range(self._chunk(shape), shape.numel(), max(1, self._chunk(shape)))

    def reduce(self, full: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """See `Layout.reduce`."""
        # [W, chunk] of each parameter side by side: row r of the buffer is all that rank r owns.
        columns = []
        for name, shape in self.shapes.items():
            flat, chunk = _flat_or_zeros(full, name, shape, device), self._chunk(shape)
            padded = torch.nn.functional.pad(flat, (0, chunk * self.world - flat.numel()))
            columns.append(padded.view(self.world, chunk))
        own = reduce_scatter(torch.cat(columns, dim=1).flatten(), self.world, self.group)
        parts = own.split([self._chunk(shape) for shape in self.shapes.values()])
        chunks = dict(zip(self.shapes, parts, strict=True))
        return {name: chunks[name][: len(piece)] for name, piece in self.pieces.items()}

    def _chunk(self, shape: torch.Size) -> int:
        return math.ceil(shape.numel() / self.world)


@dataclass(frozen=True)
class ByRows(Chunked):
    """FSDP2: each parameter's rows (dimension 0) are dealt out, `ceil(O / W)` to a rank, the last ones less or none."""

    def _chunk(self, shape: torch.Size) -> int:
        return math.ceil(shape[0] / self.world) * (shape.numel() // max(1, shape[0]))


@dataclass(frozen=True)
class Span:
    """One flat group of stages 1 and 2: each parameter's offset in it, and the size of a rank's partition."""

    offsets: Mapping[str, int]
    partition: int


@dataclass(frozen=True)
class Flat:
    """Stages 1 and 2: the parameters of a group lie end to end, and each rank owns an equal stretch of that."""

    shapes: Shapes
    spans: Sequence[Span]
    rank: int
    world: int
    group: dist.ProcessGroup | None
    sharded: bool = field(default=True)

    @property
    def pieces(self) -> dict[str, Piece]:
        """The overlap of each parameter with the rank's stretch."""
        found = {}
        for span in self.spans:
            for name, offset in self._held(span):
                piece = self._overlap(span, offset, self.shapes[name].numel())
                if piece.start < piece.stop:
                    found[name] = piece
        return found

    def cuts(self, name: str) -> range:
        """Where a rank's stretch of the group ends inside the parameter."""
        span = next(span for span in self.spans if name in span.offsets)
        first = span.partition - span.offsets[name] % span.partition
        return range(first, self.shapes[name].numel(), span.partition)

    def reduce(self, full: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """See `Layout.reduce`."""
        spans = [span for span in self.spans if self._held(span)]
        sizes = [span.partition for span in spans]
        rows = [self._filled(span, full, device).view(self.world, span.partition) for span in spans]
        own = reduce_scatter(torch.cat(rows, dim=1).flatten(), self.world, self.group).split(sizes)
        found = {}
        for span, part in zip(spans, own, strict=True):
            for name, offset in self._held(span):
                piece = self._overlap(span, offset, self.shapes[name].numel())
                if piece.start < piece.stop:
                    first = offset + piece.start - self.rank * span.partition
                    found[name] = part[first : first + len(piece)]
        return found

    def _held(self, span: Span) -> list[tuple[str, int]]:
        return [(name, offset) for name, offset in span.offsets.items() if name in self.shapes]

    def _overlap(self, span: Span, offset: int, numel: int) -> Piece:
        first, last = self.rank * span.partition, (self.rank + 1) * span.partition
        return Piece(max(0, first - offset), max(0, min(numel, last - offset)))

    def _filled(self, span: Span, full: Mapping[str, Tensor], device: torch.device) -> Tensor:
        buffer = torch.zeros(self.world * span.partition, dtype=torch.float32, device=device)
        for name, offset in self._held(span):
            if name in full:
                buffer[offset : offset + full[name].numel()] = full[name].reshape(-1)
        return buffer


def reduce_scatter(flat: Tensor, world: int, group: dist.ProcessGroup | None) -> Tensor:
    """The rank's `1 / W` of `flat` [W * N], summed over the ranks, [N]."""
    own = torch.empty(flat.numel() // world, dtype=flat.dtype, device=flat.device)
    dist.reduce_scatter_tensor(own, flat, group=group)
    return own


def _flat_or_zeros(full: Mapping[str, Tensor], name: str, shape: torch.Size, device: torch.device) -> Tensor:
    if name in full:
        return full[name].reshape(-1).float()
    return torch.zeros(shape.numel(), dtype=torch.float32, device=device)
