"""The combination of vectors that lie in pieces on many ranks. Shapes: K parameters of one shape [O, I], N slice.

Each rank adds the row sums of what it owns, one float64 all-reduce makes every row's Gram whole on every rank, and the
update is elementwise on the slices. No gradient is gathered.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from debias.engines.layout import Layout, Piece
from debias.engines.rule_state import RuleState, rescale
from debias.engines.step import GramSums
from debias.methods import GRADIENTS, apply_coefficients, gram_of_rows, pairs_of

# (factor from the given gradients to what the rule should see, factor from their update to what is written).
ScaleOf = Callable[[list[float]], tuple[float, float]]

# Slices of one kind are combined together up to this many elements; more would only cost memory.
STACK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Alike:
    """Parameters of one shape [O, I] of which this rank owns the same piece."""

    shape_index: int
    members: Tensor  # which of the parameters of that shape, [K] int64
    names: tuple[str, ...]
    piece: Piece
    columns: int

    def cut(self, flat_KN: Tensor) -> list[tuple[slice, Tensor]]:
        """The rows that the slice touches, each part with its view [K, R, columns]: a part of a row, whole rows, rest.

        A row that straddles ranks is a shorter row here: its sums are partial, and its coefficients are the row's own.
        """
        parts = []
        at = self.piece.start
        for stop in self._cuts():
            if stop > at:
                rows = slice(at // self.columns, (stop - 1) // self.columns + 1)
                part_KN = flat_KN[:, at - self.piece.start : stop - self.piece.start]
                parts.append((rows, part_KN.unflatten(1, (rows.stop - rows.start, -1))))
            at = max(at, stop)
        return parts

    def _cuts(self) -> tuple[int, int, int]:
        first_whole = min(-(-self.piece.start // self.columns) * self.columns, self.piece.stop)
        last_whole = max(self.piece.stop // self.columns * self.columns, first_whole)
        return first_whole, last_whole, self.piece.stop


@dataclass
class Plan:
    """How the selected parameters are combined: made once, used at each step."""

    shapes: list[torch.Size]
    names: list[tuple[str, ...]]  # of the parameters of each shape
    alike: list[Alike]
    group: dist.ProcessGroup | None
    sharded: bool
    device: torch.device
    rows: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = sum(len(names) * _rows(shape)[0] for shape, names in zip(self.shapes, self.names, strict=True))

    def grams(self, buffer_RG: Tensor) -> list[Tensor]:
        """Views [K, O, G] of the buffer, one for each shape."""
        sizes = [len(names) * _rows(shape)[0] for shape, names in zip(self.shapes, self.names, strict=True)]
        views = []
        for part, shape, names in zip(buffer_RG.split(sizes), self.shapes, self.names, strict=True):
            views.append(part.view(len(names), _rows(shape)[0], part.shape[-1]))
        return views


def make_plan(
    layout: Layout, shapes: Mapping[str, torch.Size], group: dist.ProcessGroup | None, device: torch.device
) -> Plan:
    """The plan for parameters of these shapes; the order of `shapes` must be the same on every rank."""
    by_shape: dict[torch.Size, list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    pieces = layout.pieces
    alike = [
        Alike(index, torch.tensor([names.index(n) for n in part], device=device), tuple(part), piece, _rows(shape)[1])
        for index, (shape, names) in enumerate(by_shape.items())
        for piece, part in _with_one_piece(names, pieces)
    ]
    return Plan(list(by_shape), [tuple(names) for names in by_shape.values()], alike, group, layout.sharded, device)


def _with_one_piece(names: Sequence[str], pieces: Mapping[str, Piece]) -> Iterator[tuple[Piece, list[str]]]:
    groups: dict[Piece, list[str]] = {}
    for name in names:
        if name in pieces:
            groups.setdefault(pieces[name], []).append(name)
    for piece, held in groups.items():
        size = max(1, STACK_ELEMENTS // len(piece))
        for start in range(0, len(held), size):
            yield piece, held[start : start + size]


def _rows(shape: torch.Size) -> tuple[int, int]:
    """`(O, I)`: dimension 0 is the rows; 0-D and 1-D tensors are one row."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, max(1, shape.numel() // max(1, rows))


@dataclass(frozen=True)
class Combined:
    """The sums of a step: over the selected parameters (`sums`), and whatever else went with the one all-reduce."""

    sums: GramSums
    extras: list[float]


def combine_pieces(
    plan: Plan,
    state: RuleState,
    vectors: Sequence[Mapping[str, Tensor]],
    extras: Sequence[Tensor | float],
    scale_of: ScaleOf,
) -> Combined:
    """Put the update in the place of main, slice by slice; collective over the plan's group, with one all-reduce.

    `vectors` hold this rank's flat pieces of what the state's rule looks at, in its order: main first. `extras` are
    further numbers to be summed over the ranks by the same all-reduce; `scale_of(extras)` then says by what a gradient
    must be multiplied to be what the rule should see, and by what the update, in the same way. What is no gradient is
    seen as it is.
    """
    rule, header = state.rule, len(extras)
    products = len(pairs_of(len(vectors)))
    buffer = torch.zeros(header + products * plan.rows, dtype=torch.float64, device=plan.device)
    for index, value in enumerate(extras):
        buffer[index] = value
    grams = plan.grams(buffer[header:].view(-1, products))
    stacks = [[_stack(vector, group.names) for vector in vectors] for group in plan.alike]
    for group, stack in zip(plan.alike, stacks, strict=True):
        for rows, slices_KRI in _cut_alike(group, stack):
            gram_KRG = gram_of_rows(*slices_KRI)
            grams[group.shape_index][group.members, rows] += gram_KRG.to(plan.device)
    dist.all_reduce(buffer, group=plan.group)
    summed: list[float] = buffer[:header].tolist()
    seen, written = scale_of(summed)
    if not plan.sharded:
        buffer[header:] /= dist.get_world_size(plan.group)  # every rank added the whole
    scales = [seen if vector in GRADIENTS else 1.0 for vector in rule.looks_at]
    rescale(buffer[header:].view(-1, products), scales)
    coefficients = [state.coefficients(names, gram) for names, gram in zip(plan.names, grams, strict=True)]
    sums = GramSums(rule.looks_at)
    for names, gram, of_shape in zip(plan.names, grams, coefficients, strict=True):
        sums.add(names, gram, of_shape)
    factors = [written if vector in GRADIENTS else written / seen for vector in rule.looks_at]
    for group, stack in zip(plan.alike, stacks, strict=True):
        of_shape = coefficients[group.shape_index]
        mine = [side[group.members] * factor for side, factor in zip(of_shape, factors, strict=True)]
        _write(group, mine, stack, [vectors[0][name] for name in group.names])
    return Combined(sums, summed)


def _cut_alike(group: Alike, stack_KN: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
    """The rows that the slices touch, each part with the views [K, R, I] of all vectors."""
    for parts in zip(*(group.cut(vector_KN) for vector_KN in stack_KN), strict=True):
        yield parts[0][0], [view_KRI for _, view_KRI in parts]


def _write(group: Alike, coefficients: list[Tensor], stack_KN: list[Tensor], into: list[Tensor]) -> None:
    main_KN = stack_KN[0]
    for rows, slices_KRI in _cut_alike(group, stack_KN):
        of_rows = [side_KO[:, rows].to(main_KN.device) for side_KO in coefficients]
        slices_KRI[0].copy_(apply_coefficients(of_rows, slices_KRI))
    if into[0].data_ptr() != main_KN.data_ptr():
        torch._foreach_copy_(into, main_KN.unbind())


def _stack(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """[K, N]; a single slice is not copied."""
    if len(names) == 1:
        return tensors[names[0]].unsqueeze(0)
    return torch.stack([tensors[name] for name in names])
