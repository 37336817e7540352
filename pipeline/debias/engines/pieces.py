"""The combination of vectors that lie in pieces on many ranks. Shapes: K parameters of one shape [O, I], N slice.

Each rank makes the Grams, and the coefficients, of the R rows of a parameter that it holds elements of. One float64
all-reduce makes the sums of whole parameters and the Grams of rows that lie on more ranks than one; the update is
elementwise on the slices; a second all-reduce, of two numbers a parameter, says how long it is. No gradient is
gathered. S sums of G products: a whole parameter each, then a shared row each.
"""

import functools
import itertools
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from debias.engines.layout import Layout, Piece
from debias.engines.rule_state import RuleState, rescale
from debias.engines.stacks import blocks, together
from debias.engines.step import GramSums
from debias.methods import GRADIENTS, Gram, pairs_of, wide_enough, write_gram, write_update

# (factor from the given gradients to what the rule should see, factor from their update to what is written).
ScaleOf = Callable[[list[float]], tuple[float, float]]

NOTHING = Piece(0, 0)


@dataclass(frozen=True)
class Alike:
    """Parameters of one shape [O, I] of which this rank owns the same piece, or nothing."""

    names: tuple[str, ...]
    places_K: Tensor  # of their sums
    count: int  # O
    columns: int
    piece: Piece
    shared: Mapping[int, Tensor]  # which of the rows touched other ranks touch as well: the places [K] of their sums

    @property
    def rows(self) -> int:
        """R, how many rows the piece touches."""
        return -(-self.piece.stop // self.columns) - self.piece.start // self.columns

    @property
    def counted(self) -> int:
        """Which row is the first to be counted here: the rank that holds a row's first element counts it."""
        return int(self.piece.start % self.columns > 0)

    @functools.cached_property
    def cuts(self) -> list[tuple[slice, slice]]:
        """Which rows and elements of the slice go together: a part of a row, whole rows, rest.

        A row that straddles ranks is a shorter row here: its sums are partial, and its coefficients are the row's own.
        """
        start, stop, columns = self.piece.start, self.piece.stop, self.columns
        first_whole = min(-(-start // columns) * columns, stop)
        last_whole = max(stop // columns * columns, first_whole)
        ends, first = (start, first_whole, last_whole, stop), start // columns
        return [
            (slice(at // columns - first, (end - 1) // columns + 1 - first), slice(at - start, end - start))
            for at, end in itertools.pairwise(ends)
            if end > at
        ]


@dataclass(frozen=True)
class Stack:
    """Some of K parameters that are handled together."""

    members: slice
    main_KN: Tensor  # where the update is written
    parts: list[tuple[slice, list[Tensor]]]  # some of the rows, and the views [K, R, I] of all vectors


@dataclass(frozen=True)
class Plan:
    """How the selected parameters are combined: made once, used at each step."""

    names: list[str]  # in an order that is the same on every rank
    sums: int  # S
    alike: list[Alike]
    group: dist.ProcessGroup | None
    sharded: bool
    device: torch.device

    @property
    def rows(self) -> int:
        """How many rows get their coefficients on this rank."""
        return sum(len(group.names) * group.rows for group in self.alike)


def make_plan(
    layout: Layout, shapes: Mapping[str, torch.Size], group: dist.ProcessGroup | None, device: torch.device
) -> Plan:
    """The plan for parameters of these shapes; the order of `shapes` must be the same on every rank."""
    places = {name: place for place, name in enumerate(shapes)}
    first_shared, sums = {}, len(shapes)
    for name, shape in shapes.items():
        first_shared[name] = sums
        sums += len(shared_rows(layout.cuts(name), _rows(shape)[1]))
    pieces = layout.pieces
    held: dict[tuple[torch.Size, Piece], list[str]] = {}
    for name, shape in shapes.items():
        held.setdefault((shape, pieces.get(name, NOTHING)), []).append(name)
    alike = []
    for (shape, piece), names in held.items():
        count, columns = _rows(shape)
        shared = {
            row - piece.start // columns: torch.tensor(
                [first_shared[name] + bisect_left(shared_rows(layout.cuts(name), columns), row) for name in names],
                device=device,
            )
            for row in {end // columns for end in (piece.start, piece.stop) if end % columns}
        }
        places_K = torch.tensor([places[name] for name in names], device=device)
        alike.append(Alike(tuple(names), places_K, count, columns, piece, shared))
    return Plan(list(shapes), sums, alike, group, layout.sharded, device)


@functools.cache
def shared_rows(cuts: range, columns: int) -> list[int]:
    """The rows that lie on more ranks than one, in order, of a parameter that is cut there."""
    return sorted({cut // columns for cut in cuts if cut % columns})


def _rows(shape: torch.Size) -> tuple[int, int]:
    """`(O, I)`: dimension 0 is the rows; 0-D and 1-D tensors are one row."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, max(1, shape.numel() // max(1, rows))


@dataclass(frozen=True)
class Combined:
    """The sums of a step: over the selected parameters (`sums`), and whatever else went with the all-reduce."""

    sums: GramSums
    extras: list[float]


def combine_pieces(
    plan: Plan,
    state: RuleState,
    vectors: Sequence[Mapping[str, Tensor]],
    extras: Sequence[Tensor | float],
    scale_of: ScaleOf,
) -> Combined:
    """Put the update in the place of main, slice by slice; collective over the plan's group, with two all-reduces.

    `vectors` hold this rank's flat pieces of what the state's rule looks at, in its order: main first. `extras` are
    further numbers to be summed over the ranks by the first all-reduce; `scale_of(extras)` then says by what a gradient
    must be multiplied to be what the rule should see, and by what the update, in the same way. What is no gradient is
    seen as it is.
    """
    looks_at = state.rule.looks_at
    held = [_stacks(group, vectors) for group in plan.alike]
    products = len(pairs_of(len(vectors)))
    grams = [_gram(group, stacks, products, plan.device) for group, stacks in zip(plan.alike, held, strict=True)]
    sums_SG, summed = _sum_up(plan, grams, products, extras)
    seen, written = scale_of(summed)
    factors = [written if vector in GRADIENTS else written / seen for vector in looks_at]
    scales = [seen if vector in GRADIENTS else 1.0 for vector in looks_at]
    rescale(sums_SG, scales)
    sums = GramSums(looks_at)
    for group, stacks, gram_KRG in zip(plan.alike, held, grams, strict=True):
        whole_K1G = sums_SG[group.places_K].unsqueeze(1).to(gram_KRG.device)
        dtype = wide_enough([view for stack in stacks for _, views in stack.parts for view in views])
        coefficients_VKR = gram_KRG.new_empty((len(vectors), *gram_KRG.shape[:-1]), dtype=dtype)
        for part in blocks(gram_KRG):
            gram = Gram(rescale(gram_KRG[part], scales), whole_K1G[part], group.count)
            made = state.coefficients(group.names[part], gram)
            sums.add(group.names[part], gram, made, group.counted)
            for into_KR, made_KR, factor in zip(coefficients_VKR[:, part], made, factors, strict=True):
                torch.mul(made_KR, factor, out=into_KR)
        for stack in stacks:
            main = [vectors[0][name] for name in group.names[stack.members]]
            _write(stack, coefficients_VKR[:, stack.members], main)
    return Combined(_whole_lengths(plan, sums), summed)


def _stacks(group: Alike, vectors: Sequence[Mapping[str, Tensor]]) -> list[Stack]:
    if not len(group.piece):
        return []
    size = together(len(group.piece), vectors[0][group.names[0]].device)
    stacks = []
    for start in range(0, len(group.names), size):
        members = slice(start, start + size)
        sides = [_stack(vector, group.names[members]) for vector in vectors]
        parts = [(rows, [_rows_of(side_KN, rows, at) for side_KN in sides]) for rows, at in group.cuts]
        stacks.append(Stack(members, sides[0], parts))
    return stacks


def _stack(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """[K, N]; a single slice is not copied."""
    if len(names) == 1:
        return tensors[names[0]].unsqueeze(0)
    return torch.stack([tensors[name] for name in names])


def _rows_of(flat_KN: Tensor, rows: slice, at: slice) -> Tensor:
    """These rows as [K, R, I]."""
    return flat_KN[:, at].view(len(flat_KN), rows.stop - rows.start, -1)


def _gram(group: Alike, stacks: Sequence[Stack], products: int, device: torch.device) -> Tensor:
    """[K, R, G] of what this rank holds of these rows; each product lies in one piece."""
    device = stacks[0].main_KN.device if stacks else device
    gram_GKR = torch.empty((products, len(group.names), group.rows), dtype=torch.float64, device=device)
    gram_KRG = gram_GKR.movedim(0, -1)
    for stack in stacks:
        for rows, views_KRI in stack.parts:
            write_gram(gram_KRG[stack.members, rows], *views_KRI)
    return gram_KRG


def _sum_up(
    plan: Plan, grams: Sequence[Tensor], products: int, extras: Sequence[Tensor | float]
) -> tuple[Tensor, list[float]]:
    """The sums [S, G] and the extras, over all ranks; rows that are shared are made whole in the Grams."""
    header = len(extras)
    buffer = torch.zeros(header + plan.sums * products, dtype=torch.float64, device=plan.device)
    plain = [0.0 if isinstance(value, Tensor) else value for value in extras]
    buffer[:header] = torch.tensor(plain, dtype=torch.float64)
    for at, value in enumerate(extras):
        if isinstance(value, Tensor):
            buffer[at] = value
    sums_SG = buffer[header:].view(plan.sums, products)
    for group, gram_KRG in zip(plan.alike, grams, strict=True):
        sums_SG[group.places_K] = gram_KRG.sum(dim=1).to(buffer.device)
        for row, places_K in group.shared.items():
            sums_SG[places_K] = gram_KRG[:, row].to(buffer.device)
    dist.all_reduce(buffer, group=plan.group)
    if not plan.sharded:
        sums_SG /= dist.get_world_size(plan.group)  # every rank added the whole
    for group, gram_KRG in zip(plan.alike, grams, strict=True):
        for row, places_K in group.shared.items():
            gram_KRG[:, row] = sums_SG[places_K].to(gram_KRG.device)
    return sums_SG, buffer[:header].tolist()


def _whole_lengths(plan: Plan, sums: GramSums) -> GramSums:
    """The same on every rank, in the order of the plan, from what each rank counted of the last two sums."""
    if not plan.names:
        return sums
    places_T = torch.cat([group.places_K for group in plan.alike])
    parts_T5 = torch.cat([part_K5.to(plan.device) for part_K5 in sums.parts_K5])
    whole_T5 = torch.empty_like(parts_T5)
    whole_T5[places_T] = parts_T5
    lengths_T2 = whole_T5[:, 3:].contiguous()
    dist.all_reduce(lengths_T2, group=plan.group)
    whole_T5[:, 3:] = lengths_T2 if plan.sharded else lengths_T2 / dist.get_world_size(plan.group)
    return GramSums(sums.looks_at, list(plan.names), [whole_T5])


def _write(stack: Stack, coefficients_VKR: Tensor, into: list[Tensor]) -> None:
    for rows, views_KRI in stack.parts:
        write_update(coefficients_VKR[:, :, rows].unbind(), views_KRI)
    if into[0].data_ptr() != stack.main_KN.data_ptr():
        torch._foreach_copy_(into, stack.main_KN.unbind())
