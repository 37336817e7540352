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
from debias.engines.stacks import blocks, together
from debias.engines.step import GramSums
from debias.methods import GRADIENTS, gram_of_rows, pairs_of, wide_enough, write_update

# (factor from the given gradients to what the rule should see, factor from their update to what is written).
ScaleOf = Callable[[list[float]], tuple[float, float]]


@dataclass(frozen=True)
class Alike:
    """Parameters of one shape [O, I] of which this rank owns the same piece."""

    shape_index: int
    members: slice | Tensor  # which of the parameters of that shape: a stretch of them, or [K] int64
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

    def grams(self, buffer_GR: Tensor) -> list[Tensor]:
        """Views [K, O, G] of the buffer, one for each shape; each product lies in one piece."""
        sizes = [len(names) * _rows(shape)[0] for shape, names in zip(self.shapes, self.names, strict=True)]
        parts = zip(buffer_GR.split(sizes, dim=1), self.shapes, self.names, strict=True)
        return [part.T.unflatten(0, (len(names), _rows(shape)[0])) for part, shape, names in parts]


def make_plan(
    layout: Layout, shapes: Mapping[str, torch.Size], group: dist.ProcessGroup | None, device: torch.device
) -> Plan:
    """The plan for parameters of these shapes; the order of `shapes` must be the same on every rank."""
    by_shape: dict[torch.Size, list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    pieces = layout.pieces
    alike = [
        Alike(index, _members([names.index(n) for n in part], device), tuple(part), piece, _rows(shape)[1])
        for index, (shape, names) in enumerate(by_shape.items())
        for piece, part in _with_one_piece(names, pieces, device)
    ]
    return Plan(list(by_shape), [tuple(names) for names in by_shape.values()], alike, group, layout.sharded, device)


def _members(at: list[int], device: torch.device) -> slice | Tensor:
    """A stretch where they are one: a view of it takes no copy."""
    stretch = slice(at[0], at[0] + len(at))
    return stretch if at == list(range(stretch.start, stretch.stop)) else torch.tensor(at, device=device)


def _with_one_piece(
    names: Sequence[str], pieces: Mapping[str, Piece], device: torch.device
) -> Iterator[tuple[Piece, list[str]]]:
    groups: dict[Piece, list[str]] = {}
    for name in names:
        if name in pieces:
            groups.setdefault(pieces[name], []).append(name)
    for piece, held in groups.items():
        size = together(len(piece), device)
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
    grams = plan.grams(buffer[header:].view(products, -1))
    stacks = [[_stack(vector, group.names) for vector in vectors] for group in plan.alike]
    for group, stack in zip(plan.alike, stacks, strict=True):
        for rows, slices_KRI in _cut_alike(group, stack):
            # A rank has no element of a row twice: what is there is zero.
            grams[group.shape_index][group.members, rows] = gram_of_rows(*slices_KRI).to(plan.device)
    dist.all_reduce(buffer, group=plan.group)
    summed: list[float] = buffer[:header].tolist()
    seen, written = scale_of(summed)
    factors = [written if vector in GRADIENTS else written / seen for vector in rule.looks_at]
    scales = [seen if vector in GRADIENTS else 1.0 for vector in rule.looks_at]
    sums = GramSums(rule.looks_at)
    dtype = wide_enough([tensor for stack in stacks for tensor in stack])
    coefficients = []
    for names, gram_KOG in zip(plan.names, grams, strict=True):
        of_shape = gram_KOG.new_empty((len(vectors), *gram_KOG.shape[:-1]), dtype=dtype)
        for part in blocks(gram_KOG):
            own_KOG = gram_KOG[part]
            if not plan.sharded:
                own_KOG /= dist.get_world_size(plan.group)  # every rank added the whole
            made = state.coefficients(names[part], rescale(own_KOG, scales))
            sums.add(names[part], own_KOG, made)
            for into_KO, made_KO, factor in zip(of_shape[:, part], made, factors, strict=True):
                torch.mul(made_KO, factor, out=into_KO)
        coefficients.append(of_shape)
    for group, stack in zip(plan.alike, stacks, strict=True):
        _write(group, coefficients[group.shape_index], stack, [vectors[0][name] for name in group.names])
    return Combined(sums, summed)


def _cut_alike(group: Alike, stack_KN: Sequence[Tensor]) -> Iterator[tuple[slice, list[Tensor]]]:
    """The rows that the slices touch, each part with the views [K, R, I] of all vectors."""
    for parts in zip(*(group.cut(vector_KN) for vector_KN in stack_KN), strict=True):
        yield parts[0][0], [view_KRI for _, view_KRI in parts]


def _write(group: Alike, coefficients_VKO: Tensor, stack_KN: list[Tensor], into: list[Tensor]) -> None:
    main_KN = stack_KN[0]
    for rows, slices_KRI in _cut_alike(group, stack_KN):
        write_update([side_KO[group.members, rows].to(main_KN.device) for side_KO in coefficients_VKO], slices_KRI)
    if into[0].data_ptr() != main_KN.data_ptr():
        torch._foreach_copy_(into, main_KN.unbind())


def _stack(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """[K, N]; a single slice is not copied."""
    if len(names) == 1:
        return tensors[names[0]].unsqueeze(0)
    return torch.stack([tensors[name] for name in names])
